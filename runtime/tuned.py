"""What `specc tune BUILD` measured: seconds of the graphs of a build on a machine, and their use."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from specc.compiler.program import Call
from specc.compiler.schedule.actions import Action, graph_calls

FILE = "tuned.json"


@dataclass(frozen=True)
class Seconds:
    """Of one call of a graph, as it is and compiled."""

    plain: float
    compiled: float

    @property
    def best(self) -> float:
        return min(self.plain, self.compiled)


@dataclass(frozen=True)
class Op:
    """An op: how often it ran, and the seconds of all its runs together."""

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Tuned:
    """What was measured: seconds by `body.part` of each stage, and the ops of a call of each graph, longest first."""

    device: str
    threads: int
    graphs: dict[str, dict[str, Seconds]]
    ops: list[Op]


def save(tuned: Tuned, path: Path) -> None:
    """Beside the files of a build; it is none of them."""
    (path / FILE).write_text(json.dumps(asdict(tuned), indent=1) + "\n", encoding="utf-8")


def tuned_of(path: Path, device: torch.device) -> Tuned | None:
    """What was measured for a build, if on such a device with as many threads."""
    if not (path / FILE).is_file():
        return None
    data = json.loads((path / FILE).read_text(encoding="utf-8"))
    graphs = {stage: {n: Seconds(**s) for n, s in each.items()} for stage, each in data["graphs"].items()}
    found = Tuned(data["device"], data["threads"], graphs, [Op(**o) for o in data["ops"]])
    return found if (found.device, found.threads) == (device.type, torch.get_num_threads()) else None


def step_seconds(
    known: Mapping[str, Seconds], calls: Sequence[Call], schedules: Iterable[Sequence[Action]]
) -> Seconds:  # fmt: skip
    """What the graphs of a step take on the rank that computes longest; compiled, those alone that gain by it."""
    ranks = [graph_calls(actions, calls) for actions in schedules]
    return Seconds(
        max(sum(n * known[f"{body}.{part}"].plain for (body, part), n in times.items()) for times in ranks),
        max(sum(n * known[f"{body}.{part}"].best for (body, part), n in times.items()) for times in ranks),
    )
