"""What ranks do in tests of the launcher: toys that import no torch, and a job of a few collectives."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from specc.runtime.errors import Stopped
from specc.runtime.heartbeat import Page, Pulse
from specc.runtime.launch import ATTEMPT, ERROR, PULSE
from specc.runtime.signals import Signals


def toy(argument: dict[str, Any]) -> int:
    """Count steps of a few milliseconds; at its step `at` the rank `rank` does `fault`, in the first `times` attempts.

    With `saves`, rank 0 saves after each step, and a new attempt goes on from there."""
    rank, ranks, folder = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(argument["folder"])
    attempt = Path(os.environ[ATTEMPT])
    pulse = Pulse(Page(attempt / PULSE, ranks), rank)
    (folder / f"pid{rank}").write_text(str(os.getpid()))
    tries = len(list(folder.glob(f"try-{rank}-*")))
    (folder / f"try-{rank}-{tries}").write_text("")
    saved = folder / "saved"
    begin = int(saved.read_text()) if argument.get("saves") and saved.exists() else 0
    with Signals() as signals:
        for step in range(begin, argument["steps"]):
            pulse.at(step)
            if step == begin:
                pulse.allow(0.0)
            if rank == argument.get("rank") and step == begin + argument["at"] and tries < argument.get("times", 1):
                fault(argument["fault"], pulse, folder)
            time.sleep(argument.get("pause", 0.005))
            if rank == 0 and argument.get("saves"):
                (folder / "saving").write_text(str(step + 1))
                (folder / "saving").rename(saved)  # others may be reading it
                pulse.saved()
            if signals.asked is not None:
                stopped = Stopped(f"saved at step {step}", signals.asked)
                (attempt / ERROR.format(rank)).write_text(str(stopped))
                return stopped.code
    if rank == 0:
        print("rank 0 talks")
    print(f"rank {rank} is done", file=sys.stderr)
    return 0


def fault(kind: str, pulse: Pulse, folder: Path) -> None:
    (folder / "fault").write_text(str(time.monotonic()))
    match kind:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "abort":
            os.abort()
        case "exit":
            os._exit(7)
        case "raise":
            pulse.failed()
            raise ValueError("the toy is broken")
        case "sleep":
            time.sleep(1000)
        case "spin":
            while True:
                pass


def sums(argument: dict[str, Any]) -> int:
    """A few sums over all ranks, then wait until the test has looked."""
    from specc.runtime.worker import as_rank, own_rank

    me = own_rank()
    assert me is not None

    def run(team: Any, pulse: Pulse) -> int:
        folder = Path(argument["folder"])
        total = team.numbers([float(me.rank)]).sum()
        said = team.gather(str(me.rank).encode() * me.rank)
        (folder / f"sum{me.rank}").write_text(f"{int(total)} {b' '.join(said).decode()} {os.getpid()}")
        while not (folder / "go").exists():
            time.sleep(0.02)
            pulse.touch()
        return 0

    return as_rank(me, run)
