"""One side of a benchmark in a process of its own: `python -m tests.bench.worker SIDE '{"dtype": "bf16"}'`.

It answers each line on standard input with one line of JSON: `step` does a training step, `reset` forgets the
peak memory so far, `quit` gives the peak. Nothing else is written to standard output."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from specc.runtime.device import forget_peak
from tests.bench.models import Setting

# Modules are named as text, so that a side imports no model of the others: its memory is its own.
SIDES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "limit": ("tests.bench.limit", ()),
    "specc": ("tests.bench.specc_side", ()),
    "peer-eager": ("tests.bench.torch_side", ("tests.bench.peers", False)),
    "peer-compiled": ("tests.bench.torch_side", ("tests.bench.peers", True)),
    "plain-compiled": ("tests.bench.torch_side", ("tests.bench.plain", True)),
    "liger-compiled": ("tests.bench.torch_side", ("tests.bench.liger", True)),
}


def main(side: str, settings: str) -> None:
    setting = Setting(**json.loads(settings))
    torch.set_num_threads(setting.threads)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    module, args = SIDES[side]
    make: Callable[..., Callable[[], float]] = import_module(module).make
    if args:
        import_module(args[0]).load(setting.row)
    imported = resident()
    step = make(setting, *args)
    for line in sys.stdin:
        answer = handle(line.strip(), step, imported, setting.device)
        print(json.dumps(answer), file=out, flush=True)
        if line.strip() == "quit":
            break


def handle(command: str, step: Callable[[], float], imported: int, device: str) -> dict[str, float]:
    if command == "step":
        start = time.perf_counter()
        value = step()
        return {"seconds": time.perf_counter() - start, "value": value}
    if command == "reset":
        Path("/proc/self/clear_refs").write_text("5")
        forget_peak(torch.device(device))
        return {}
    if device == "cuda":
        return {"peak": torch.cuda.max_memory_allocated(), "imported": 0}
    return {"peak": status("VmHWM"), "imported": imported}


def resident() -> int:
    return status("VmRSS")


def status(key: str) -> int:
    """A size of this process from the kernel, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


if __name__ == "__main__":
    main(*sys.argv[1:])
