"""`python -m tests.bench.ranks`: training on two processes with one thread each against one process with two threads.

Whole runs of the same stage, in turn; the first steps of a run do not count. Prints JSON."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SPEC = """\
specc: 1
use: models/llama
model:
  dims: {{D: 512, L: 8, H: 8, K: 4, F: 1280, V: 4096}}
plan:
  threads: {threads}
  compile: "on"
  mesh: {{dp: {ranks}}}
  zero: {zero}
stages:
  pretrain:
    objective: causal_lm
    data: {{sources: [{{corpus: python-stdlib}}], seq_len: 512, limit: 200, validation: 0.05}}
    tokenizer: {{vocab: 4096, documents: 100}}
    batch: {{sequences: 8}}
    budget: {{steps: {steps}}}
    eval: {{every: 1000}}
    checkpoint: {{every: 1000}}
"""
WARM = 3  # steps of a run that do not count
TARGET = 0.9


def measure(folder: Path, ranks: int, zero: int, steps: int) -> list[float]:
    """Seconds of each step of a run behind the first."""
    folder.mkdir()
    spec = folder / "spec.yaml"
    spec.write_text(SPEC.format(threads=2 // ranks, ranks=ranks, zero=zero, steps=steps), encoding="utf-8")
    env = {**os.environ, "OMP_NUM_THREADS": str(2 // ranks)}
    command = [sys.executable, "-m", "specc", "run", str(spec), "-o", str(folder / "build")]
    subprocess.run(command, check=True, env=env, stdout=sys.stderr, timeout=900)
    lines = next(folder.rglob("metrics.jsonl")).read_text(encoding="utf-8").splitlines()
    return [sum(json.loads(line)["seconds"].values()) for line in lines[WARM:]]


def compare(rounds: int, steps: int, zero: int) -> dict[str, Any]:
    """Runs of both in turn."""
    seconds: dict[int, list[list[float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as root:
        for i in range(rounds):
            for ranks in (1, 2):
                seconds[ranks].append(measure(Path(root) / f"{i}-{ranks}", ranks, zero if ranks > 1 else 0, steps))
    typical = {n: [statistics.median(run) for run in runs] for n, runs in seconds.items()}
    ratio = statistics.median(one / two for one, two in zip(typical[1], typical[2], strict=True))
    return {"one_process_s": typical[1], "two_processes_s": typical[2], "zero": zero, "throughput_ratio": ratio,
            "target": TARGET, "met": ratio >= TARGET}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--zero", type=int, default=0, choices=(0, 1, 2, 3))
    args = parser.parse_args()
    print(json.dumps(compare(args.rounds, args.steps, args.zero)))


if __name__ == "__main__":
    main()
