"""A small spec from YAML to a resumed, sampled model, in real processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from specc.runtime.cli import main
from specc.runtime.make import build

SPEC = """
specc: 1
use: models/llama
model:
  dims: {D: 32, L: 2, H: 2, K: 1, F: 48, V: 512}
stages:
  pretrain:
    data: {sources: [{path: texts}], seq_len: 32, validation: 0.2}
    tokenizer: {vocab: 400}
    batch: {sequences: 4, microbatch: 2}
    optimizer: {lr: 1e-2}
    budget: {steps: %d}
    eval: {every: 10, batches: 2}
    checkpoint: {every: 3, keep: 2}
    sample: {prompts: [the], tokens: 8}
"""


def write_spec(folder: Path, steps: int) -> Path:
    """The spec and its texts."""
    (folder / "texts").mkdir()
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "ran", "home"]
    for i in range(30):
        (folder / "texts" / f"{i:02d}.txt").write_text(" ".join(draw.choices(words, k=200)))
    (folder / "tiny.yaml").write_text(SPEC % steps)
    return folder / "tiny.yaml"


def built(folder: Path, steps: int) -> Path:
    """The build of the spec, made in this process."""
    return build(write_spec(folder, steps), folder / "build" / "tiny").path


def specc(folder: Path, *args: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "specc", *args]
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    out = process.communicate(timeout=240)[0]
    assert process.returncode == code, out
    return out


def run_folder(folder: Path) -> Path:
    return next((folder / "build" / "tiny.runs").iterdir())


def steps_seen(folder: Path) -> int:
    """How many rows of metrics there are, those of steps that are to be done again too."""
    return sum(f.read_bytes().count(b"\n") for f in folder.glob("build/tiny.runs/*/metrics.jsonl"))


def final_state(folder: Path) -> dict[str, bytes]:
    """Weights and optimizer of the newest checkpoint, as bytes."""
    newest = max((run_folder(folder) / "checkpoints").glob("step_*"))
    tensors = {k: v for f in ("weights", "optimizer") for k, v in load_file(newest / f"{f}.safetensors").items()}
    return {k: v.numpy().tobytes() for k, v in tensors.items()}


def test_a_run_trains_skips_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_spec(tmp_path, 30)
    assert "parameters" in finished(specc(tmp_path, "build", "tiny.yaml"))
    out = finished(specc(tmp_path, "run", "build/tiny"))
    lines = [json.loads(x) for x in (run_folder(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == list(range(1, 31))
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.5
    assert "done, validation loss" in out
    assert main(["run", str(tmp_path / "build" / "tiny")]) == 0
    assert "skipped" in capsys.readouterr().out
    assert finished(specc(tmp_path, "sample", "build/tiny", "--prompt", "the cat", "--tokens", "4"))


@pytest.mark.slow
def test_kills_do_not_change_the_result(tmp_path: Path) -> None:
    (tmp_path / "calm").mkdir()
    built(tmp_path / "calm", 40)
    shutil.copytree(tmp_path / "calm", tmp_path / "rough")
    finished(specc(tmp_path / "calm", "run", "build/tiny"))
    draw = random.Random(1)
    for _ in range(3):
        goal = steps_seen(tmp_path / "rough") + draw.randint(1, 9)
        process = specc(tmp_path / "rough", "run", "build/tiny")
        while steps_seen(tmp_path / "rough") < goal and process.poll() is None:
            time.sleep(draw.uniform(0.0, 0.01))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it was over before"
    finished(specc(tmp_path / "rough", "run", "build/tiny"))
    assert final_state(tmp_path / "rough") == final_state(tmp_path / "calm")


def test_a_signal_saves_and_a_second_run_goes_on(tmp_path: Path) -> None:
    built(tmp_path, 4000)
    process = specc(tmp_path, "run", "build/tiny")
    end = time.monotonic() + 120
    while not list(tmp_path.glob("build/tiny.runs/*/checkpoints/step_*")) and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert "saved at step" in finished(process, 128 + signal.SIGTERM)


def test_a_changed_build_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = built(tmp_path, 3)
    graph = next(build.glob("stages/pretrain/graphs/*.fwd.json"))
    graph.write_text(graph.read_text() + " ")
    assert main(["run", str(build)]) == 1
    assert "was changed since the build" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"name": "x", "files": {', "[]", '{"files": {}}', "\xff", "[" * 100_000])
def test_a_damaged_manifest_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    assert main(["run", str(tmp_path)]) == 1
    assert "manifest.json was changed since the build; build again" in capsys.readouterr().err
