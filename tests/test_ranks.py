"""A stage on a mesh of real processes: faults, signals, another mesh, and numbers that are not finite on one rank."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from specc.runtime import api, checkpoint
from specc.runtime.built import open_build
from specc.runtime.cli import main
from specc.runtime.commands.verify import told as verify_text
from specc.runtime.compile import Decision, decided
from specc.runtime.loop import one_step
from specc.runtime.make import build
from specc.runtime.seat import Seat, take_seat
from specc.runtime.team import Processes
from specc.runtime.train import begin, stage_folder
from specc.runtime.verify import Verdict, distances, fewer
from specc.runtime.whereabouts import explained
from specc.spec.spec import load
from tests.chaos_ranks import chaos
from tests.grid.processes import spawn
from tests.training import made, write_spec

pytestmark = [pytest.mark.dist, pytest.mark.timeout(400)]


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "kills", "stops"), [("zero3 of 2", 1, 0), ("pp of 2", 1, 1)])
def test_killed_and_stopped_ranks_change_nothing(plan: str, kills: int, stops: int, tmp_path: Path) -> None:
    result = chaos(tmp_path, plan, kills, stops, seed=1)
    assert result["equal"], result
    assert not result["named_wrong"]
    assert result["orphans"] == 0


def specc(folder: Path, *args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "specc", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finished(process: subprocess.Popen[str], code: int = 0) -> str:
    out = process.communicate(timeout=180)[0]
    assert process.returncode == code, out
    return out


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(x) for x in next(folder.glob("*.runs/*/metrics.jsonl")).read_text().splitlines()]
    assert [x["step"] for x in rows] == list(range(1, len(rows) + 1))
    return {x["step"]: x["loss"] for x in rows}


def lines(folder: Path) -> int:
    """Steps that are in the metrics."""
    return sum(f.read_text().count("\n") for f in folder.glob("*.runs/*/metrics.jsonl"))


MESHES = (("plan.mesh={tp: 2}",), ("plan.mesh={pp: 2}", "plan.schedule.kind=zb-v"),
          ("plan.mesh={dp: 2}", "plan.zero=1"))  # fmt: skip


@pytest.mark.slow
def test_a_run_goes_on_under_another_mesh(tmp_path: Path) -> None:
    """On two ranks until a signal, then on two of another mesh, and so on: the samples and losses of one process."""
    spec = write_spec(tmp_path)
    long = ("stages.pretrain.budget.steps=90", "stages.pretrain.checkpoint.every=1000",
            "stages.pretrain.eval.every=30")  # fmt: skip
    api.run(build(spec, tmp_path / "one" / "tiny", long), say=lambda _: None)
    told: list[str] = []
    for i, mesh in enumerate(MESHES):
        build(spec, tmp_path / "two" / "tiny", [*long, *mesh])
        before, process = lines(tmp_path / "two"), specc(tmp_path, "run", "two/tiny")
        if i < len(MESHES) - 1:
            end = time.monotonic() + 120
            while lines(tmp_path / "two") == before and time.monotonic() < end:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            out = finished(process, 128 + signal.SIGTERM)
            assert "saved at step" in out
            assert list(tmp_path.glob("two/*.runs/*/checkpoints/step_*/optimizer.rank00001.safetensors"))
        else:
            out = finished(process)
        told += re.findall(r"saved with (.*): the last bits may differ", out)
    assert told == ["mesh tp=2, now pp=2", "mesh pp=2, now dp=2"]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    for name in ("one", "two"):
        assert api.sample(tmp_path / name / "tiny", "the", tokens=2)


@pytest.mark.slow
def test_compiled_graphs_take_over_on_all_ranks(tmp_path: Path) -> None:
    """At the decided step, and with the same bits where the run was stopped before it."""
    write_spec(tmp_path, "plan: {mesh: {dp: 2}, zero: 3}")
    build = made(tmp_path)
    (stage,) = build.stages.values()
    folder = stage_folder(build, stage)
    folder.mkdir(parents=True)
    plain = sorted(name for name in stage.run_by_any if not name.startswith("head"))
    decided(folder / "compile.json", lambda: Decision(True, "as told", 0.1, plain=plain, begins=3))
    weights = []
    for stopped_at in (6, 2):
        for step in range(stopped_at + 1, 7):
            shutil.rmtree(checkpoint.folder_of(folder / "checkpoints", step))
        (folder / "done.json").unlink(missing_ok=True)
        assert "pretrain: compiled graphs from step 3 on" in finished(specc(tmp_path, "run", "build/tiny"))
        newest = checkpoint.load_newest(folder / "checkpoints", stage.hash, Seat().sharding)
        assert newest is not None
        assert newest.step == 6
        weights.append(newest.tensors["weights"])
    assert all(torch.equal(x, weights[1][n]) for n, x in weights[0].items())


def poisoned(rank: int, path: str) -> tuple[bool, list[str], bool]:
    """A step in which one rank's part of a parameter has a number that is not finite."""
    build = open_build(Path(path))
    stage = next(iter(build.stages.values()))
    run = begin(build, stage, stage_folder(build, stage), Path.cwd(), print, take_seat(stage, Processes()))
    if rank == 1:
        run.params["norm.weight"].view(-1)[0] = math.nan
    before = {n: t.clone() for n, t in run.params.items()}
    made = one_step(run, 6)
    same = all(torch.equal(t[~t.isnan()], run.params[n][~t.isnan()]) for n, t in before.items())
    return same, made.bad, math.isfinite(made.norm)


@pytest.mark.parametrize("plan", ["{mesh: {dp: 2}, zero: 3}", "{mesh: {pp: 2}}"])
def test_numbers_of_one_rank_that_are_not_finite_stop_all(plan: str, tmp_path: Path) -> None:
    write_spec(tmp_path, f"plan: {plan}")
    build = made(tmp_path)
    stage = next(iter(build.stages.values()))
    stage_folder(build, stage).mkdir(parents=True)
    results = spawn(poisoned, 2, str(build.path))
    assert results[0] == results[1]
    same, bad, is_finite = results[0]
    assert same
    assert any("the parameter norm.weight" in line and line.endswith("on rank 1") for line in bad)
    assert not is_finite


# In one layer tokens of a run of eight see each other, later ones too; in the other they see earlier ones.
TWO_MASKS = """[
  {embedding: {rows: V, out: D, name: embed, from: tokens}},
  {attention: {heads: H, head_dim: E, mask: chunk(8), name: runs}}, {expr: x + _, as: x},
  {attention: {heads: H, head_dim: E, mask: causal, name: earlier}}, {expr: x + _, as: x},
  {linear: {out: V, name: head, as: logits}}, {cross_entropy: {from: [logits, labels], as: loss}}]"""


@pytest.mark.slow
def test_a_ring_whose_layers_see_differently_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(tmp_path, "plan: {mesh: {ring: 2}}")
    steps = TWO_MASKS.replace("tokens}}", "tokens, as: x}}").replace("\n", " ")
    assert main(["verify", str(spec), "--ranks", "2", "--json", "--set", f"model.steps={steps}"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"]
    assert found["worst"] < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["{mesh: {tp: 2}}", "{mesh: {pp: 2}, schedule: {kind: zb-v}}"])
def test_a_plan_is_verified_on_real_processes(plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(tmp_path, f"plan: {plan}")
    assert main(["verify", str(spec), "--ranks", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["agrees"]
    assert found["worst"] < 1e-12
    assert len(found["grads"]) == 21


def test_gradients_that_are_nothing_but_rounding_are_not_compared_with_themselves() -> None:
    """That of a key's bias is zero in exact arithmetic, and some 1e-17 in any."""
    wide, noise = torch.ones(4, dtype=torch.float64), torch.full((4,), 1e-17, dtype=torch.float64)
    assert distances({"w": wide, "k.bias": -3 * noise}, {"w": wide, "k.bias": noise})["k.bias"] == pytest.approx(4e-17)
    assert distances({"w": wide, "b": 3e-6 * wide}, {"w": wide, "b": 1e-6 * wide})["b"] == pytest.approx(2.0)


def test_what_is_not_verified_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = write_spec(tmp_path)
    assert main(["verify", str(spec), "--ranks", "2"]) == 2
    assert "S524" in capsys.readouterr().err
    told = verify_text(Verdict("dp=2", {}, 0.0, {"a": 0.0}, ("tp",)))
    assert told.splitlines()[-1] == "not compared: tp (--ranks 4 or more)"


def test_a_mesh_is_made_small_in_turn(tmp_path: Path) -> None:
    from specc.compiler.placement.mesh import mesh_of

    spec = load(write_spec(tmp_path, "plan: {mesh: {dp: 16, cp: 2, tp: 8}}"))
    sizes = {n: fewer(mesh_of(spec.plan), n) for n in (1, 2, 4, 8, 16, 64)}
    assert sizes[1] == {}
    assert sizes[2] == {"dp": 2}
    assert sizes[4] == {"dp": 2, "cp": 2}
    assert sizes[8] == {"dp": 2, "cp": 2, "tp": 2}
    assert sizes[16] == {"dp": 4, "cp": 2, "tp": 2}
    assert math.prod(sizes[64].values()) == 64


def test_explain_says_where_a_step_lies(tmp_path: Path) -> None:
    path = write_spec(tmp_path, "plan: {mesh: {tp: 2}, pins: {'layers.*.attention.q': {tp: rep}}}")
    text = explained(str(path), "layers.attention.q")
    assert text.startswith("mesh tp=2\nlayers.attention.q\n")
    assert "* [tp=rep]" in text
    assert "[tp=split:H]" in explained(str(path), "layers.attention.q", ["plan.pins={}"])
