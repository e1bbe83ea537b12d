"""`python -m tests.grid.memory [--plans NAME...] [--models NAME...] [--ranks N...]`: predicted and measured memory.

The most bytes of tensors that a rank has alive in a step: by the walk over its actions, and by torch's profiler, which
hears of everything that torch allocates. Prints a table and, as the last line, JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from specc.compiler.moments import orthogonalised
from specc.runtime.optimizer import Updater, scale, squares
from specc.runtime.profile import most_allocated
from tests.grid.models import TRACERS, inputs_of
from tests.grid.plans import PLANS
from tests.grid.processes import spawn
from tests.grid.run import Artifact, Case, artifact, ready, spec_of

PLANS_MEASURED = (
    "dp", "zero1", "zero2", "zero3", "tp", "tp+sp", "ring", "ulysses", "gather-kv", "1f1b-few", "pp+zero3",
    "zero3-recompute", "ring-recompute", "tp-half", "zero3-half", "zero3-offload",
)  # fmt: skip
TOLERANCE = 0.1
TIMES = 3  # steps, of which the least counts: threads of gloo give their buffers back when they come to it


@dataclass(frozen=True)
class Peak:
    """Bytes of a rank."""

    predicted: int
    measured: int

    @property
    def error(self) -> float:
        return abs(self.predicted / self.measured - 1)


def measure(case: Case) -> list[Peak]:
    """Those of each rank."""
    return spawn(peak, case.ranks, artifact(case))


def peak(rank: int, a: Artifact) -> Peak:
    """Steps of a rank behind the first, which makes the optimizer's state."""
    seat, executor, params = ready(a, rank)
    tracer, plan = TRACERS[a.case.model], PLANS[a.case.plan]
    batches = [seat.cut(inputs_of(tracer.program(), tracer.sizes, a.case.dtype, m)) for m in range(plan.microbatches)]
    own = {n: params[n] for n in sorted(a.trainable & set(params))}
    spec, program = spec_of(a.case.optimizer), tracer.program()
    optimizer = Updater(spec, own, False, orthogonalised(spec, program), seat.sharding, a.case.dtype)

    def step() -> None:
        grads = executor.step(params, batches, [1.0 / len(batches)] * len(batches)).grads
        scale(grads, squares(grads, grads) ** 0.5, 1.0)
        optimizer.step(grads, 1e-3)

    step()
    step()
    kept = [*params.values(), *optimizer.state().values(), *(x for b in batches for x in b.values())]
    before = sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}.values())
    measured: list[int] = []
    for _ in range(TIMES):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            step()
        measured.append(before + most_allocated(found))
    return Peak(a.peaks[seat.wire.rank if seat.wire else 0], min(measured))


def line(case: Case, peaks: Sequence[Peak]) -> str:
    worst = max(peaks, key=lambda p: p.error)
    verdict = "ok  " if worst.error <= TOLERANCE else "FAIL"
    return (
        f"{verdict}  {case!s:44} predicted {worst.predicted:>12,}  measured {worst.measured:>12,}  {worst.error:6.2%}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.grid.memory", description=__doc__)
    parser.add_argument("--plans", nargs="+", default=list(PLANS_MEASURED), choices=list(PLANS))
    parser.add_argument("--models", nargs="+", default=["llama"], choices=list(TRACERS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[2])
    args = parser.parse_args()
    found: dict[str, float] = {}
    for n in args.ranks:
        for plan in args.plans:
            for model in args.models:
                case = Case(model, plan, n, torch.float32)
                peaks = measure(case)
                print(line(case, peaks), flush=True)
                found[str(case)] = max(p.error for p in peaks)
    print(json.dumps(found))
    return 0 if max(found.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
