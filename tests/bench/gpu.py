"""`python -m tests.bench.gpu`: on a GPU, whether the generated kernels are right, how fast each is, and how fast a
decoder of 1.2 B parameters trains with 4,096 tokens a sequence.

Training is specc's graphs through Inductor beside transformers, as it is and with Liger-Kernel's kernels (the extra
`gpu`), compiled. Prints tables and, as the last line or to --json, JSON. `TRITON_INTERPRET=1 python -m tests.bench.gpu
--smoke` runs all but the comparison in small on a CPU, to see that it works."""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from specc.runtime.rates import measured
from tests.bench.cpu import compare, give, table
from tests.bench.gpu_kernels import LARGE, SMALL, right, rows_of
from tests.bench.limit import flops
from tests.bench.models import Setting
from tests.kernels.interpreter import round_bf16

PARTS = ("right", "kernels", "training")
MODEL_FLOPS = 0.5  # least share of the device's product rate that training is to reach on an H100
OF_COPY = 0.9  # least share of the copy rate for what memory bounds


def kernels(device: torch.device, smoke: bool) -> Iterator[dict[str, Any]]:
    for row in rows_of(device, SMALL if smoke else LARGE, compiled=not smoke):
        print(row.text(), flush=True)
        yield {**asdict(row), "share": row.share()}


def checked(device: torch.device) -> list[dict[str, Any]]:
    found = list(right(device))
    for wrong in (f for f in found if not f["met"]):
        print(f"WRONG: {wrong}", flush=True)
    print(f"{sum(f['met'] for f in found)} of {len(found)} kernels and settings are right", flush=True)
    return found


def training(model: str, rounds: int) -> dict[str, Any]:
    """Steps of all sides, one after the other, on one GPU. No GPU has run it yet."""
    setting = Setting(model, "bf16", threads=torch.get_num_threads(), device="cuda")
    has_liger = importlib.util.find_spec("liger_kernel") is not None
    sides = ["specc", "peer-compiled", *(["liger-compiled"] if has_liger else [])]
    found = compare(setting, sides, rounds, warm=3)
    print(table(found), flush=True)
    if not has_liger:
        print("  Liger-Kernel is not installed: pip install -e '.[gpu]'", flush=True)
    rate, needed = measured(torch.bfloat16, torch.device("cuda")).flops, flops(setting)
    for side, row in found["sides"].items():
        row["model_flops"] = needed / row["seconds"] / rate
        print(
            f"  {side:15} {row['model_flops']:.3f} of the measured product rate ({rate / 1e12:.0f} TFLOP/s)", flush=True
        )
    return {**found, "product_rate": rate, "target": MODEL_FLOPS}


def run(parts: Sequence[str], device: torch.device, smoke: bool, model: str, rounds: int) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu, interpreted"
    result: dict[str, Any] = {
        "device": name,
        "torch": torch.__version__,
        "copy_rate": measured(torch.bfloat16, device).bytes,
    }
    if "right" in parts:
        result["right"] = checked(device)
    if "kernels" in parts:
        result["kernels"] = list(kernels(device, smoke))
        bound = [r["share"] for r in result["kernels"] if "copy" in r["work"] and not r["name"].startswith("liger")]
        print(f"of the copy rate: median {statistics.median(bound):.2f}, asked {OF_COPY}", flush=True)
    if "training" in parts and not smoke:
        result["training"] = training(model, rounds)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--part", action="append", choices=PARTS, help="default: all")
    parser.add_argument("--model", default="decoder-1b", help="what trains (tests/bench/models.py)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--smoke", action="store_true", help="in small, on a CPU, with TRITON_INTERPRET=1")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    if not args.smoke and not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU here; --smoke runs on a CPU, with TRITON_INTERPRET=1")
    if args.smoke:
        round_bf16()
    device = torch.device("cpu" if args.smoke else "cuda")
    result = run(args.part or PARTS, device, args.smoke, args.model, args.rounds)
    give(result, args.json)


if __name__ == "__main__":
    main()
