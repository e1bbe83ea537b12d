"""Graphs compiled by a process of its own while the first steps of a run take them as they are.

Which step is the first with compiled graphs is decided before the run, so that it computes the same whenever it is
stopped and goes on: a step does not depend on how fast the compiler was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from specc.compiler.graphs import from_json
from specc.runtime import built  # registers ops that graphs may name
from specc.runtime.compile import callable_of, private_cache
from specc.runtime.executor import Executor
from specc.runtime.team import Team, first

assert built is not None


class Ahead:
    """A process that compiles graphs into Inductor's cache; it ends when this one does."""

    def __init__(self, graphs: Sequence[Path]) -> None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_cache()))
        command = [sys.executable, "-P", "-m", "specc.runtime.ahead", str(torch.get_num_threads()), *map(str, graphs)]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)

    def wait(self) -> None:
        """Until all are compiled; what the process could not compile is left to who asks for it."""
        self.process.wait()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Later:
    """Compiled graphs that take over at a step; rank 0 has them compiled until then."""

    step: int
    make: Callable[[], Executor]
    ahead: Ahead | None

    def take(self, team: Team) -> Executor:
        """The executor with compiled graphs, on every rank."""
        if self.ahead:
            self.ahead.wait()
        return first(team, self.make)

    def stop(self) -> None:
        if self.ahead:
            self.ahead.stop()


def main(threads: str, *graphs: str) -> None:
    """Compile the graphs of these files."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(int(threads))
    for file in graphs:
        with suppress(Exception):  # whoever asks for this graph will see it
            callable_of(from_json(Path(file).read_text(encoding="utf-8")), compiled=True)


def _end_with_parent() -> None:
    """Its end of the pipe closes when it dies, however that is."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
