"""`python -m tests.bench.tune`: seconds of each block as `specc tune` measures it by itself, beside those in steps.

The five models of tests/bench/models.py, compiled. Prints a table and, as the last line, JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from specc.runtime.allocator import keep_memory
from specc.runtime.boxed import Function
from specc.runtime.device import CPU
from specc.runtime.measure import Clock, graph_seconds
from tests.bench.models import COMPARED, MODELS, Setting
from tests.bench.specc_side import side

TARGET = 0.15  # most that a block's prediction is off
WARM, STEPS = 2, 3  # steps that do not count, and those measured before and after a prediction


class Blocks:
    """The blocks of a model: as measured by themselves, and in steps."""

    def __init__(self, setting: Setting) -> None:
        self.made = side(setting)
        self.executor = self.made.executor(compiled=True)
        self.blocks = [*self.made.facts["graphs"]]
        self.drawn = self.made.inputs(setting.batch(torch.Generator().manual_seed(1)))

    def predicted(self) -> dict[str, float]:
        """Seconds of a call of each block, forward and backward, compiled."""
        clock = Clock(CPU)
        each = {n: [graph_seconds(text, clock) for text in self.made.texts(n).values()] for n in self.blocks}
        return {n: sum(s.compiled for s in parts) for n, parts in each.items()}

    def measured(self) -> dict[str, float]:
        """The same in a step, as a mean over the block's calls: what its graphs take, without the executor's own work
        between them (sums of gradients, say)."""
        spent: dict[str, float] = defaultdict(float)
        executor, bodies = self.executor, self.executor.bodies
        executor.bodies = {
            n: replace(b, fwd=clocked(b.fwd, n, spent), bwd=b.bwd and clocked(b.bwd, n, spent))
            for n, b in bodies.items()
        }
        executor.step(self.made.params, [self.drawn], [1.0])
        executor.bodies = bodies
        return {n: s / sum(c.body == n for c in executor.calls) for n, s in spent.items()}


def clocked(graph: Function, name: str, spent: dict[str, float]) -> Function:
    def call(box: list[Tensor]) -> Sequence[Tensor]:
        began = time.perf_counter()
        results = graph(box)
        spent[name] += time.perf_counter() - began
        return results

    return call


def compare(setting: Setting, rounds: int) -> dict[str, Any]:
    """Both in turn; errors are medians of those of a round, whose two sides saw the same machine."""
    torch.set_num_threads(setting.threads)
    keep_memory()
    blocks = Blocks(setting)
    for _ in range(WARM):
        blocks.measured()
    found = []
    for _ in range(rounds):
        before = [blocks.measured() for _ in range(STEPS)]
        made = blocks.predicted()
        found.append((made, [*before, *(blocks.measured() for _ in range(STEPS))]))
    rows = []
    for n in blocks.blocks:
        predicted, measured = [p[n] for p, _ in found], [statistics.median(s[n] for s in steps) for _, steps in found]
        error = statistics.median(p / m for p, m in zip(predicted, measured, strict=True)) - 1.0
        rows.append({
            "block": n, "predicted": statistics.median(predicted), "measured": statistics.median(measured),
            "error": error,
        })  # fmt: skip
    met = all(abs(row["error"]) <= TARGET for row in rows)
    return {"model": setting.model, "dtype": setting.dtype, "blocks": rows, "target": TARGET, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="default: five")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    results = []
    for model in args.model or COMPARED:
        results.append(found := compare(Setting(model, args.dtype), args.rounds))
        for b in found["blocks"]:
            times = f"{1e3 * b['predicted']:9.2f} ms predicted  {1e3 * b['measured']:9.2f} ms measured"
            print(f"{model:14} {b['block']:16} {times}  {b['error']:+.1%}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
