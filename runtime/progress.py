"""How far a stage is: a bar on a terminal, now and then a line everywhere else."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

LINE_EVERY = 30.0  # seconds between lines at most, also when nothing happens


class Progress:
    """Says where the stage is. `bar` is the terminal to draw on, or None for lines by `say`."""

    def __init__(self, name: str, step: int, steps: int, units: int, say: Callable[[str], None],
                 bar: TextIO | None = None, unit: str = "token") -> None:  # fmt: skip
        self.name, self.first, self.steps, self.units, self.say, self.unit = name, step, steps, units, say, unit
        self.began = self.told = time.monotonic()
        self.is_cold = True
        self.bar: Bar | None = None
        if bar is not None:
            self.bar = Bar(
                TextColumn("{task.description}"), BarColumn(None), TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[told]}"), console=Console(file=bar), refresh_per_second=4, transient=True,
            )  # fmt: skip
            self.task = self.bar.add_task(name, total=steps, completed=step, told="")

    def __enter__(self) -> Progress:
        self.began = self.told = time.monotonic()
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        if self.bar:
            self.bar.stop()

    def rate(self, step: int) -> float:
        """Tokens (or images) a second, with evaluations and checkpoints but without the steps that warm up: this
        process's first, and the first with compiled graphs."""
        now = time.monotonic()
        rate = (step - self.first) * self.units / max(now - self.began, 1e-9)
        if self.is_cold:
            self.is_cold, self.first, self.began = False, step, now
        return rate

    def update(self, step: int, loss: float, rate: float, validation: float | None, more: str = "") -> None:
        """A step is done; `more` is told of it beside its loss, or beside that of validation."""
        left = clock((self.steps - step) * self.units / rate)
        speed = f"{rate:.0f} {self.unit}s/s  {left} left  {megabytes(peak_memory())}"
        if self.bar:
            self.bar.update(self.task, completed=step, told=f"loss {loss:.4f}{more}  {speed}")
        now = time.monotonic()
        due = validation is not None or step in (1, self.steps)
        if due or (self.bar is None and now - self.told >= LINE_EVERY):
            held = "" if validation is None else f"  validation {validation:.4f}"
            self.tell(f"{self.name} {step}/{self.steps}  loss {loss:.4f}{held}{more}  {speed}")
            self.told = now

    def tell(self, line: str) -> None:
        """Say a line; above the bar where there is one."""
        if self.bar:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            self.say(line)


def clock(seconds: float) -> str:
    """`0:42`, `1:05:09`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def peak_memory() -> int:
    """Bytes: the most that this process has held, on its GPU if it computes there."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
