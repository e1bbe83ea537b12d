"""How far each rank of a job is: a page of memory that the ranks write and their launcher reads.

A rank writes a few numbers and asks nobody, so the launcher sees where a rank hangs, however it does."""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

STEP, ACTION, TIME, LONGEST, ALLOWED, FAILED, SAVED = range(7)
WIDTH = 8  # numbers of a rank, each eight bytes at a multiple of eight: written and read at once
SHORTEST, TIMES = 10.0, 5.0  # a rank may be silent for ten seconds, or five times its longest step
PATIENCE = timedelta(days=1)  # of a collective under a launcher that finds who hangs: rank 0 may write a long sample
STARTING = 900.0  # seconds without a sign until the first step is done: imports, data, compilation


@dataclass(frozen=True)
class Sign:
    """What a rank last said. `step` and `action` are where it is; times are seconds of the monotonic clock."""

    step: int
    action: int
    time: float
    longest: float
    allowed: float
    failed: float
    saved: int

    @property
    def limit(self) -> float:
        """Seconds that it may be silent."""
        return max(SHORTEST, TIMES * self.longest, self.allowed)


class Page:
    """The numbers of all ranks, in a file that its makers and readers map."""

    def __init__(self, path: Path, ranks: int) -> None:
        size = ranks * WIDTH * 8
        with path.open("a+b") as f:
            f.truncate(size)
            self.memory = mmap.mmap(f.fileno(), size)
        self.numbers = memoryview(self.memory).cast("d")

    def sign(self, rank: int) -> Sign:
        n = self.numbers[rank * WIDTH : (rank + 1) * WIDTH]
        return Sign(int(n[STEP]), int(n[ACTION]), n[TIME], n[LONGEST], n[ALLOWED], n[FAILED], int(n[SAVED]))

    def close(self) -> None:
        self.numbers.release()
        self.memory.close()


class Pulse:
    """A rank's side of the page; without one it says nothing."""

    def __init__(self, page: Page | None = None, rank: int = 0) -> None:
        self.page, self.first = page, rank * WIDTH
        self.began: float | None = None  # when the step under way began, if it is not the first
        self.longest = 0.0
        self.allow(STARTING)

    def allow(self, seconds: float) -> None:
        """From now on this rank may be silent for as long as this; 0: as long as its steps say."""
        self._put(ALLOWED, seconds)
        self.touch()

    def restart(self, seconds: float) -> None:
        """As before the first step: it may be silent for that long, which says nothing of how long steps are."""
        self.began = None
        self.allow(seconds)

    def touch(self) -> None:
        """It is alive, where it was."""
        self._put(TIME, time.monotonic())

    def at(self, step: int, action: int = 0) -> None:
        """It has come to an action of a step; ranks that are further have more of both."""
        now = time.monotonic()
        if action == 0:
            self._new_step(now)
        self._put(STEP, step)
        self._put(ACTION, action)
        self._put(TIME, now)

    def saved(self) -> None:
        """A checkpoint is there: what is lost from now on is little."""
        if self.page:
            self._put(SAVED, self.page.numbers[self.first + SAVED] + 1)
        self.touch()

    def failed(self) -> None:
        """It is about to end by an error of its own."""
        self._put(FAILED, time.monotonic())

    def _new_step(self, now: float) -> None:
        if self.began is not None:
            self.longest = max(self.longest, now - self.began)
            self._put(LONGEST, self.longest)
        self.began = now

    def _put(self, which: int, value: float) -> None:
        if self.page:
            self.page.numbers[self.first + which] = value


class Watch:
    """Finds the ranks that have stopped, by the launcher's own time: one that was stopped itself suspects nobody."""

    def __init__(self, page: Page, pids: Sequence[int]) -> None:
        self.page, self.pids = page, pids
        self.seen = [page.sign(r).time for r in range(len(pids))]
        self.silent = [0.0] * len(pids)
        self.frozen = [0.0] * len(pids)  # seconds that the system has held the process stopped
        self.last = time.monotonic()

    def hung(self, alive: Sequence[int]) -> tuple[list[int], str] | None:
        """The ranks that hold up the job and why, if it is held up; `alive` are the ranks that have not ended."""
        now = time.monotonic()
        passed, self.last = min(now - self.last, 1.0), now
        signs = {r: self.page.sign(r) for r in alive}
        for r, sign in signs.items():
            self.silent[r] = self.silent[r] + passed if sign.time == self.seen[r] else 0.0
            self.seen[r] = sign.time
            self.frozen[r] = self.frozen[r] + passed if is_stopped(self.pids[r]) else 0.0
        long = [r for r in alive if self.frozen[r] >= SHORTEST]
        if not long and not self._all_silent(signs):
            return None
        if stopped := long or [r for r in alive if self.frozen[r] > 0]:
            seconds = max(self.frozen[r] for r in stopped)
            return stopped, f"is stopped (SIGSTOP) for {seconds:.0f} s at step {signs[stopped[0]].step}"
        least = behind(signs)
        return least, f"does not get on for {min(self.silent[r] for r in least):.0f} s at step {signs[least[0]].step}"

    def _all_silent(self, signs: Mapping[int, Sign]) -> bool:
        """Whether those that are furthest behind, for whom the others wait, have been silent for too long."""
        return bool(signs) and all(self.silent[r] >= signs[r].limit for r in behind(signs))


def behind(signs: Mapping[int, Sign]) -> list[int]:
    """The ranks that are furthest behind."""
    place = min((s.step, s.action) for s in signs.values())
    return [r for r, s in signs.items() if (s.step, s.action) == place]


def is_stopped(pid: int) -> bool:
    """Whether a signal stopped the process (a debugger does not count); only Linux tells."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2][:1] == b"T"
    except OSError:
        return False
