"""Stages that learn from pairs of answers: their reference, and runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import specc
from specc.compiler.build import build_spec
from specc.runtime import checkpoint, reference
from specc.runtime.built import Build, open_build
from specc.runtime.commands.build import notes
from specc.runtime.convert.folder import look_of
from specc.runtime.data.batches import batch, counted, microbatches
from specc.runtime.errors import RunError
from specc.runtime.loop import Run, one_step, train_on
from specc.runtime.progress import Progress
from specc.runtime.run import run_build
from specc.runtime.tensorfile import read_tensors
from specc.runtime.train import begin, stage_folder
from specc.runtime.verify import verify
from specc.spec.spec import Spec, load

WORDS = ["red", "blue", "green", "cat", "dog", "sun", "moon", "tree", "river", "stone"]
SPEC = """
specc: 1
use: models/llama
model:
  dims: {D: 32, L: 2, H: 2, K: 1, F: 48, V: 512}
stages:
  first:
    data: {sources: [{path: PAIRS, field: prompt}], seq_len: 32, validation: 0.2}
    tokenizer: {vocab: 320}
    batch: {sequences: 4}
    budget: {steps: 1}
  dpo:
    kind: preference
    from: first
    preference: {pairs: 2}
    data: {sources: [{path: PAIRS}], seq_len: 192, validation: 0.2}
    optimizer: {lr: 2e-2}
    batch: {sequences: 4, microbatch: 2}
    eval: {every: 12, batches: 4}
    checkpoint: {every: 2, keep: 10}
    budget: {steps: 24}
plan: {compile: 'off'}
"""


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


def made_up(n: int = 120) -> list[dict[str, Any]]:
    """A word that is to be said twice, and an answer that does not."""
    draw = np.random.default_rng(0)
    found = []
    for i in range(n):
        a, b = draw.permutation(WORDS)[:2]
        found.append({"prompt": f"say {a} twice, {i}", "chosen": f"{a} {a}", "rejected": f"{b} {a} {b}"})
    return found


def spec_of(folder: Path, *overrides: str) -> Spec:
    file = write_rows(folder, made_up())
    (folder / "pairs.yaml").write_text(SPEC.replace("PAIRS", json.dumps(str(file))))
    return load(folder / "pairs.yaml", overrides)


def built(folder: Path, *overrides: str, name: str = "pairs") -> Build:
    build_spec(spec_of(folder, *overrides), folder / "build" / name)
    return open_build(folder / "build" / name)


def lines(build: Build) -> list[dict[str, Any]]:
    file = stage_folder(build, build.stages["dpo"]) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Its first stage has run."""
    build = built(tmp_path_factory.mktemp("ready"))
    run_build(build.path, "first", say=lambda _: None)
    return build


@pytest.fixture(scope="module")
def trained(ready: Build, tmp_path_factory: pytest.TempPathFactory) -> Build:
    build = copied(ready, tmp_path_factory.mktemp("trained"))
    run_build(build.path, say=lambda _: None)
    return build


def copied(build: Build, folder: Path) -> Build:
    """A build with its runs, in another place."""
    shutil.copytree(build.path.parent, folder / "build")
    return open_build(folder / "build" / build.path.name)


def begun(build: Build, say: Callable[[str], None] = lambda _: None) -> Run:
    stage = build.stages["dpo"]
    folder = stage_folder(build, stage)
    folder.mkdir(parents=True, exist_ok=True)
    return begin(build, stage, folder, Path.cwd(), say)


def test_a_run_begins_at_log_2_and_learns_to_prefer(trained: Build) -> None:
    found = lines(trained)
    assert np.float32(found[0]["loss"]) == np.log(np.float32(2))
    assert [found[0][f"reward_{n}"] for n in ("accuracy", "margin", "chosen", "rejected")] == [0.5, 0, 0, 0]
    assert found[-1]["loss"] < 0.5
    assert found[-1]["validation_loss"] < 0.5
    assert found[-1]["validation_reward_accuracy"] >= 0.9
    margin = found[-1]["reward_chosen"] - found[-1]["reward_rejected"]
    assert found[-1]["reward_margin"] == pytest.approx(margin, rel=1e-4)


def test_a_run_that_was_killed_goes_on_with_the_same_bits(ready: Build, trained: Build, tmp_path: Path) -> None:
    """Also without the parent, whose weights it then does not need: what the reference said is kept."""
    build = copied(ready, tmp_path)
    run = begun(build)
    with Progress("dpo", 0, 24, 1, lambda _: None) as progress, pytest.raises(InterruptedError):
        train_on(run, progress, stops_at(run, 5))
    assert run.metrics
    run.metrics.close()
    parent = stage_folder(build, build.stages["first"]) / "checkpoints"
    parent.rename(parent.with_name("elsewhere"))
    told: list[str] = []
    run_build(build.path, "dpo", say=told.append)
    assert any("goes on from step 4" in line for line in told)
    assert not any("through the reference" in line for line in told)
    same = ("step", "loss", "reward_accuracy", "reward_margin", "grad_norm", "validation_loss")
    assert [[x.get(k) for k in same] for x in lines(build)] == [[x.get(k) for k in same] for x in lines(trained)]


def stops_at(run: Run, last: int) -> Callable[[int], Any]:
    def take(step: int) -> Any:
        if step == last:
            raise InterruptedError
        made, weights = microbatches(run.data.train, run.stage.spec, step, run.stage.fields)
        return made, weights

    return take


def test_the_reference_is_what_the_first_weights_say_of_each_row(ready: Build, tmp_path: Path) -> None:
    run = begun(copied(ready, tmp_path))
    made = batch(run.data.validation, [0, 1], run.stage.fields)
    said = run.executor.forward(run.params, made)["log_probs"].double()
    labels = made["labels"] != -100
    assert bool(labels.any())
    torch.testing.assert_close(made["reference"].view(torch.float64), said, rtol=1e-5, atol=1e-5)
    one_step(run, run.stage.spec.steps())
    assert not torch.equal(run.executor.forward(run.params, made)["log_probs"].double(), said)


def test_a_reference_of_other_documents_is_made_anew(tmp_path: Path) -> None:
    table = {"train.0": np.zeros((2, 2)), "validation": np.zeros((1, 2))}
    reference.save(tmp_path, table, b"a" * 32, b"w" * 32)
    found = reference.known(tmp_path, b"a" * 32)
    assert found is not None
    assert sorted(found) == ["train.0", "validation"]
    assert reference.known(tmp_path, b"a" * 32, b"w" * 32) is not None
    assert reference.known(tmp_path, b"a" * 32, b"v" * 32) is None
    assert reference.known(tmp_path, b"b" * 32) is None
    (tmp_path / reference.FILE).write_bytes(b"damaged")
    assert reference.known(tmp_path, b"a" * 32) is None


def test_a_parent_that_was_trained_anew_is_asked_anew_before_the_first_step(ready: Build, tmp_path: Path) -> None:
    build, told = copied(ready, tmp_path), list[str]()
    begun(build)
    begun(build, told.append)
    assert not any("through the reference" in line for line in told)
    root = stage_folder(build, build.stages["first"]) / "checkpoints"
    parent = checkpoint.load(checkpoint.folder_of(root, 1))
    weights = {n: t * 1.5 for n, t in parent.tensors["weights"].items()}
    checkpoint.save(root, 1, {**parent.tensors, "weights": weights}, parent.facts)
    run = begun(build, told.append)
    assert any("through the reference" in line for line in told)
    made = batch(run.data.validation, [0, 1], run.stage.fields)
    said = run.executor.forward(run.params, made)["log_probs"].double()
    torch.testing.assert_close(made["reference"].view(torch.float64), said, rtol=1e-5, atol=1e-5)


def test_a_published_folder_is_told_from_one_that_took_its_place(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"some weights")
    first = look_of(tmp_path)
    assert look_of(tmp_path) == first
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))  # as long, and another
    assert look_of(tmp_path) != first


def test_the_reference_may_be_another_stage(tmp_path: Path) -> None:
    """One with other weights than the policy's first ones: the rewards of the first step are not zero."""
    spec = spec_of(tmp_path, "stages.dpo.preference.reference=first", "stages.dpo.budget.steps=1")
    more = spec.stages["first"].model_copy(update={"from_": "first", "tokenizer": None})
    stages = {
        "first": spec.stages["first"],
        "more": more,
        "dpo": spec.stages["dpo"].model_copy(update={"from_": "more"}),
    }
    build_spec(spec.model_copy(update={"stages": stages}), tmp_path / "build" / "pairs")
    build = open_build(tmp_path / "build" / "pairs")
    run_build(build.path, say=lambda _: None)
    assert lines(build)[0]["reward_chosen"] != 0


def test_losses_without_a_reference_compute_none(tmp_path: Path) -> None:
    build = built(tmp_path, "stages.dpo.preference={loss: simpo}", "stages.dpo.budget.steps=2")
    told: list[str] = []
    run_build(build.path, say=told.append)
    assert not any("reference" in line for line in told)
    assert not (stage_folder(build, build.stages["dpo"]) / reference.FILE).exists()
    assert "reference" not in build.stages["dpo"].fields


def test_accumulation_equals_the_big_batch_of_uneven_rows(tmp_path: Path) -> None:
    """A microbatch counts by its pairs."""
    exact = "plan={precision: {compute: fp64, master: fp64, reduce: fp64}, compile: 'off'}"
    runs = []
    for n in (1, 4):
        build = built(tmp_path, exact, f"stages.dpo.batch.microbatch={n}", "stages.dpo.preference.pairs=3",
                      "stages.dpo.data.limit=25", name=f"of{n}")  # fmt: skip
        run_build(build.path, "first", say=lambda _: None)
        runs.append(begun(build))
    pairs = [counted({k: x.numpy() for k, x in b.items()}, runs[0].stage.spec)
             for step in range(4) for b in microbatches(runs[0].data.train, runs[0].stage.spec, step,
                                                        runs[0].stage.fields)[0]]  # fmt: skip
    assert len(set(pairs)) > 1
    losses = [[one_step(replace_step(run, step), 24).loss for step in range(4)] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def replace_step(run: Run, step: int) -> Run:
    run.step = step
    return run


def test_a_stage_with_other_documents_is_told_before_the_first_one_trains(tmp_path: Path) -> None:
    build = built(tmp_path, "stages.dpo.data.sources=[{corpus: python-docstrings}]")
    with pytest.raises(RunError, match="'dpo': a preference stage needs 'chosen' and 'rejected'"):
        run_build(build.path, say=lambda _: None)


def test_settings_of_the_cross_entropy_that_pairs_replace_are_told(tmp_path: Path) -> None:
    end = "model.steps.4={cross_entropy: {from: [logits, labels], as: loss, z_loss: 1e-4, label_smoothing: 0.1}}"
    stages = built(tmp_path, end).stages
    assert any("label_smoothing and z_loss of the model's cross_entropy" in n for n in notes(stages["dpo"]))
    assert not any("cross_entropy" in n for n in notes(stages["first"]))
    plain = built(tmp_path, name="plain").stages
    assert not any("cross_entropy" in n for n in notes(plain["dpo"]))


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("plan", ["{mesh: {dp: 2}, zero: 3}", "{mesh: {tp: 2}}", "{mesh: {cp: 2}}"])
def test_a_mesh_has_the_loss_and_gradients_of_one_process(tmp_path: Path, plan: str) -> None:
    found = verify(spec_of(tmp_path, f"plan={plan}"), 2, "dpo")
    assert found.agrees, found
    assert found.worst < 1e-12


EXACT = "precision: {compute: fp64, master: fp64, reduce: fp64}, compile: 'off'"


def run_on(folder: Path, mesh: str) -> Build:
    """Both stages in fp64."""
    build = built(folder, f"plan={{mesh: {{{mesh}}}, {EXACT}}}", "stages.first.batch.microbatch=2",
                  "stages.dpo.budget.steps=4", "stages.dpo.eval={every: 2, batches: 2}")  # fmt: skip
    specc.run(build, say=lambda _: None)
    return build


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return run_on(tmp_path_factory.mktemp("alone"), "")


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["tp: 2", "pp: 2"])
def test_a_reference_on_a_mesh_is_that_of_one_process(mesh: str, alone: Build, tmp_path: Path) -> None:
    """What it says of all rows, and the training behind it."""
    many = run_on(tmp_path, mesh)
    want, found = (read_tensors(stage_folder(b, b.stages["dpo"]) / reference.FILE) for b in (alone, many))
    assert found.keys() == want.keys()
    tables = [n for n in want if n not in (reference.MADE_OF, reference.READ)]
    assert "train.0" in tables
    for name in tables:
        assert bool((want[name] < 0).any())
        torch.testing.assert_close(found[name], want[name], rtol=1e-10, atol=0.0, equal_nan=True, msg=name)
    same = [k for k in lines(alone)[1] if k.removeprefix("validation_").startswith(("loss", "reward", "grad_norm"))]
    assert {"loss", "grad_norm", "reward_margin", "validation_loss", "validation_reward_chosen"} <= set(same)
    for one, other in zip(lines(alone), lines(many), strict=True):
        assert other["step"] == one["step"]
        for key in (k for k in same if k in one):
            assert other[key] == pytest.approx(one[key], rel=1e-8, abs=1e-11), key


@pytest.mark.dist
@pytest.mark.slow
def test_many_pairs_of_a_row_are_verified_by_a_few(tmp_path: Path) -> None:
    """A small row has fewer tokens than answers."""
    found = verify(spec_of(tmp_path, "plan={mesh: {dp: 2}}", "stages.dpo.preference.pairs=24"), 2, "dpo")
    assert any(found.grads.values())
    assert found.agrees, found
