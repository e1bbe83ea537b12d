"""`python -m tests.grid [--plans NAME...] [--models NAME...] [--ranks N...] [--kernels] [--json OUT]`: all cases, as a
table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tests.grid.models import TRACERS
from tests.grid.plans import PLANS
from tests.grid.processes import spawn
from tests.grid.run import OPTIMIZERS, Artifact, Case, Outcome, Sent, artifact, error, on_rank, reference

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
SECONDS = 90.0  # for a case, beside the start of its processes
BATCH = 6  # cases that share processes


def cases(
    models: Iterable[str], plans: Iterable[str], ranks: Iterable[int], dtype: torch.dtype, kernels: bool
) -> Iterator[Case]:  # fmt: skip
    for n in ranks:
        for plan in plans:
            for model in models:
                p = PLANS[plan]
                fits = model in p.only if p.only else not TRACERS[model].is_deep
                if p.least <= n <= p.most and fits:
                    yield Case(model, plan, n, dtype, kernels)


def run(chosen: Sequence[Case], tell: bool = True) -> dict[str, str | float]:
    """The error of each case, or what went wrong."""
    found: dict[str, str | float] = {}
    known: dict[tuple[str, torch.dtype, int, str], Outcome] = {}
    for n in sorted({c.ranks for c in chosen}):
        every = [c for c in chosen if c.ranks == n]
        for i in range(0, len(every), BATCH):
            for case, result in run_batch(every[i : i + BATCH], n):
                key = (case.model, case.dtype, PLANS[case.plan].microbatches, case.optimizer)
                if isinstance(result, Sent) and key not in known:
                    known[key] = reference(*key)
                found[str(case)] = error(result.outcome(), known[key]) if isinstance(result, Sent) else result
                if tell:
                    print(line(case, found[str(case)]), flush=True)
    return found


def run_batch(every: Sequence[Case], n: int) -> list[tuple[Case, Sent | str]]:
    ready: list[Artifact] = []
    found: list[tuple[Case, Sent | str]] = []
    for case in every:
        try:
            ready.append(artifact(case))
        except Exception as e:  # one case that cannot be placed or lowered is no reason to stop
            found.append((case, f"{type(e).__name__}: {e}"))
    try:
        ranks = spawn(on_rank, n, ready, seconds=60 + SECONDS * len(ready)) if ready else []
    except (TimeoutError, RuntimeError) as e:
        return [*found, *((a.case, str(e)) for a in ready)]
    for i, a in enumerate(ready):
        results = [r[i] for r in ranks]
        found.append((a.case, next((r for r in results if isinstance(r, str)), results[0])))
    return found


def line(case: Case, result: str | float) -> str:
    if isinstance(result, str):
        return f"FAIL  {case}: {result.strip().splitlines()[-1]}"
    return f"{'ok  ' if result <= TOLERANCE[case.dtype] else 'FAIL'}  {case!s:44} {result:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.grid", description=__doc__)
    parser.add_argument("--plans", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--models", nargs="+", default=list(TRACERS), choices=list(TRACERS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    parser.add_argument("--kernels", action="store_true", help="graphs call the models' kernels, in torch's form")
    parser.add_argument("--optimizer", default="", choices=list(OPTIMIZERS), help="default: torch's AdamW")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.kernels and args.dtype == "float64":
        parser.error("there are no kernels in fp64: --dtype float32")
    torch.set_num_threads(1)
    dtype = getattr(torch, args.dtype)
    every = cases(args.models, args.plans, args.ranks, dtype, args.kernels)
    found = run([replace(case, optimizer=args.optimizer) for case in every])
    good = [e for e in found.values() if isinstance(e, float) and e <= TOLERANCE[dtype]]
    print(f"{len(good)} of {len(found)} cases within {TOLERANCE[dtype]:g}; largest error {max(good, default=0.0):.1e}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if len(good) == len(found) else 1


if __name__ == "__main__":
    sys.exit(main())
