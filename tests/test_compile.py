"""Whether to compile is decided by time and kept; compiled graphs give what the plain ones give."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from specc.compiler.build import build_spec
from specc.compiler.imports import IS_FOR_GPUS
from specc.compiler.work import Work
from specc.runtime import checkpoint
from specc.runtime.built import Build, open_build
from specc.runtime.compile import Decision, decide, decided
from specc.runtime.errors import Stopped
from specc.runtime.rates import measured
from specc.runtime.seat import Seat, first_values
from specc.runtime.train import run_stage, stage_folder
from specc.spec.spec import Spec
from tests.training import made

TINY = """
specc: 1
name: tiny
use: models/llama
model:
  dims: {D: 64, L: 3, H: 4, K: 2, F: 96, V: 300}
stages:
  train:
    data: {sources: [{corpus: python-stdlib}], seq_len: 96}
    tokenizer: {vocab: 300}
    batch: {sequences: 4, microbatch: 2}
    budget: {steps: 2}
"""


def test_compiling_is_decided_by_what_it_saves() -> None:
    step, graphs = (0.2, 0.1), Work(1e8, 1e8, 500)
    assert not decide("auto", step, graphs, 6, 10).compiled
    long = decide("auto", step, graphs, 6, 10**7)
    assert long.compiled
    assert "pays" in long.why
    assert long.begins == 128  # the most: compiling takes 25 s, and 50 s beside 250 steps
    assert decide("auto", (5.0, 3.0), graphs, 6, 10**7).begins == 8
    assert decide("auto", (500.0, 300.0), graphs, 6, 10**7).begins == 1
    assert not decide("auto", step, graphs, 6, long.begins + 10).compiled
    assert decide("auto", step, graphs, 6, 10**7, beside=False).begins == 0
    assert decide("auto", step, Work(), 0, 10**7).begins == 1
    assert decide("on", step, graphs, 6, 1) == Decision(True, "compile: on", 0.1)
    off = decide("off", step, graphs, 6, 10**7)
    assert not off.compiled
    assert off.step_seconds > long.step_seconds


def test_a_run_keeps_its_decision(tmp_path: Path) -> None:
    first = decided(tmp_path / "compile.json", lambda: Decision(True, "it pays", 0.25))
    assert decided(tmp_path / "compile.json", lambda: pytest.fail("asked again")) == first


def test_the_rates_are_those_of_a_computer() -> None:
    rates = measured(torch.float32)
    assert 1e8 < rates.flops < 1e15
    assert 1e8 < rates.bytes < 1e14


@pytest.mark.slow
def test_compiled_graphs_agree_with_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    build_spec(Spec.from_yaml(TINY), tmp_path / "b")
    stage = open_build(tmp_path / "b").stages["train"]
    made = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 128, (2, 2, 96), generator=made)
    doc = torch.arange(96).div(40, rounding_mode="floor").expand(2, 96).contiguous()
    rows = {"doc": doc, "pos": torch.arange(96).expand(2, 96).contiguous()}
    batches = [{"tokens": t, "labels": t.roll(-1, 1), **rows} for t in tokens]
    params = first_values(stage, Seat(), torch.float32)
    plain = stage.executor(compiled=False).step(params, batches, [0.5, 0.5])
    others = [f"{body}.{part}" for body in stage.graphs if body != "layers" for part in ("fwd", "bwd")]
    compiled = stage.executor(compiled=True, plain=others).step(params, batches, [0.5, 0.5])
    torch.testing.assert_close(compiled.losses, plain.losses, rtol=1e-5, atol=1e-6)
    for path, grad in plain.grads.items():
        torch.testing.assert_close(compiled.grads[path], grad, rtol=1e-4, atol=1e-6)


def begun(tmp_path: Path, begins: int) -> tuple[Build, Path]:
    """A build and the folder of its run, which is to take compiled graphs from that step on."""
    build = made(tmp_path)
    (stage,) = build.stages.values()
    folder = stage_folder(build, stage)
    folder.mkdir(parents=True)
    decided(folder / "compile.json", lambda: Decision(True, "as told", 0.1, begins=begins))
    return build, folder


RUN = """
import sys
from pathlib import Path
from specc.runtime.built import open_build
from specc.runtime.train import run_stage
build = open_build(Path(sys.argv[1]))
run_stage(build, *build.stages.values(), Path(sys.argv[1]), print)
print("compiler", *(m in sys.modules for m in ("torch._inductor", "torch._dynamo", "triton")))
"""


@pytest.mark.slow
def test_compiled_graphs_take_over_at_the_decided_step(tmp_path: Path) -> None:
    """Whether the run was stopped before it or not; another process compiled them, and the run imports no compiler."""
    build, folder = begun(tmp_path, 3)
    (stage,) = build.stages.values()
    weights = []
    for stopped_at in (6, 2):
        for step in range(stopped_at + 1, 7):
            shutil.rmtree(checkpoint.folder_of(folder / "checkpoints", step))
        (folder / "done.json").unlink(missing_ok=True)
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-P", "-c", RUN, str(build.path)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        assert "pretrain: compiled graphs from step 3 on" in done.stdout
        assert "compiled now" not in done.stdout
        assert done.stdout.endswith(f"compiler False False {IS_FOR_GPUS}\n")
        newest = checkpoint.load_newest(folder / "checkpoints", stage.hash, Seat().sharding)
        assert newest is not None
        weights.append(newest.tensors["weights"])
    assert all(torch.equal(x, weights[1][n]) for n, x in weights[0].items())


@pytest.mark.slow
def test_a_signal_ends_the_wait_for_the_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    build, folder = begun(tmp_path, 1)
    (stage,) = build.stages.values()

    def ask() -> None:
        while not checkpoint.is_there(folder / "checkpoints", 1):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    with pytest.raises(Stopped, match="saved at step 1"):
        run_stage(build, stage, tmp_path, lambda line: None)
    asking.join()
