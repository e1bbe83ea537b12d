"""The files of a build that hold its calls, and its schedule: one for all ranks, or with a pipeline one for each of
its ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specc.compiler.program import Call
from specc.compiler.schedule.actions import Action, parse


def write_schedules(folder: Path, schedules: Sequence[Sequence[Action]]) -> None:
    for path, actions in zip(_paths(folder, len(schedules)), schedules, strict=True):
        path.write_text("\n".join(map(str, actions)) + "\n", encoding="utf-8")


def calls_of(layout: Mapping[str, Any]) -> tuple[Call, ...]:
    """The calls of a stage, of what stands in its calls.json."""
    return tuple(
        Call(c["body"], c["tile"], tuple(c["ins"]), tuple(c["params"]), tuple(c["outs"])) for c in layout["calls"]
    )


def read_schedules(folder: Path) -> tuple[list[Action], ...]:
    """The actions of each rank of the pipeline; of all ranks where there is none."""
    n = len(list(folder.glob("schedule*.txt")))
    return tuple(parse(path.read_text(encoding="utf-8")) for path in _paths(folder, n))


def _paths(folder: Path, n: int) -> list[Path]:
    return [folder / "schedule.txt"] if n == 1 else [folder / f"schedule.{rank}.txt" for rank in range(n)]
