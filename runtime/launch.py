"""Starts the ranks of a job on this machine, watches them, and starts them again when one dies or hangs.

No socket listens but gloo's own on the loopback device: ranks meet in a file of a private folder, a new one for each
attempt. `torchrun` may start the same ranks instead: they read the same environment."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specc.runtime.errors import RunError, Stopped
from specc.runtime.heartbeat import Page, Pulse, Watch
from specc.runtime.nursery import DUMP, Birth
from specc.runtime.signals import Signals

Say = Callable[[str], None]
GRACE = 0.5  # seconds from SIGTERM to SIGKILL: state is on the disk, nothing has to be saved
POLL = 0.05
SETTLE = 0.5  # seconds from the first end that is heard of to the choice of whose fault it was
IMPORTS = 300.0  # seconds that the nursery may take to start
LAST_LINES, LINE = 4, 300  # of a log that are told, and characters of each
ATTEMPT, STORE, PULSE, ERROR = "SPECC_ATTEMPT", "store", "pulse", "error-{:05d}"


@dataclass(frozen=True)
class Job:
    """What every rank runs, and where it tells of it. `talks` is where rank 0's standard output goes."""

    entry: str
    argument: Mapping[str, Any]
    ranks: int
    logs: Path
    max_restarts: int = 3
    modules: Sequence[str] = ()
    talks: str = "out"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed. `is_final`: another one would fail the same way."""

    told: str
    progressed: bool
    is_final: bool = False
    code: int = 1


def launch(job: Job, say: Say) -> None:
    """Run the job to its end. Raises RunError, or Stopped if a signal asked and the ranks have saved."""
    job.logs.mkdir(parents=True, exist_ok=True)
    restarts = 0
    with nursery(job) as link, Signals() as signals:
        while (failure := attempt(job, link, signals)) is not None:
            if signals.asked is not None:
                told = failure.told if failure.is_final else f"{failure.told}; this was not saved"
                raise Stopped(told, signals.asked)
            restarts = 0 if failure.progressed else restarts
            if failure.is_final:
                raise RunError(failure.told)
            if restarts == job.max_restarts:
                again = f", after {restarts} restarts without a checkpoint between them" if restarts else ""
                raise RunError(f"{failure.told}{again}; the logs of the ranks are in {job.logs}")
            restarts += 1
            say(f"{failure.told}; all ranks start again ({restarts} of {job.max_restarts})")


@contextmanager
def nursery(job: Job) -> Iterator[Link]:
    """The process that forks ranks; it and all of them end with the block."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-P", "-m", "specc.runtime.nursery", str(theirs.fileno()), str(os.getpid())]
    with (job.logs / "nursery.log").open("w") as log, ours:
        process = subprocess.Popen(
            [*command, *job.modules], pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
            stderr=None if job.talks == "err" else log,
        )  # fmt: skip
        theirs.close()
        try:
            yield Link(ours, job.logs / "nursery.log")
        finally:
            ours.close()
            try:
                process.wait(2.0)
            except subprocess.TimeoutExpired:
                process.kill()  # its ranks die with it
                process.wait()


@dataclass
class Link:
    """The launcher's side of the socket to the nursery."""

    socket: socket.socket
    log: Path
    text: bytes = b""

    def send(self, message: dict[str, Any]) -> None:
        try:
            self.socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            raise self.lost() from None

    def receive(self, seconds: float) -> list[dict[str, Any]]:
        """The messages that have come, or come within so many seconds. Raises RunError if the nursery is dead."""
        if not select.select([self.socket], [], [], seconds)[0]:
            return []
        got = self.socket.recv(1 << 16)
        if not got:
            raise self.lost()
        *lines, self.text = (self.text + got).split(b"\n")
        return [json.loads(line) for line in lines]

    def lost(self) -> RunError:
        return RunError(f"the process that starts ranks died{last_lines(self.log, 0)}")


def attempt(job: Job, link: Link, signals: Signals) -> Failure | None:
    """Start all ranks and wait for them; None if all ended well."""
    with tempfile.TemporaryDirectory(prefix="specc-", ignore_cleanup_errors=True) as name:
        folder = Path(name)  # made with mode 0700
        page = Page(folder / PULSE, job.ranks)
        for rank in range(job.ranks):
            Pulse(page, rank)  # it may be silent until it is born
        logs = [job.logs / f"rank{r:05d}.log" for r in range(job.ranks)]
        sizes = [log.stat().st_size if log.exists() else 0 for log in logs]
        births = [birth(job, r, folder, logs[r]) for r in range(job.ranks)]
        link.send({"births": [asdict(b) for b in births]})
        try:
            return Attempt(job, link, folder, page, logs, sizes).watch(signals)
        finally:
            page.close()


def birth(job: Job, rank: int, folder: Path, log: Path) -> Birth:
    """A rank in the words of torchrun, but that no store listens at the master's port."""
    threads = str(max(1, (os.cpu_count() or 1) // job.ranks))
    environment = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job.ranks), "LOCAL_WORLD_SIZE": str(job.ranks),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo",
        ATTEMPT: str(folder),
        **job.environment,
    }  # fmt: skip
    defaults = {"OMP_NUM_THREADS": threads}
    return Birth(rank, job.entry, dict(job.argument), defaults, environment, str(log), job.talks if rank == 0 else "")


@dataclass
class Attempt:
    """An attempt under way."""

    job: Job
    link: Link
    folder: Path
    page: Page
    logs: list[Path]
    sizes: list[int]  # of the logs, when it began
    pids: list[int] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)  # of the ranks that ended
    sent: int | None = None

    def watch(self, signals: Signals) -> Failure | None:
        """Wait until all ranks have ended well, or one has not."""
        if not self._born(signals):
            return self._failure("stopped before the ranks began")
        watch = Watch(self.page, self.pids)
        try:
            while len(self.codes) < self.job.ranks:
                self._listen(POLL)
                if any(self.codes.values()):
                    return self._failed()
                if signals.asked is not None and self.sent is None:
                    self.sent = signals.asked
                    self.link.send({"kill": signal.SIGTERM})
                alive = [r for r in range(self.job.ranks) if r not in self.codes]
                if found := watch.hung(alive):
                    return self._hung(*found)
        except KeyboardInterrupt:  # the second one
            return self._failure("stopped at once")
        finally:
            self._end()
        return None

    def _born(self, signals: Signals) -> bool:
        """Wait for the ranks to start; False if a signal came first."""
        end = time.monotonic() + IMPORTS
        while not self.pids and signals.asked is None:
            if time.monotonic() > end:
                raise RunError(f"the ranks did not start in {IMPORTS:.0f} s")
            self._listen(POLL)
        return bool(self.pids)

    def _listen(self, seconds: float) -> None:
        for message in self.link.receive(seconds):
            self.pids = message.get("pids", self.pids)
            if "ended" in message:
                self.codes[message["ended"]] = message["code"]

    def _end(self) -> None:
        """SIGTERM, a moment, SIGKILL; back when all have ended."""
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 10.0)):
            if len(self.codes) == self.job.ranks:
                return
            self.link.send({"kill": number})
            end = time.monotonic() + seconds
            while len(self.codes) < self.job.ranks and time.monotonic() < end:
                self._listen(POLL)
        if len(self.codes) < self.job.ranks:
            raise RunError("a rank does not end though it was killed: it may wait for a device or a disk")

    def _failed(self) -> Failure:
        """Which rank failed first: killed ones did, others say when."""
        end = time.monotonic() + SETTLE
        while min(self.codes.values()) >= 0 and not self._own_words() and time.monotonic() < end:
            self._listen(POLL)  # others fail by a dead rank's silence, and may end before the system has buried it
        failed = {r: at for r in range(self.job.ranks) if (at := self.page.sign(r).failed)}
        killed = [r for r, code in self.codes.items() if code < 0]
        others = sorted((r for r, code in self.codes.items() if code), key=lambda r: failed.get(r, float("inf")))
        rank = (killed or sorted(failed, key=lambda r: failed[r]) or others)[0]
        code = self.codes.get(rank, 1)
        if (told := self._own_words()) and code >= 0:
            return self._failure(told, is_final=True)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        said = "" if code == -signal.SIGKILL else self._last_lines(rank)  # it could say nothing of that
        return self._failure(f"rank {rank} {how} at step {self.page.sign(rank).step}{said}")

    def _own_words(self) -> str:
        """What a rank says of an end that it foresaw: an error to be told, or that it saved."""
        for rank in range(self.job.ranks):
            path = self.folder / ERROR.format(rank)
            if path.is_file():
                return path.read_text(encoding="utf-8")
        return ""

    def _hung(self, ranks: list[int], why: str) -> Failure:
        self.link.send({"kill": int(DUMP)})
        self._listen(0.3)
        names = f"rank {ranks[0]}" if len(ranks) == 1 else f"one of the ranks {', '.join(map(str, ranks))}"
        return self._failure(f"{names} {why} (where each rank was is in {self.job.logs})")

    def _failure(self, told: str, is_final: bool = False) -> Failure:
        return Failure(told, self.page.sign(0).saved > 0, is_final)

    def _last_lines(self, rank: int) -> str:
        return last_lines(self.logs[rank], self.sizes[rank])


def last_lines(log: Path, begin: int) -> str:
    """What a log says at its end, behind a place: `: line | line`, or nothing."""
    try:
        with log.open("rb") as f:
            f.seek(max(begin, log.stat().st_size - (1 << 14)))
            lines = [x.strip()[:LINE] for x in f.read().decode("utf-8", "replace").splitlines() if x.strip()]
    except OSError:
        return ""
    return f": {' | '.join(lines[-LAST_LINES:])}" if lines else ""
