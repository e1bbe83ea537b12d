"""Measure this machine's processor and how its processes reach each other, as rows of the hardware tables.

All processes measure at the same time, as they work at the same time in a run."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.nn.functional import scaled_dot_product_attention

from specc.runtime.device import ON_CPU
from specc.runtime.heartbeat import Pulse
from specc.runtime.launch import Job, launch
from specc.runtime.products import product
from specc.runtime.team import Team
from specc.runtime.worker import as_rank, own_rank
from specc.spec.dump import dump

RESULT = "measured.json"
FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
WIDTH = 1024  # of the products
COPIED = 1 << 26  # bytes, more than caches hold
SENT = 1 << 23  # bytes of the large collective
QUERIES = (1, 4, 1024, 128)  # of the attention: batch, heads, tokens, head dim
SECONDS = 0.3  # that a measurement goes on


def tune(ranks: int, name: str) -> str:
    """The text of a hardware file with a device `name`, measured in so many processes at once."""
    with tempfile.TemporaryDirectory(prefix="specc-tune-") as temporary:
        folder = Path(temporary)
        argument = {"folder": str(folder)}
        launch(
            Job("specc.runtime.tune:rank", argument, ranks, folder / "logs", 0, (__name__,), environment=ON_CPU), print
        )
        found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return dump({"devices": {name: device_row(found, name, ranks)}, "links": {name: found["link"]}})


def device_row(found: dict[str, Any], name: str, ranks: int) -> dict[str, Any]:
    """What was measured is the peak, so that all shares of products are 1."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / ranks / 2**30
    return {
        "peak": found["peak"], "bandwidth": found["bandwidth"], "memory": round(memory, 2), "units": 1,
        "node": ranks, "near": name, "far": name, "product": dict.fromkeys(found["peak"], 1.0),
        "attention": dict.fromkeys(("flash-1", "flash-2", "cudnn"), found["attention"]), "stream": 1.0, "depth": 0,
        "launch": found["launch"],
    }  # fmt: skip


def rank(argument: dict[str, Any]) -> int:
    """One of the processes; the first writes what it found."""

    def run(team: Team, pulse: Pulse) -> int:
        found = measured()
        if dist.get_rank() == 0:
            Path(argument["folder"], RESULT).write_text(json.dumps(found), encoding="utf-8")
        return 0

    me = own_rank()
    assert me is not None
    return as_rank(me, run)


def measured() -> dict[str, Any]:
    """TFLOP/s, GB/s, microseconds, and shares of attention."""
    peak = {name: product_rate(dtype) / 1e12 for name, dtype in FORMATS.items()}
    return {
        "peak": {name: float(f"{rate:.3g}") for name, rate in peak.items()},
        "bandwidth": float(f"{stream() / 1e9:.3g}"),
        "launch": float(f"{1e6 * best(lambda: torch.ones(1).add_(1)):.3g}"),
        "attention": [float(f"{min(1.0, rate / 1e12 / peak['fp32']):.3g}") for rate in attention()],
        "link": link(),
    }


def best(run: Callable[[], object]) -> float:
    """The least seconds of a call, over the time of a measurement."""
    run()
    least, began = float("inf"), time.perf_counter()
    while (now := time.perf_counter()) - began < SECONDS:
        run()
        least = min(least, time.perf_counter() - now)
    return least


def product_rate(dtype: torch.dtype) -> float:
    """FLOP/s, as graphs multiply here."""
    a, b = torch.randn(2, WIDTH, WIDTH).to(dtype)
    return 2.0 * WIDTH**3 / best(lambda: product(a, b))


def stream() -> float:
    """Bytes a second, read and written."""
    a = torch.zeros(COPIED // 4)
    b = torch.empty_like(a)
    return 2 * COPIED / best(lambda: b.copy_(a))


def attention() -> tuple[float, float]:
    """FLOP/s of a causal attention's forward and backward in fp32, of the work that is not skipped."""
    q, k, v = torch.randn(3, *QUERIES, requires_grad=True).unbind()
    batch, heads, tokens, dim = QUERIES
    flops = 2.0 * batch * heads * tokens * tokens * dim
    forward = best(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
    both = best(lambda: torch.autograd.grad(scaled_dot_product_attention(q, k, v, is_causal=True).sum(), (q, k, v)))
    return flops / forward, 2.5 * flops / max(both - forward, forward)


def link() -> dict[str, float]:
    """GB/s that a process sends in an all-reduce, and microseconds of a hop."""
    n = dist.get_world_size()
    if n == 1:
        return {"bandwidth": 1.0, "latency": 100.0}
    small, large = torch.zeros(1), torch.zeros(SENT // 4)
    short, long = (reduced(x) for x in (small, large))
    sent = 2 * (n - 1) / n * SENT
    bandwidth, latency = sent / max(long - short, 1e-9) / 1e9, 1e6 * short / (n - 1)
    return {"bandwidth": float(f"{bandwidth:.3g}"), "latency": float(f"{latency:.3g}")}


def reduced(x: torch.Tensor, times: int = 20) -> float:
    """The least seconds of an all-reduce; all processes call it as often."""
    least = float("inf")
    for _ in range(times):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(x)
        least = min(least, time.perf_counter() - began)
    return least
