"""Kill or stop random ranks of a training run; its launcher starts all again. Compare it bit by bit with a calm run.

    python -m tests.chaos_ranks --plan zero3 --kills 10 [--stops 1] [--seed S] [--keep DIR]

Prints one JSON object; exit code 1 if anything differs, or if a failure was not named right."""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos import LIMIT, STEPS_A_KILL, compare, environment, last_step, newest, prepare, run_folder

SPEC = """
specc: 1
use: models/llama
model:
  dims: {D: 64, L: 2, H: 4, K: 4, F: 128, V: 512}
plan: %s
stages:
  pretrain:
    data: {sources: [{path: texts}], seq_len: 32, validation: 0.2}
    tokenizer: {vocab: 400}
    batch: {sequences: 8, microbatch: 4}
    optimizer: {lr: 3e-3, groups: [{match: 'embed.*', lr_scale: 0.5}]}
    budget: {steps: %d}
    ema: 0.9
    eval: {every: 10, batches: 2}
    checkpoint: {every: 2, keep: 2, keep_every: 20}
    sample: {prompts: ['def '], tokens: 4, every: 25}
"""
PLANS = {
    "dp": "{mesh: {dp: 4}}", "zero1": "{mesh: {dp: 4}, zero: 1}", "zero3": "{mesh: {dp: 4}, zero: 3}",
    "tp": "{mesh: {tp: 4}}", "cp": "{mesh: {cp: 4}}", "zero3+tp": "{mesh: {dp: 2, tp: 2}, zero: 3}",
    "zero3 of 2": "{mesh: {dp: 2}, zero: 3}", "pp of 2": "{mesh: {pp: 2}, schedule: {kind: zb-h1}}",
}  # fmt: skip
NAMED = re.compile(r"rank (\d+) (was killed by SIGKILL|is stopped \(SIGSTOP\))")


@dataclass
class Tally:
    """What was done, and how long it took."""

    told: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # faults that the launcher named otherwise
    recovery: list[float] = field(default_factory=list)  # seconds from a kill to a step that was not done before
    detection: list[float] = field(default_factory=list)  # seconds from a stop to its being told


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.chaos_ranks", description="kill ranks of a training run")
    options.add_argument("--plan", choices=PLANS, default="zero3")
    options.add_argument("--kills", type=int, default=5)
    options.add_argument("--stops", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", metavar="DIR", help="work in DIR and leave it there")
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.keep or temporary)
        result = chaos(folder, args.plan, args.kills, args.stops, args.seed)
    print(json.dumps(result, indent=1))
    return 0 if result["equal"] and not result["named_wrong"] else 1


def chaos(folder: Path, plan: str, kills: int, stops: int, seed: int) -> dict[str, object]:
    """One calm run and one with faults, of the same build; the facts of the comparison."""
    began = time.monotonic()
    calm, rough = folder / "calm", folder / "rough"
    steps = 10 + STEPS_A_KILL * (kills + stops)
    prepare(calm, SPEC % (PLANS[plan], steps))
    shutil.copytree(calm, rough)
    run = launch(calm)
    assert run.wait(10 * LIMIT) == 0, (calm / "log.txt").read_text()[-3000:]
    quiet = time.monotonic() - began
    tally, draw = Tally(), random.Random(seed)
    points = sorted(draw.sample(range(2, steps - 3), kills + stops))
    stopped = set(draw.sample(points, stops))
    run, n = launch(rough), 2 if plan.endswith("of 2") else 4
    try:
        for point in points:
            hurt(rough, run, n, point, point in stopped, draw, tally)
        code = run.wait(10 * LIMIT)
    finally:
        run.kill()
    assert code == 0, (rough / "log.txt").read_text()[-3000:]
    same = compare(run_folder(calm), run_folder(rough))
    return {
        "plan": plan, "ranks": n, "kills": kills, "stops": stops, "seed": seed, "steps": steps, **same,
        "equal": all(same.values()), "named_wrong": tally.wrong, "told": tally.told,
        "recovery_median": rounded(tally.recovery, statistics.median), "recovery_most": rounded(tally.recovery, max),
        "detection_most": rounded(tally.detection, max), "orphans": len(ranks(run.pid)),
        "calm_seconds": round(quiet, 1), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip


def rounded(values: list[float], of: object) -> float | None:
    assert callable(of)
    return round(of(values), 2) if values else None


def launch(folder: Path) -> subprocess.Popen[str]:
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "specc", "run", "build/chaos", "--max-restarts", "5"], cwd=folder, text=True,
            env=environment(), stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def ranks(launcher: int) -> list[psutil.Process]:
    """The processes of the ranks, in order: the children of the process that the launcher forks them from."""
    try:
        nurseries = psutil.Process(launcher).children()
        return sorted((p for n in nurseries for p in n.children()), key=lambda p: p.pid)
    except psutil.NoSuchProcess:
        return []


def hurt(
    folder: Path, run: subprocess.Popen[str], n: int, point: int, stop: bool, draw: random.Random, tally: Tally
) -> None:  # fmt: skip
    """Kill or stop a rank some moment behind step `point`, and wait until a step is done that was not before."""
    wait(run, lambda: last_step(folder) >= point and len(ranks(run.pid)) == n)
    time.sleep(draw.uniform(0.0, 0.3))
    before, done, victim = len(told(folder)), last_step(folder), draw.randrange(n)
    alive = ranks(run.pid)
    if run.poll() is not None or len(alive) < n:
        return
    at = time.monotonic()
    alive[victim].send_signal(signal.SIGSTOP if stop else signal.SIGKILL)
    wait(run, lambda: len(told(folder)) > before)
    if len(told(folder)) == before:
        return  # the run was over by then
    line = told(folder)[-1]
    tally.told.append(f"step {done}, saved {newest(folder)}: {line}")
    found = NAMED.match(line)
    if not found or int(found[1]) != victim or ("SIGSTOP" in found[2]) != stop:
        tally.wrong.append(f"rank {victim} {'stopped' if stop else 'killed'}: {line}")
    if stop:
        tally.detection.append(time.monotonic() - at)
    wait(run, lambda: last_step(folder) > done)
    if not stop:
        tally.recovery.append(time.monotonic() - at)


def told(folder: Path) -> list[str]:
    """What the launcher said of failures."""
    return [x for x in (folder / "log.txt").read_text().splitlines() if "all ranks start again" in x]


def wait(run: subprocess.Popen[str], what: object) -> None:
    assert callable(what)
    end = time.monotonic() + 2 * LIMIT
    while not what() and run.poll() is None:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
