"""`python -m tests.bench.cpu`: a training step of specc against Hugging Face transformers, eager and compiled.

Every side runs in a process of its own, one at a time and in turn, so that all see the same machine. Prints a table
and, as the last line, JSON: seconds, tokens/s, peak memory, ratios, and the share of the measured matmul rate."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from tests.bench.gemm import flops
from tests.bench.setting import Setting

SIDES = ("gemm", "specc", "hf-eager", "hf-compiled")
TARGETS = {"hf-eager": 1.15, "hf-compiled": 1.0}  # tokens/s of specc over theirs, at least
MEMORY_TARGET = 0.9  # peak memory of specc over theirs, at most


class Worker:
    """A running side; `ask` sends a command and waits for its answer."""

    def __init__(self, side: str, setting: Setting) -> None:
        command = [sys.executable, "-m", "tests.bench.worker", side, json.dumps(asdict(setting))]
        env = {**os.environ, "OMP_NUM_THREADS": str(setting.threads), "TOKENIZERS_PARALLELISM": "false"}
        self.side = side
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, command: str) -> dict[str, float]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.side} ended with code {self.process.wait()}")
        found: dict[str, float] = json.loads(answer)
        return found


def compare(setting: Setting, sides: tuple[str, ...], rounds: int, warm: int) -> dict[str, Any]:
    """Warm every side up, then take one step of each in turn."""
    workers = [Worker(side, setting) for side in sides]
    for w in workers:
        losses = [w.ask("step")["value"] for _ in range(warm)]
        w.ask("reset")
        print(f"  {setting.dtype} {w.side}: ready, first value {losses[0]:.4f}", file=sys.stderr, flush=True)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    last: dict[str, float] = {}
    for _ in range(rounds):
        for w in workers:
            answer = w.ask("step")
            seconds[w.side].append(answer["value"] if w.side == "gemm" else answer["seconds"])
            last[w.side] = answer["value"]
    memory = {w.side: w.ask("quit") for w in workers}
    return summary(setting, seconds, memory, last)


def summary(
    setting: Setting, seconds: dict[str, list[float]], memory: dict[str, dict[str, float]], last: dict[str, float]
) -> dict[str, Any]:
    """Medians over the rounds; ratios are medians of the ratios of one round, which saw the same machine."""
    rows: dict[str, Any] = {}
    for side in seconds:
        if side == "gemm":
            continue
        typical = statistics.median(seconds[side])
        rows[side] = {
            "seconds": typical,
            "tokens_per_s": setting.tokens / typical,
            "peak_bytes": memory[side]["peak"],
            "peak_over_imports": memory[side]["peak"] - memory[side]["imported"],
            "loss": last[side],
        }
        if "gemm" in seconds:
            rows[side]["share_of_matmul_rate"] = ratio(seconds["gemm"], seconds[side])
    result: dict[str, Any] = {"setting": asdict(setting), "sides": rows}
    if "gemm" in seconds:
        result["matmul_gflops"] = flops(setting) / statistics.median(seconds["gemm"]) / 1e9
    if "specc" in rows:
        result["against"] = {s: against(rows, seconds, s) for s in TARGETS if s in rows}
    return result


def against(rows: dict[str, Any], seconds: dict[str, list[float]], side: str) -> dict[str, Any]:
    speed = ratio(seconds[side], seconds["specc"])
    memory = rows["specc"]["peak_bytes"] / rows[side]["peak_bytes"]
    over = rows["specc"]["peak_over_imports"] / rows[side]["peak_over_imports"]
    met = speed >= TARGETS[side] and memory <= MEMORY_TARGET
    return {"speed": speed, "memory": memory, "memory_over_imports": over, "met": met}


def ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def table(result: dict[str, Any]) -> str:
    lines = [f"{result['setting']['dtype']}: products with weights at {result.get('matmul_gflops', 0):.0f} GFLOP/s"]
    for side, row in result["sides"].items():
        share = row.get("share_of_matmul_rate", 0.0)
        lines.append(
            f"  {side:12} {row['seconds']:7.3f} s  {row['tokens_per_s']:8.0f} tokens/s  {share:5.2f} of the matmul rate"
            f"  peak {row['peak_bytes'] / 2**20:6.0f} MiB ({row['peak_over_imports'] / 2**20:.0f} over imports)"
        )
    for side, row in result.get("against", {}).items():
        word = "met" if row["met"] else "MISSED"
        lines.append(
            f"  specc / {side}: speed {row['speed']:.3f} (>= {TARGETS[side]}), memory {row['memory']:.3f} "
            f"(<= {MEMORY_TARGET}; over imports {row['memory_over_imports']:.3f}): {word}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dtype", action="append", choices=("fp32", "bf16"), help="default: both")
    parser.add_argument("--side", action="append", choices=SIDES, help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2)
    args = parser.parse_args()
    results = []
    for dtype in args.dtype or ("fp32", "bf16"):
        result = compare(Setting(dtype=dtype), tuple(args.side or SIDES), args.rounds, args.warm)
        print(table(result), flush=True)
        results.append(result)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
