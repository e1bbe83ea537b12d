"""What stages are trained on: found before anything trains, and tokenizers that go with the documents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from specc.runtime import cli
from specc.runtime.api import run
from specc.runtime.commands.build import notes
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.data.batches import Mixture, batch, microbatches
from specc.runtime.data.objectives import Rows, fields_given
from specc.runtime.errors import RunError
from specc.runtime.make import build
from specc.runtime.train import check_inputs
from specc.spec.stage import CHATML, StageSpec
from tests.text_models import SMALL, built
from tests.training import begun, write_spec

SFT = """
  chat:
    kind: sft
    from: pretrain
    data: {{sources: [{{path: {path}}}], seq_len: 32}}
    budget: {{steps: 1}}
"""


def started(folder: Path) -> bool:
    return any(folder.glob("b.runs/pretrain-*/checkpoints/step_*"))


@pytest.mark.parametrize(
    ("text", "told"), [(None, "there is no"), ("{broken", "JSON"), ('{"text": "a"}\n', "messages")]
)
def test_what_a_later_stage_lacks_is_told_before_the_first_one_trains(
    text: str | None, told: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "chat.jsonl").write_text(text)
    path = build(write_spec(tmp_path, SFT.format(path="chat.jsonl")), tmp_path / "b").path
    with pytest.raises(RunError, match=told):
        run(path, base=tmp_path, say=lambda _: None)
    assert not started(tmp_path)


def test_a_tokenizer_of_other_documents_is_trained_anew(tmp_path: Path) -> None:
    """A first run that ends before its first step leaves a tokenizer; then the documents change."""
    spec = write_spec(tmp_path)
    texts = {p: p.read_text() for p in (tmp_path / "texts").iterdir()}
    few = sorted(texts)[0]
    for p in texts:
        p.unlink()
    few.write_text("few words")
    path = build(spec, tmp_path / "b").path
    with pytest.raises(RunError, match=r"fill a row|held out"):
        run(path, base=tmp_path, say=lambda _: None)
    (kept,) = tmp_path.glob("b.runs/*/tokenizer.json")
    before = json.loads(kept.read_text())
    for p, text in texts.items():
        p.write_text(text)
    run(path, base=tmp_path, say=lambda _: None)
    after = kept.read_text()
    assert json.loads(after) != before
    fresh = build(spec, tmp_path / "c").path
    run(fresh, base=tmp_path, say=lambda _: None)
    (clean,) = tmp_path.glob("c.runs/*/tokenizer.json")
    assert clean.read_text() == after
    (tmp_path / "texts" / "more.txt").write_text("more " * 40)
    kept.with_name("done.json").unlink()
    run(path, base=tmp_path, say=lambda _: None)
    assert kept.read_text() == after, "steps were made with it"


def said(path: Path, base: Path) -> str:
    told: list[str] = []
    run(path, base=base, say=told.append)
    return "\n".join(told)


def test_documents_that_changed_between_steps_are_told(tmp_path: Path) -> None:
    path = build(write_spec(tmp_path), tmp_path / "b").path
    assert "documents" not in said(path, tmp_path)
    (tmp_path / "texts" / "more.txt").write_text("more " * 40)
    (done,) = tmp_path.glob("b.runs/*/done.json")
    done.unlink()
    assert "its documents are not those of the steps before" in said(path, tmp_path)


def test_steps_of_other_settings_are_told(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    assert "other settings" not in said(build(spec, tmp_path / "b").path, tmp_path)
    (before,) = tmp_path.glob("b.runs/*")
    told = said(build(spec, tmp_path / "b", ["stages.pretrain.seed=1"]).path, tmp_path)
    assert f"{before.name} was trained with other settings" in told


def test_a_run_that_is_watched_otherwise_or_cut_into_other_microbatches_goes_on(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    said(build(spec, tmp_path / "b").path, tmp_path)
    (done,) = tmp_path.glob("b.runs/*/done.json")
    done.unlink()
    sets = ["eval.batches=1", "sample.prompts=[a]", "checkpoint.every=1", "batch.microbatch=1"]
    told = said(build(spec, tmp_path / "b", [f"stages.pretrain.{each}" for each in sets]).path, tmp_path)
    assert "goes on from step" in told
    assert "saved with microbatch" in told
    assert len(list(tmp_path.glob("b.runs/*/checkpoints"))) == 1


def test_what_a_run_is_of_counts_sizes_and_what_is_trained(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    changes = ["model.dims.D=32", "model.freeze=['head.*']", "stages.pretrain.optimizer.lr=1e-5", "model.dims.H=1"]
    hashes = {
        build(spec, tmp_path / "b", [each]).stages["pretrain"].hash
        for each in ["stages.pretrain.eval.every=7", *changes]
    }
    assert len(hashes) == 1 + len(changes)


@pytest.mark.parametrize(("warmup", "is_told"), [(9, True), (2, False), (0.5, False)])
def test_a_warmup_that_takes_longer_than_the_run_is_told(warmup: float, is_told: bool, tmp_path: Path) -> None:
    sets = ["stages.pretrain.budget.steps=2", f"stages.pretrain.schedule.warmup={warmup}"]
    told = said(build(write_spec(tmp_path), tmp_path / "b", sets).path, tmp_path)
    assert ("it never reaches its learning rate" in told) is is_told


def test_a_file_of_a_tokenizer_that_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    path = build(write_spec(tmp_path), tmp_path / "b", [f"stages.pretrain.tokenizer={{file: {file}}}"]).path
    tokenizers.train(["a b c " * 9], 600).save(str(file))
    large = Tokenizer.from_file(str(file))
    large.add_tokens([f"word{i}" for i in range(300)])
    large.save(str(file))
    with pytest.raises(RunError, match="the model takes 512"):
        run(path, base=tmp_path, say=lambda _: None)
    tokenizers.train(["the cat " * 9], 320).save(str(file))
    run(path, base=tmp_path, say=lambda _: None)
    (kept,) = tmp_path.glob("b.runs/*/tokenizer.json")
    assert Tokenizer.from_file(str(kept)).get_vocab() == Tokenizer.from_file(str(file)).get_vocab()


def test_a_stage_whose_parent_has_not_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    path = build(write_spec(tmp_path, SFT.format(path="chat.jsonl")), tmp_path / "b").path
    with pytest.raises(RunError, match="'chat' starts from 'pretrain', which has not run"):
        run(path, "chat", base=tmp_path, say=lambda _: None)


def test_a_sample_that_fails_ends_no_run(tmp_path: Path) -> None:
    """The template wants a system message, which the rows have and a prompt has not."""
    asked = [{"role": r, "content": c} for r, c in (("system", "be brief"), ("user", "a"))]
    (tmp_path / "chat.jsonl").write_text("".join(
        json.dumps({"messages": [*asked, {"role": "assistant", "content": f"b{i}"}]}) + "\n" for i in range(20)
    ))  # fmt: skip
    template = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    more = f"    sample: {{prompts: [a]}}\n    template: {json.dumps(template)}\n"
    spec = write_spec(
        tmp_path, SFT.format(path="chat.jsonl").replace("seq_len: 32", "seq_len: 128, validation: 0.3") + more
    )
    told = said(build(spec, tmp_path / "b").path, tmp_path)
    assert "no sample of 'a': the chat template fails: no system" in told
    assert "chat: done" in told


@pytest.mark.parametrize("name", SMALL)
def test_the_fields_of_an_objective_are_those_of_its_rows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = built(tmp_path, name)
    stage = made.stages["pretrain"]
    rows = begun(made).data.train.fields(np.arange(2), 0)
    assert {*rows, "part", "segment", "key"} == fields_given(stage.spec)
    stage.facts["inputs"]["image"] = "float[B]"
    with pytest.raises(RunError, match="no field for the model's input 'image'"):
        check_inputs(stage)


def test_inputs_that_no_objective_gives_end_a_run_before_a_tokenizer_is_made(tmp_path: Path) -> None:
    sets = ["model.inputs.strange='int[B S]'", "model.steps.0.embedding.from=strange"]
    with pytest.raises(RunError, match="no field for the model's input 'strange'"):
        run(build(write_spec(tmp_path), tmp_path / "b", sets).path, base=tmp_path, say=lambda _: None)
    assert not list(tmp_path.glob("b.runs/*/tokenizer.json"))


def test_samples_that_a_stop_left_out_are_written(tmp_path: Path) -> None:
    path = build(write_spec(tmp_path), tmp_path / "b", ["stages.pretrain.sample={prompts: [the]}"]).path
    run(path, base=tmp_path, say=lambda _: None)
    (done,) = tmp_path.glob("b.runs/*/done.json")
    done.unlink()
    assert "sample at 6: 'the'" in said(path, tmp_path)


@pytest.mark.parametrize(("name", "type_"), [("key", "int[B S]"), ("doc", "int[B]")])
def test_inputs_in_other_dims_than_the_datas_end_a_run(name: str, type_: str, tmp_path: Path) -> None:
    stage = build(write_spec(tmp_path), tmp_path / "b").stages["pretrain"]
    stage.facts["inputs"][name] = type_
    with pytest.raises(RunError, match=rf"its data have '{name}' as int\[B.*the model has {re.escape(type_)}"):
        check_inputs(stage)


def test_a_build_says_that_its_data_are_none_for_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["model.inputs.strange='int[B S]'", "model.steps.0.embedding.from=strange"]
    args = ["build", str(write_spec(tmp_path)), "-o", str(tmp_path / "b")]
    assert cli.main(args) == 0
    assert "not run" not in capsys.readouterr().out
    assert cli.main([*args, *(word for s in sets for word in ("--set", s))]) == 0
    assert "no field for the model's input 'strange'" in capsys.readouterr().out


def test_keys_of_dropout_are_new_in_each_step_and_none_in_validation() -> None:
    data, sizes = {"sources": [{"path": "x"}], "seq_len": 4}, {"sequences": 4, "microbatch": 2}
    stage = StageSpec.model_validate({"data": data, "budget": {"steps": 3}, "batch": sizes})
    rows = Rows(9, lambda at, samples: dict.fromkeys(("tokens", "labels"), at[:, None] + np.arange(4)))
    steps = [microbatches(Mixture((rows,), (1.0,)), stage, step, {"tokens", "key"})[0] for step in (0, 1, 0)]
    keys = [torch.cat([part["key"] for part in parts]).tolist() for parts in steps]
    assert keys[0] == keys[2]
    assert len({*keys[0], *keys[1]}) == 8
    assert min(*keys[0], *keys[1]) >= 0
    assert batch(rows, [3, 4], {"key"})["key"].tolist() == [-1, -1]


def test_a_build_says_that_samples_are_compared_in_a_microbatch(tmp_path: Path) -> None:
    text = """\
specc: 1
model:
  dims: {D: 8, V: 300}
  inputs: {tokens: 'int[B S]', labels: 'int[B S]'}
  steps:
    - embedding: {rows: V, out: D, from: tokens, name: embed}
    - mean: {over: S, as: one}
    - rename: {dims: {B: others}, as: other}
    - einsum: {rule: 'b d, t d -> b t', from: [one, other], as: alike}
    - index: {of: B, as: pair}
    - cross_entropy: {from: [alike, pair], as: loss}
  loss: loss
stages:
  a:
    data: {sources: [{corpus: python-stdlib}], seq_len: 8}
    tokenizer: {vocab: 300}
    batch: {sequences: 4}
    budget: {steps: 1}
"""
    (tmp_path / "x.yaml").write_text(text)
    halves, whole = (
        build(tmp_path / "x.yaml", tmp_path / str(n), [f"stages.a.batch.microbatch={n}"]).stages["a"] for n in (2, 4)
    )
    assert "among the 2 of a microbatch, not among the 4 of a step" in "".join(notes(halves))
    assert "compares samples" not in "".join(notes(whole))
    assert halves.hash != whole.hash, "another loss"
