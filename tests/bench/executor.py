"""`python -m tests.bench.executor`: the executor against a plain loop over the same graphs, forward and backward.

Both in one process, in turn, on one thread, without Inductor, whose wrappers both would pay for. Prints JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from specc.runtime.executor import Executor
from tests.bench.models import Setting
from tests.bench.specc_side import Side, side

SETTING = Setting("decoder-3m", threads=1)
TARGET = 1.03


def plain_loop(made: Side, executor: Executor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """The step that one would write by hand for these graphs: a list forward, the list back."""
    bodies = executor.bodies
    calls = [(c, bodies[c.body], [made.params[p] for p in c.params]) for c in executor.calls]

    @torch.no_grad()
    def step(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        values, saved, grads = dict(batch), [], {}
        for call, body, params in calls:
            results = body.fwd([*(values[v] for v in call.ins), *params])
            values.update(zip(call.outs, results[: body.n_outs], strict=True))
            saved.append(results[body.n_outs :])
        loss = made.facts["loss"]
        d_values = {loss: torch.ones_like(values[loss])}
        for call, body, _ in reversed(calls):
            assert body.bwd is not None
            d_outs = [d_values.pop(v) for v, flows in zip(call.outs, body.out_grads, strict=True) if flows]
            results = list(body.bwd([*saved.pop(), *d_outs]))
            for v, flows in zip(call.ins, body.in_grads, strict=True):
                if flows:
                    d = results.pop(0)
                    d_values[v] = d_values[v] + d if v in d_values else d
            for p, flows in zip(call.params, body.param_grads, strict=True):
                if flows:
                    d = results.pop(0)
                    grads[p] = grads[p].add_(d) if p in grads else d
        return grads

    return step


def compare(rounds: int) -> dict[str, Any]:
    """Each in turn, the one that goes first changing; both must give the same gradients."""
    torch.set_num_threads(SETTING.threads)
    made = side(SETTING)
    executor = made.executor(compiled=False)
    drawn = SETTING.batch(torch.Generator().manual_seed(1))
    batch, plain = made.inputs(drawn), plain_loop(made, executor)
    steps = {"plain": lambda: plain(batch), "executor": lambda: executor.step(made.params, [batch], [1.0]).grads}
    found = {name: step() for name, step in steps.items()}
    assert all(torch.equal(found["plain"][n], found["executor"][n]) for n in made.params)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds):
        for name in sorted(steps, reverse=bool(i % 2)):
            began = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - began)
    typical = {name: statistics.median(taken) for name, taken in seconds.items()}
    ratio = statistics.median(e / p for e, p in zip(seconds["executor"], seconds["plain"], strict=True))
    return {"seconds": typical, "ratio": ratio, "target": TARGET, "met": ratio <= TARGET}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=21)
    print(json.dumps(compare(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
