"""Graphs compiled by a process of its own while the first steps of a run take them as they are.

Which step is the first with compiled graphs is decided before the run, so that it computes the same whenever it is
stopped and goes on: a step does not depend on how fast the compiler was."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from specc.compiler.graphs import from_json
from specc.runtime import built  # registers ops that graphs may name
from specc.runtime.allocator import keep_memory
from specc.runtime.cache import use_private_cache
from specc.runtime.compile import callable_of
from specc.runtime.executor import Executor
from specc.runtime.team import Team, first

assert built is not None
PATIENCE = 5.0  # seconds that compilers have to take back what they have half written


class Ahead:
    """A process that compiles graphs into Inductor's cache; it ends when this one does. What it says is in `log`."""

    def __init__(self, graphs: Sequence[Path], log: Path) -> None:
        use_private_cache()
        command = [sys.executable, "-P", "-m", "specc.runtime.ahead", str(torch.get_num_threads()), *map(str, graphs)]
        with log.open("w") as out:
            # A session of its own: a Ctrl-C is for the run, which may still save.
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, start_new_session=True
            )
        self.log = log

    @property
    def is_busy(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """End it and its compilers, if it still runs."""
        for ask in (signal.SIGTERM, signal.SIGKILL):
            if self.is_busy:
                os.killpg(self.process.pid, ask)
            try:
                self.process.wait(PATIENCE)
                break
            except subprocess.TimeoutExpired:
                continue
        if self.process.stdin:
            self.process.stdin.close()


@dataclass
class Later:
    """Compiled graphs that take over at a step; rank 0 has them `compiled` until then, from its first step on: before
    that, a user waits."""

    step: int
    make: Callable[[], Executor]
    compiled: Callable[[], Ahead] | None
    ahead: Ahead | None = None

    def start(self) -> None:
        """A step is done."""
        if self.compiled and not self.ahead:
            self.ahead = self.compiled()

    @property
    def is_busy(self) -> bool:
        return self.ahead is not None and self.ahead.is_busy

    @property
    def trouble(self) -> str:
        """Why the graphs are not compiled yet, if the process is done."""
        code = self.ahead.process.returncode if self.ahead else 0
        return f"compiling beside the run ended with code {code}, see {self.ahead.log}" if self.ahead and code else ""

    def take(self, team: Team) -> Executor:
        """The executor with compiled graphs, on every rank: what is not in the cache yet is compiled now."""
        self.stop()
        executor = first(team, self.make)
        keep_memory()
        return executor

    def stop(self) -> None:
        if self.ahead:
            self.ahead.stop()


def main(threads: str, *graphs: str) -> None:
    """Compile the graphs of these files."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(int(threads))
    for file in graphs:
        callable_of(from_json(Path(file).read_text(encoding="utf-8")), compiled=True)
    gc.freeze()  # the run waits for the end of this process: no cycles are looked for


def _end_with_parent() -> None:
    """Its end of the pipe closes when it dies, however that is."""
    sys.stdin.read()
    os.killpg(0, signal.SIGTERM)


if __name__ == "__main__":
    main(*sys.argv[1:])
