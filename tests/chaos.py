"""Kill a training run at random moments, resume it each time, and compare it bit by bit with one that was left alone.

    python -m tests.chaos --kills 20 [--seed S] [--keep DIR]

Prints one JSON object; exit code 1 if anything differs. A small decoder with moving average, two microbatches,
evaluations and samples learns from sources of the standard library, on one thread. A third of the kills aim at a
checkpoint while it is written, a few at the start of the process, the others at any moment between steps."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from specc.runtime.make import build
from specc.runtime.metrics import METRICS, SAMPLES, VOLATILE

SPEC = """
specc: 1
use: models/llama
model:
  dims: {D: 128, L: 2, H: 4, K: 2, F: 256, V: 1024}
stages:
  pretrain:
    data: {sources: [{path: texts}], seq_len: 64, validation: 0.2}
    tokenizer: {vocab: 900}
    batch: {sequences: 4, microbatch: 2}
    optimizer: {lr: 3e-3, groups: [{match: 'embed.*', lr_scale: 0.5}]}
    budget: {steps: %d}
    ema: 0.9
    eval: {every: 10, batches: 2}
    checkpoint: {every: 2, keep: 2, keep_every: 20}
    sample: {prompts: ['def '], tokens: 6, every: 25}
"""
MODULES = ["argparse", "ast", "bisect", "calendar", "cmd", "copy", "csv", "dis", "enum", "glob", "heapq", "inspect",
           "locale", "lzma", "nturl2path", "optparse", "pdb", "queue", "sched", "shlex", "socket", "string", "trace",
           "uuid"]  # fmt: skip
LIMIT = 60.0  # seconds that any wait may take
STEPS_A_KILL = 6


@dataclass
class Tally:
    """What the kills hit."""

    start: int = 0
    save: int = 0
    step: int = 0
    too_late: int = 0
    redone: int = 0
    moments: list[str] = field(default_factory=list)


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m tests.chaos", description="kill and resume a training run")
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--keep", metavar="DIR", help="work in DIR and leave it there")
    args = options.parse_args()
    if args.keep:
        Path(args.keep).mkdir(parents=True)
        result = chaos(Path(args.keep), args.kills, args.seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = chaos(Path(folder), args.kills, args.seed)
    print(json.dumps(result, indent=1))
    return 0 if result["equal"] else 1


def chaos(folder: Path, kills: int, seed: int) -> dict[str, object]:
    """Run the same build once in peace and once with kills; the facts of the comparison."""
    began = time.monotonic()
    calm, rough = folder / "calm", folder / "rough"
    steps = 20 + STEPS_A_KILL * kills
    prepare(calm, SPEC % steps)
    shutil.copytree(calm, rough)
    start = time.monotonic()
    finish(calm)
    length = time.monotonic() - start
    tally = Tally()
    draw = random.Random(seed)
    points = sorted(draw.sample(range(2, steps - 3), kills))
    for point in points:
        kill_once(rough, point, draw, tally, length - 0.02 * steps)
    finish(rough)
    same = compare(run_folder(calm), run_folder(rough))
    return {
        "kills": kills, "seed": seed, "steps": steps, "in_start": tally.start, "in_save": tally.save,
        "in_step": tally.step, "too_late": tally.too_late, "steps_redone": tally.redone, **same,
        "equal": all(same.values()) and not tally.too_late, "seconds": round(time.monotonic() - began, 1),
        "moments": tally.moments,
    }  # fmt: skip


def prepare(folder: Path, spec: str) -> None:
    """Texts, spec and build."""
    texts = folder / "texts"
    texts.mkdir(parents=True)
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in MODULES:
        shutil.copy(library / f"{name}.py", texts)
    (folder / "chaos.yaml").write_text(spec)
    build(folder / "chaos.yaml", folder / "build" / "chaos")


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def launch(folder: Path) -> subprocess.Popen[str]:
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "specc", "run", "build/chaos"], cwd=folder, env=environment(), text=True,
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def finish(folder: Path) -> None:
    """Run to the end."""
    process = launch(folder)
    try:
        code = process.wait(3 * LIMIT)
    finally:
        process.kill()
    assert code == 0, (folder / "log.txt").read_text()[-3000:]


def kill_once(folder: Path, point: int, draw: random.Random, tally: Tally, start: float) -> None:
    """Start or resume the run, and kill it about when step `point` is done, or earlier."""
    kind = draw.choices(["start", "save", "step"], [0.15, 0.35, 0.5])[0]
    known, before = newest(folder), changed(folder)

    def reached(step: int) -> bool:
        """Whether this process has logged the step: the lines of the one before it are cut first."""
        return changed(folder) > before and last_step(folder) >= max(step, known + 1)

    process = launch(folder)
    try:
        if kind == "start":
            moment = time.monotonic() + draw.uniform(0.0, start)
            wait(lambda: time.monotonic() > moment or reached(0), process)
        else:
            wait(lambda: reached(point), process)
            if kind == "save":
                wait(lambda: bool(half_written(folder, process.pid)), process)
            time.sleep(draw.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
    killed = process.wait(LIMIT) == -signal.SIGKILL
    hit = (
        "too_late"
        if not killed
        else "save"
        if half_written(folder, process.pid)
        else "start"
        if kind == "start"
        else "step"
    )
    setattr(tally, hit, getattr(tally, hit) + 1)
    done, kept = last_step(folder), newest(folder)
    tally.redone += max(0, done - kept)
    tally.moments.append(f"{hit} at {done}, saved {kept}")


def wait(what: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT
    while not what() and process.poll() is None:
        assert time.monotonic() < end, "the run does not get on"
        time.sleep(0.001)


def run_folder(folder: Path) -> Path:
    return next((folder / "build" / "chaos.runs").glob("pretrain-*"), folder)


def changed(folder: Path) -> int:
    """When the metrics were written to, in ns; 0 if there are none."""
    return max((p.stat().st_mtime_ns for p in folder.glob(f"build/chaos.runs/*/{METRICS}")), default=0)


def last_step(folder: Path) -> int:
    """The last step that is logged whole."""
    found = list(folder.glob(f"build/chaos.runs/*/{METRICS}"))
    lines = found[0].read_bytes().split(b"\n")[:-1] if found else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def half_written(folder: Path, pid: int) -> list[Path]:
    """The checkpoint that this process is writing, or was."""
    return list(folder.glob(f"build/chaos.runs/*/checkpoints/.tmp-step_*-{pid}"))


def newest(folder: Path) -> int:
    found = folder.glob("build/chaos.runs/*/checkpoints/step_*")
    return max((int(p.name[5:]) for p in found), default=0)


def compare(calm: Path, rough: Path) -> dict[str, bool]:
    """What is bitwise equal at the end."""
    ours, theirs = (sorted(p.name for p in (run / "checkpoints").iterdir()) for run in (calm, rough))
    same = {"checkpoints_equal": ours == theirs}  # the same steps, and nothing half written
    for name in ("weights", "optimizer", "ema"):
        found = [p.relative_to(calm) for p in calm.glob(f"checkpoints/*/{name}*.safetensors")]
        there = all((rough / p).is_file() for p in found) and bool(found)
        same[f"{name}_equal"] = there and all((calm / p).read_bytes() == (rough / p).read_bytes() for p in found)
    same["metrics_equal"] = metrics(calm) == metrics(rough)
    same["samples_equal"] = (calm / SAMPLES).read_bytes() == (rough / SAMPLES).read_bytes()
    same["done_equal"] = (calm / "done.json").read_bytes() == (rough / "done.json").read_bytes()
    return same


def metrics(run: Path) -> list[dict[str, object]]:
    """The lines without timings."""
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in VOLATILE} for line in lines]


if __name__ == "__main__":
    sys.exit(main())
