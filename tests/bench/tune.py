"""`python -m tests.bench.tune`: seconds of each block as measured op by op before, beside those of the block in steps.

The five models of tests/bench/models.py, compiled, in one process each. Prints a table and, as the last line, JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from itertools import pairwise
from typing import Any

import torch

from specc.compiler.graphs import from_json, to_json
from specc.compiler.schedule.actions import PARTS, Action
from specc.runtime.allocator import keep_memory
from specc.runtime.device import CPU
from specc.runtime.measure import Clock, graph_seconds
from tests.bench.models import COMPARED, MODELS, Setting
from tests.bench.specc_side import Side, lowered, side

TARGET = 0.15  # most that a block's prediction is off
WARM = 2  # steps that do not count


def predicted(setting: Setting) -> dict[str, float]:
    """Seconds of a call of each block, forward and backward, compiled."""
    graphs, clock = lowered(setting)[0], Clock(CPU)
    each = {
        n: [from_json(to_json(gm)) for p, gm in g.parts().items() if p in ("fwd", "bwd")] for n, g in graphs.items()
    }
    return {n: sum(graph_seconds(gm, clock).compiled for gm in parts) for n, parts in each.items()}


def measured(setting: Setting, made: Side, steps: int) -> dict[str, float]:
    """The same of steps: medians over steps of a step's mean."""
    begins: list[tuple[Action | None, float]] = []
    made.executor.tell = lambda action: begins.append((action, time.perf_counter()))
    drawn = made.inputs(setting.row.draw(setting.row, torch.Generator().manual_seed(1)))
    found: dict[str, list[float]] = defaultdict(list)
    for step in range(WARM + steps):
        begins.clear()
        made.executor.step(made.params, [drawn], [1.0])
        begins.append((None, time.perf_counter()))
        spent: dict[str, list[float]] = defaultdict(list)
        for (action, begin), (_, end) in pairwise(begins):
            if action is not None and action.kind in PARTS and action.call >= 0:
                spent[made.executor.calls[action.call].body].append(end - begin)
        for name, seconds in spent.items():
            calls = sum(c.body == name for c in made.executor.calls)
            found[name] += [sum(seconds) / calls] if step >= WARM else []
    return {n: statistics.median(seconds) for n, seconds in found.items()}


def compare(setting: Setting, steps: int) -> dict[str, Any]:
    torch.set_num_threads(setting.threads)
    keep_memory()
    before, made = predicted(setting), side(setting)
    after = measured(setting, made, steps)
    blocks = [
        {"block": n, "predicted": before[n], "measured": s, "error": before[n] / s - 1.0} for n, s in after.items()
    ]
    return {
        "model": setting.model, "dtype": setting.dtype, "blocks": blocks, "target": TARGET,
        "met": all(abs(b["error"]) <= TARGET for b in blocks),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="default: five")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    results = []
    for model in args.model or COMPARED:
        results.append(found := compare(Setting(model, args.dtype), args.steps))
        for b in found["blocks"]:
            times = f"{1e3 * b['predicted']:9.2f} ms predicted  {1e3 * b['measured']:9.2f} ms measured"
            print(f"{model:14} {b['block']:16} {times}  {b['error']:+.1%}", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
