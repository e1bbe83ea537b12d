"""`python -m tests.bench.cpu`: training steps of specc against what others would run, on this processor.

Five models (tests/bench/models.py), each against the class of transformers or diffusers, eager and compiled, and a page
of PyTorch by hand, compiled. Every side runs in a process of its own, one at a time and in turn, so that all see the
same machine; nothing is in a compiler's cache at first. All of decoder-125m at once take more than 24 GB: --apart.
Specc's model is lowered by a process that is gone before the first step, and counts for it. Prints tables and, as the
last line (or to --json), JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from specc.runtime.products import has_bf16
from tests.bench.limit import flops
from tests.bench.models import COMPARED, MODELS, Setting

LIMIT = "limit"
SIDES = (LIMIT, "specc", "peer-eager", "peer-compiled", "plain-compiled")
OWN = (LIMIT, "specc")
# Of specc over theirs: units a second, at least.
SPEEDS = {"peer-eager": 1.25, "peer-compiled": 1.1, "plain-compiled": 1.05, "liger-compiled": 1.1}
OF_COMPILED = {"memory": 0.7, "cold": 1 / 3}  # of specc over the compiled peer: peak memory, first step; at most
OF_LIMIT = 0.9  # of the machine's limit, at least


class Worker:
    """A running side; `ask` sends a command and waits for its answer."""

    def __init__(self, side: str, setting: Setting, cache: Path) -> None:
        command = [sys.executable, "-m", "tests.bench.worker", side, json.dumps(asdict(setting))]
        env = {
            **os.environ, "OMP_NUM_THREADS": str(setting.threads), "TOKENIZERS_PARALLELISM": "false",
            "TORCHINDUCTOR_CACHE_DIR": str(cache / side),
        }  # fmt: skip
        self.side, self.began = side, time.perf_counter()
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


def compare(setting: Setting, sides: Sequence[str], rounds: int, warm: int) -> dict[str, Any]:
    """Warm every side up, then take one step of each in turn; on a GPU, which holds one at a time, all of each."""
    took = Took()
    with tempfile.TemporaryDirectory(prefix="specc-bench-") as cache:
        workers: list[Worker] = []
        for side in sides:
            workers.append(started(side, setting, Path(cache), warm, took))
            if setting.device == "cuda":
                took.rounds(workers, rounds)
                workers.clear()
        took.rounds(workers, rounds)
    return summary(setting, took)


@dataclass
class Took:
    """What was measured of each side: seconds of steps, and to the end of the first two, memory, the last loss."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    memory: dict[str, dict[str, float]] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    cold: dict[str, float] = field(default_factory=dict)
    warm: dict[str, float] = field(default_factory=dict)

    def rounds(self, workers: Sequence[Worker], rounds: int) -> None:
        for _ in range(rounds):
            for w in workers:
                answer = w.ask("step")
                self.seconds[w.side].append(answer["value"] if w.side == LIMIT else answer["seconds"])
                self.last[w.side] = answer["value"]
        self.memory |= {w.side: w.ask("quit") for w in workers}


def started(side: str, setting: Setting, cache: Path, warm: int, took: Took) -> Worker:
    """A side that has taken its first steps, the first with nothing in a compiler's cache."""
    worker = Worker(side, setting, cache)
    first = worker.ask("step")["value"]
    took.cold[side] = time.perf_counter() - worker.began
    for i in range(warm - 1):
        worker.ask("step")
        if not i:
            took.warm[side] = time.perf_counter() - worker.began
    worker.ask("reset")
    told = f"{took.cold[side]:.1f} s, second after {took.warm[side]:.1f} s"
    print(f"  {side}: first value {first:.4f} after {told}", file=sys.stderr, flush=True)
    return worker


def summary(setting: Setting, took: Took) -> dict[str, Any]:
    """Medians over the rounds; ratios are medians of the ratios of one round, which saw the same machine."""
    rows: dict[str, Any] = {}
    seconds, memory = took.seconds, took.memory
    for side in (s for s in seconds if s != LIMIT):
        typical = statistics.median(seconds[side])
        rows[side] = {
            "seconds": typical, "units_per_s": setting.row.units / typical, "peak_bytes": memory[side]["peak"],
            "peak_over_imports": memory[side]["peak"] - memory[side]["imported"], "first_step": took.cold[side],
            "second_step": took.warm[side], "loss": took.last[side],
        }  # fmt: skip
        if LIMIT in seconds:
            rows[side]["of_limit"] = ratio(seconds[LIMIT], seconds[side])
    result: dict[str, Any] = {"setting": asdict(setting), "unit": setting.row.unit, "sides": rows}
    if LIMIT in seconds:
        result["limit_seconds"] = statistics.median(seconds[LIMIT])
        result["product_gflops"] = flops(setting) / result["limit_seconds"] / 1e9
    if "specc" in rows:
        result["checks"] = checks(rows, seconds)
    return result


def checks(rows: Mapping[str, Any], seconds: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """What is asked, what was found, and whether it will do."""
    ours, found = rows["specc"], list[dict[str, Any]]()

    def add(what: str, value: float, bound: float, least: bool) -> None:
        met = value >= bound if least else value <= bound
        found.append({"what": what, "value": value, "at_least" if least else "at_most": bound, "met": met})

    for side, bound in SPEEDS.items():
        if side in rows:
            add(f"speed over {side}", ratio(seconds[side], seconds["specc"]), bound, True)
    if "peer-compiled" in rows:
        theirs = rows["peer-compiled"]
        add("peak memory over peer-compiled", ours["peak_bytes"] / theirs["peak_bytes"], OF_COMPILED["memory"], False)
        add("first step over peer-compiled", ours["first_step"] / theirs["first_step"], OF_COMPILED["cold"], False)
    if "of_limit" in ours:
        add("share of the limit", ours["of_limit"], OF_LIMIT, True)
    return found


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def table(result: Mapping[str, Any]) -> str:
    setting, unit = result["setting"], result["unit"]
    lines = [f"{setting['model']} in {setting['dtype']}, {setting['threads']} threads"]
    if "limit_seconds" in result:
        lines[0] += f": limit {result['limit_seconds']:.3f} s, {result['product_gflops']:.0f} GFLOP/s"
    for side, row in result["sides"].items():
        share = f"  {row['of_limit']:5.2f} of the limit" if "of_limit" in row else ""
        lines.append(
            f"  {side:15} {row['seconds']:7.3f} s  {row['units_per_s']:8.1f} {unit}/s{share}  first step "
            f"{row['first_step']:6.1f} s  peak {row['peak_bytes'] / 2**20:6.0f} MiB "
            f"({row['peak_over_imports'] / 2**20:.0f} over imports)"
        )
    for c in result.get("checks", []):
        bound = f">= {c['at_least']:.3g}" if "at_least" in c else f"<= {c['at_most']:.3g}"
        lines.append(f"  {c['what']:32} {c['value']:6.3f}  ({bound})  {'met' if c['met'] else 'MISSED'}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", action="append", choices=list(MODELS), help="default: five")
    parser.add_argument("--dtype", action="append", choices=("fp32", "bf16"), help="default: what this processor has")
    parser.add_argument("--side", action="append", choices=SIDES, help="default: all")
    parser.add_argument("--apart", action="store_true", help="each peer alone with specc and the limit: less memory")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm", type=int, choices=range(2, 100), default=2, metavar="STEPS")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    results = []
    for model in args.model or COMPARED:
        for dtype in args.dtype or ("fp32", *(["bf16"] if has_bf16() else [])):
            for sides in groups(args.side or SIDES, args.apart):
                results.append(compare(Setting(model, dtype), sides, args.rounds, args.warm))
                print(table(results[-1]), flush=True)
    give(results, args.json)


def groups(sides: Sequence[str], apart: bool) -> list[Sequence[str]]:
    """The sides that run in turn."""
    return [(*OWN, side) for side in sides if side not in OWN] if apart else [sides]


def give(result: Any, to: Path | None) -> None:
    """As JSON, to a file or as the last line."""
    if to:
        to.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
