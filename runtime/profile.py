"""A few steps of a stage under a clock: seconds of each action and op, bytes alive, beside what was predicted.

Inputs are drawn and nothing is kept, so that no data is read and no run is touched."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from specc.compiler.schedule.actions import PARTS, Action
from specc.runtime.allocator import keep_memory
from specc.runtime.built import Build, Stage, open_build
from specc.runtime.compile import Decision
from specc.runtime.device import settle
from specc.runtime.heartbeat import STARTING, Pulse
from specc.runtime.launch import Job, launch
from specc.runtime.optimizer import scale, squares
from specc.runtime.rates import measured
from specc.runtime.seat import Seat, first_values, take_seat
from specc.runtime.start import MODULES, ranks_of
from specc.runtime.team import ALONE, Team
from specc.runtime.train import updater
from specc.runtime.tuned import Op
from specc.runtime.verify import inputs
from specc.runtime.worker import as_rank, own_rank

WARM = 2  # steps that do not count: the first makes the optimizer's state
OPTIMIZER = "optimizer"


@dataclass(frozen=True)
class Span:
    """What a rank did, from `begin` on by the machine's clock, in seconds."""

    what: str  # `F layers`, say
    begin: float
    seconds: float
    tile: int = -1
    microbatch: int = -1


@dataclass(frozen=True)
class Profile:
    """One rank's: the spans of each step, predicted seconds of a span by what it is, the ops of a step that took
    longest, and the most bytes of tensors alive, predicted (for the fullest rank) and measured."""

    rank: int
    steps: list[list[Span]]
    predicted: dict[str, float]
    ops: list[Op]
    peak: int
    predicted_peak: int

    def seconds(self) -> float:
        """The median of the steps."""
        return statistics.median(s[-1].begin + s[-1].seconds - s[0].begin for s in self.steps)

    def typical(self) -> dict[str, tuple[float, float]]:
        """How often a step does each thing, and the median over steps of all its seconds together."""
        names = dict.fromkeys(span.what for span in self.steps[0])
        each = {n: [[s.seconds for s in step if s.what == n] for step in self.steps] for n in names}
        return {n: (len(found[0]), statistics.median(map(sum, found))) for n, found in each.items()}


def profiles(path: Path, stage: str | None, steps: int) -> list[Profile]:
    """Those of all ranks of a build's mesh; `stage` is by default the first."""
    build = open_build(path)
    name = stage or next(iter(build.stages))
    if ranks_of(build) == 1:
        return [profiled(build, name, steps, ALONE, Pulse())]
    with tempfile.TemporaryDirectory(prefix="specc-profile-") as temporary:
        folder = Path(temporary)
        argument = {"path": str(path), "stage": name, "steps": steps, "folder": temporary}
        launch(Job("specc.runtime.profile:rank", argument, ranks_of(build), folder / "logs", 0, MODULES), print)
        return [from_json((folder / f"{r}.json").read_text()) for r in range(ranks_of(build))]


def rank(argument: dict[str, Any]) -> int:
    """The life of a rank."""
    me = own_rank()
    assert me is not None

    def run(team: Team, pulse: Pulse) -> int:
        pulse.allow(STARTING)
        found = profiled(open_build(Path(argument["path"])), argument["stage"], argument["steps"], team, pulse)
        (Path(argument["folder"]) / f"{team.rank}.json").write_text(json.dumps(asdict(found)))
        return 0

    return as_rank(me, run)


def from_json(text: str) -> Profile:
    data = json.loads(text)
    steps = [[Span(**s) for s in step] for step in data["steps"]]
    return Profile(**{**data, "steps": steps, "ops": [Op(**o) for o in data["ops"]]})


def profiled(build: Build, name: str, steps: int, team: Team, pulse: Pulse) -> Profile:
    """Run the steps, and one more under torch's profiler."""
    stage = build.stages[name]
    if isinstance(stage.plan["threads"], int):
        torch.set_num_threads(stage.plan["threads"])
    seat = take_seat(stage, team, pulse)
    decision = stage.decide(seat.device)
    clocked = Clocked(stage, seat, decision)
    for _ in range(WARM):
        clocked.step()
    found = [clocked.step() for _ in range(steps)]
    before = clocked.kept_bytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        clocked.step()
    memory = json.loads((stage.path / "memory.json").read_text())
    return Profile(
        team.rank, found, dict(predictions(stage, decision.compiled, seat.device)), list(longest(watched)),
        before + most_allocated(watched), memory["peak"],
    )  # fmt: skip


class Clocked:
    """A stage's state on this rank, and steps that note when each action begins."""

    def __init__(self, stage: Stage, seat: Seat, decision: Decision) -> None:
        self.stage, self.seat = stage, seat
        self.params = first_values(stage, seat)
        self.executor = stage.executor(decision.compiled, seat.coordinates, seat.wire, seat.device, decision.plain)
        own = {p: self.params[p] for p in stage.trainable() if p in self.params}
        self.optimizer = updater(stage, own, seat)
        n = stage.spec.batch.microbatches
        self.batches = [seat.cut({k: self.cast(x) for k, x in inputs(stage, m).items()}) for m in range(n)]
        keep_memory()

    def cast(self, x: Tensor) -> Tensor:
        return x.to(self.stage.compute) if x.is_floating_point() else x

    def step(self) -> list[Span]:
        begins: list[float] = []
        self.executor.tell = lambda action: begins.append(self.clock())
        shares = [1.0 / len(self.batches)] * len(self.batches)
        grads = self.executor.step(self.params, self.batches, shares).grads
        begins.append(self.clock())
        norm = float(self.seat.team.numbers([squares(grads, self.seat.owned(grads))]).sum().sqrt())
        scale(grads, norm, self.stage.spec.optimizer.clip)
        self.optimizer.step(grads, self.stage.spec.optimizer.lr)
        end = self.clock()
        actions = zip(self.executor.actions, begins, begins[1:], strict=False)
        return [*(self.span(a, x, y) for a, x, y in actions), Span(OPTIMIZER, begins[-1], end - begins[-1])]

    def clock(self) -> float:
        """Seconds, when the device has done all that it was told."""
        settle(self.seat.device)
        return time.monotonic()

    def span(self, a: Action, begin: float, end: float) -> Span:
        call = self.stage.calls[a.call] if a.call >= 0 else None
        what = f"{a.kind} {call.body}" if call else a.kind
        return Span(what, begin, end - begin, call.tile if call else -1, a.microbatch)

    def kept_bytes(self) -> int:
        """Bytes that stay from step to step."""
        kept = [*self.params.values(), *self.optimizer.state().values(), *(x for b in self.batches for x in b.values())]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}.values())


def predictions(stage: Stage, compiled: bool, device: torch.device) -> Iterator[tuple[str, float]]:
    """Seconds of each action that computes, and of the optimizer."""
    known = stage.predicted(device)
    for body in stage.work["parts"]:
        for kind, part in PARTS.items():
            if f"{body}.{part}" in known:
                yield f"{kind} {body}", known[f"{body}.{part}"].best if compiled else known[f"{body}.{part}"].plain
    yield OPTIMIZER, measured(stage.compute, device).seconds(stage.optimizer)


def longest(watched: profile, n: int = 12) -> Iterator[Op]:
    """The ops that took longest by themselves."""
    events: Sequence[Any] = watched.key_averages()
    for event in sorted(events, key=lambda e: -e.self_cpu_time_total)[:n]:
        yield Op(event.key, event.count, event.self_cpu_time_total * 1e-6)


def most_allocated(watched: profile) -> int:
    """The most bytes allocated, and not yet given back, since the profile began."""
    assert watched.profiler is not None
    assert watched.profiler.kineto_results is not None
    events: list[Any] = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def trace(found: Sequence[Profile]) -> dict[str, Any]:
    """The spans as Chrome's trace events (chrome://tracing, Perfetto): a process for each rank."""
    events: list[Mapping[str, Any]] = []
    for p in found:
        events.append({"name": "process_name", "ph": "M", "pid": p.rank, "args": {"name": f"rank {p.rank}"}})
        for span in (s for step in p.steps for s in step):
            args = {k: v for k, v in (("tile", span.tile), ("microbatch", span.microbatch)) if v >= 0}
            events.append({
                "name": span.what, "ph": "X", "pid": p.rank, "tid": 0, "ts": span.begin * 1e6,
                "dur": span.seconds * 1e6, "args": args,
            })  # fmt: skip
    return {"traceEvents": events}
