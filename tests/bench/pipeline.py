"""`python -m tests.bench.pipeline`: bubbles of a pipeline of two gloo ranks of one thread each, measured and simulated.

The simulator gets the mean seconds of each kind of slot and stage, and of a message. Prints JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from specc.compiler.build import build_spec
from specc.compiler.schedule.schedules import pipeline
from specc.compiler.schedule.simulate import simulate
from specc.compiler.schedule.slots import KINDS, slot_named
from specc.runtime.allocator import keep_memory
from specc.runtime.built import Stage, open_build
from specc.runtime.seat import first_values, take_seat
from specc.runtime.team import Processes
from specc.runtime.verify import inputs
from specc.runtime.wire import Arrival, Wire
from specc.spec.spec import Spec
from tests.grid.processes import spawn

SPEC = """
specc: 1
use: models/llama
model:
  dims: {D: 256, L: 8, H: 8, K: 4, F: 704, V: 1024}
plan: {mesh: {pp: 2}}
stages:
  pretrain:
    data: {sources: [{path: none}], seq_len: 256}
    tokenizer: {vocab: 1024}
    batch: {sequences: 16, microbatch: 2}
    budget: {steps: 1}
"""
RANKS, WARM = 2, 2  # steps that do not count
Ran = tuple[str, float, float, float]  # a slot, its begin and end by the machine's clock, and the seconds of its work


@dataclass(frozen=True)
class Timed(Arrival):
    """Notes how long its use waited."""

    waits: list[float] = field(default_factory=list)

    def take(self) -> Tensor:
        begin = time.monotonic()
        found = super().take()
        self.waits.append(time.monotonic() - begin)
        return found


@dataclass
class TimedWire(Wire):
    waits: list[float] = field(default_factory=list)

    def receive(self, name: str, is_gradient: bool, microbatch: int, peer: int) -> Arrival:
        made = super().receive(name, is_gradient, microbatch, peer)
        return Timed(made.buffer, made.work, made.peer, self.waits)


def measured(rank: int, path: str, steps: int) -> tuple[list[list[Ran]], float]:
    """What a rank ran in each step, and the seconds of a message."""
    torch.set_num_threads(1)
    stage = next(iter(open_build(Path(path)).stages.values()))
    seat = take_seat(stage, Processes())
    assert seat.wire is not None
    wire = TimedWire(**{f.name: getattr(seat.wire, f.name) for f in fields(Wire)})
    executor = stage.executor(coordinates=seat.coordinates, wire=wire)
    params = first_values(stage, seat, torch.float32)
    n = stage.spec.batch.microbatches
    batches = [seat.cut(inputs(stage, m)) for m in range(n)]
    keep_memory()
    times: list[tuple[float, float]] = []  # at each action: the clock, and the seconds waited so far
    executor.tell = lambda action: times.append((time.monotonic(), sum(wire.waits)))
    found: list[list[Ran]] = []
    for _ in range(WARM + steps):
        times.clear(), wire.waits.clear()
        dist.barrier()
        executor.step(params, batches, [1 / n] * n)
        found.append(slots(stage, rank, times))
    return found[WARM:], message(stage, rank)


def slots(stage: Stage, rank: int, times: Sequence[tuple[float, float]]) -> list[Ran]:
    """The actions of a step as slots: those of one kind, stage and microbatch are one."""
    ran: list[Ran] = []
    for a, (begin, waited), (end, waited_then) in zip(stage.schedules[rank], times, times[1:], strict=False):
        if a.kind in KINDS:
            slot = f"{a.kind}{stage.pipeline['stages'][a.call]}.{a.microbatch}"
            ran.append((slot, begin, end, end - begin - (waited_then - waited)))
    joined: list[Ran] = []
    for slot, each in groupby(ran, key=lambda x: x[0]):
        parts = list(each)
        joined.append((slot, parts[0][1], parts[-1][2], sum(x[3] for x in parts)))
    return joined


def message(stage: Stage, rank: int) -> float:
    """Seconds of a message of the size of the largest value, one way."""
    x = torch.zeros(max((shape for _, shape in stage.pipeline["values"].values()), key=lambda s: torch.Size(s).numel()))
    seconds: list[float] = []
    for _ in range(20):
        begin = time.monotonic()
        for sender in range(RANKS):
            speak = dist.send if rank == sender else dist.recv
            speak(x, 1 - rank)
        seconds.append((time.monotonic() - begin) / RANKS)
    return statistics.median(seconds)


def compare(folder: Path, kind: str, steps: int) -> dict[str, Any]:
    """A schedule measured and simulated."""
    spec = Spec.from_yaml(SPEC).changed(f"plan.schedule.kind={kind}")
    build_spec(spec, folder / kind)
    ranks = spawn(measured, RANKS, str(folder / kind), steps, seconds=900.0)
    every = [[made[i] for made, _ in ranks] for i in range(steps)]
    seconds = [max(r[2] for x in step for r in x) - min(r[1] for x in step for r in x) for step in every]
    typical = sorted(range(steps), key=lambda i: seconds[i])[steps // 2]
    work: dict[tuple[str, int], list[float]] = defaultdict(list)
    for step in every:
        for name, _, _, spent in (r for x in step for r in x):
            work[slot_named(name).kind, slot_named(name).stage].append(spent)
    means = {key: statistics.mean(spent) for key, spent in work.items()}
    lag = statistics.median(lag for _, lag in ranks)
    table, where = pipeline(kind, RANKS, spec.stages["pretrain"].batch.microbatches)
    made = simulate(table, where, lambda slot: means[slot.kind, slot.stage], lambda source, target: lag)
    bubbles = [1 - sum(r[3] for r in x) / seconds[typical] for x in every[typical]]
    assert all(a[2] <= b[1] for x in every[typical] for a, b in pairwise(x)), "slots of a rank overlap"
    return {
        "step_s": seconds[typical], "simulated_step_s": made.seconds, "bubble": bubbles,
        "simulated_bubble": [made.bubble(r) for r in range(RANKS)], "message_s": lag,
        "slot_s": {f"{k}{s}": mean for (k, s), mean in sorted(means.items())},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pipeline", description=__doc__)
    parser.add_argument("--schedules", nargs="+", default=["gpipe", "1f1b", "zb-h1", "zb-v"])
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps({kind: compare(Path(folder), kind, args.steps) for kind in args.schedules}, indent=1))


if __name__ == "__main__":
    main()
