"""Stages of models with low-rank adapters: where they start, what they train, what becomes of it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import specc
from specc.runtime import checkpoint
from specc.runtime.built import Build
from specc.runtime.cli import main
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.sample import Decoder
from specc.runtime.train import stage_folder
from specc.spec.errors import SpecError
from tests.published import built, publish, reference, tokens_of, write_texts

CHAIN = """
specc: 1
models:
  base: {use: llama, dims: {D: 16, L: 2, H: 2, K: 2, F: 24, V: 512}}
  adapted:
    use: llama
    dims: {D: 16, L: 2, H: 2, K: 2, F: 24, V: 512}
    lora: {rank: 4, alpha: 8, match: ["layers.*.attention.*", "layers.*.glu.*"]}
stages:
  pretrain:
    model: base
    tokenizer: {vocab: 320}
    data: &data {sources: [{path: texts}], seq_len: 16, validation: 0.3}
    batch: &batch {sequences: 4, microbatch: 2}
    optimizer: {lr: 1e-2}
    budget: {steps: 3}
  tune:
    model: adapted
    from: pretrain
    data: *data
    batch: *batch
    optimizer: {lr: 3e-2}
    schedule: {kind: constant, warmup: 0}
    budget: {steps: 5}
    checkpoint: {every: 1, keep: 10}
  after:
    model: base
    from: tune
    data: *data
    batch: *batch
    budget: {steps: 1}
    optimizer: {lr: 1e-30}
"""
DIMS = "{D: 16, L: 2, H: 2, K: 2, F: 24, V: 512}"
TEXT = "the cat sat on a mat and then ran home the mat sat"


def quiet(_: str) -> None:
    pass


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_texts(tmp_path)
    return tmp_path


def chain(folder: Path, *overrides: str, out: str = "chain", text: str = CHAIN) -> Build:
    (folder / "chain.yaml").write_text(text)
    return specc.build(folder / "chain.yaml", folder / "build" / out, overrides)


def state(build: Build, stage: str, step: int, group: str = "weights") -> dict[str, Tensor]:
    root = stage_folder(build, build.stages[stage]) / "checkpoints"
    return checkpoint.load(root / f"step_{step:08d}").tensors[group]


def ours(build: Build, stage: str, params: dict[str, Tensor]) -> Tensor:
    """Logits behind the text, as decoding has them."""
    return Decoder(build.stages[stage], params).feed(text_tokens(build)[0].tolist())


def text_tokens(build: Build) -> Tensor:
    first = next(iter(build.stages.values()))
    return tokens_of(tokenizers.load(stage_folder(build, first) / "tokenizer.json"), TEXT)


def theirs(folder: Path, build: Build) -> Tensor:
    with torch.no_grad():
        logits: Tensor = reference(folder)(input_ids=text_tokens(build)).logits[0, -1]
    return logits


def test_a_chain_trains_adapters_and_hands_merged_weights_on(here: Path) -> None:
    build = chain(here)
    specc.run(build, say=quiet)
    before, first, last = state(build, "pretrain", 3), state(build, "tune", 1), state(build, "tune", 5)
    assert set(last) - set(before) == {p for p in last if ".lora_" in p}
    assert all(torch.equal(last[p], t) for p, t in before.items())
    assert not any(torch.equal(last[p], first[p]) for p in last if ".lora_" in p)
    assert {p.partition("/")[2] for p in state(build, "tune", 5, "optimizer")} == set(last) - set(before)
    after = state(build, "after", 1)
    for path, w in before.items():
        a, b = (last.get(path.replace(".weight", f".lora_{x}.weight")) for x in "ab")
        if a is None or b is None:
            assert torch.equal(after[path], w)
        else:
            product = torch.tensordot(a.double(), b.double(), 1)
            torch.testing.assert_close(after[path], (w.double() + 2.0 * product).float(), rtol=0, atol=1e-9)
            assert not torch.allclose(after[path], w)
    torch.testing.assert_close(ours(build, "after", after), ours(build, "tune", last), rtol=1e-5, atol=1e-5)
    assert len(specc.sample(build, "the cat", "tune", 4)) == 1


def test_an_export_has_merged_weights_that_transformers_loads(here: Path) -> None:
    pytest.importorskip("transformers")
    build = chain(here, "stages.tune.ema=0.5", "models.adapted.freeze=['*.lora_a.*']")
    specc.run(build, stage="pretrain", say=quiet)
    specc.run(build, stage="tune", say=quiet)
    assert specc.export(build, "out") == ("tune", 5)
    averaged = state(build, "tune", 5, "ema")
    assert set(averaged) == {a.b for a in build.stages["tune"].adapters}, "what is frozen has no average"
    averaged = {**state(build, "tune", 5), **averaged}
    torch.testing.assert_close(theirs(here / "out", build), ours(build, "tune", averaged), rtol=1e-5, atol=1e-5)
    bare = ours(build, "pretrain", state(build, "pretrain", 3))
    assert not torch.allclose(theirs(here / "out", build), bare, rtol=1e-3)


def test_a_published_checkpoint_gets_adapters(here: Path) -> None:
    pytest.importorskip("transformers")
    publish("llama", here)
    assert main(["new", "start", "--checkpoint", "llama"]) == 0
    more = (
        "model.lora={rank: 4, alpha: 8, match: ['layers.*']}", "stages.tune.data.sources.0={path: texts}",
        "stages.tune.data.seq_len=32", "stages.tune.data.validation=0.2", "stages.tune.batch.sequences=4",
        "stages.tune.budget.steps=2", "stages.tune.optimizer.lr=1e-2", "stages.tune.checkpoint={every: 1, keep: 5}",
    )  # fmt: skip
    build = specc.build(here / "start.yaml", here / "build" / "start", more)
    specc.run(build, say=quiet)
    specc.export(build, "out")
    published, exported = (load_file(here / d / "model.safetensors") for d in ("llama", "out"))
    adapted = {a.weight for a in build.stages["tune"].adapters}
    assert len(adapted) == 14
    same = {n for n, t in published.items() if torch.equal(exported[n], t)}
    assert len(published) - len(same) == 14
    trained = state(build, "tune", 2)
    torch.testing.assert_close(theirs(here / "out", build), ours(build, "tune", trained), rtol=1e-5, atol=1e-5)


def test_a_run_that_is_stopped_goes_on_with_the_same_bits(here: Path) -> None:
    """With dropout, which the sample's number decides."""
    build = chain(here, "models.adapted.lora.dropout=0.3")
    specc.run(build, say=quiet)
    groups = ("weights", "optimizer")
    want = [state(build, "tune", 5, g) for g in groups]
    folder = stage_folder(build, build.stages["tune"])
    for step in (3, 4, 5):
        shutil.rmtree(folder / "checkpoints" / f"step_{step:08d}")
    (folder / "done.json").unlink()
    said: list[str] = []
    specc.run(build, stage="tune", say=said.append)
    assert "tune: goes on from step 2" in said
    for group, tensors in zip(groups, want, strict=True):
        again = state(build, "tune", 5, group)
        assert set(again) == set(tensors)
        assert all(torch.equal(again[n], t) for n, t in tensors.items())


def test_memory_counts_neither_gradients_nor_moments_of_frozen_weights(here: Path) -> None:
    build = chain(here)
    full, tuned = (json.loads((build.path / "stages" / s / "memory.json").read_text()) for s in ("pretrain", "tune"))
    stage = build.stages["tune"]
    numbers = {p["path"]: math.prod(p["shape"]) for p in stage.params}
    factors = sum(numbers[p] for p in stage.trainable())
    base = sum(numbers.values()) - factors
    assert (full["weights"], tuned["weights"]) == (4 * base, 4 * (base + factors))
    assert (full["optimizer"], tuned["optimizer"]) == (8 * base, 8 * factors)
    assert tuned["gradients"] <= full["gradients"] * factors / base + 4 * max(numbers[p] for p in stage.trainable())
    assert tuned["peak"] < full["peak"]


BF16 = "plan.precision.compute=bf16"


def test_frozen_weights_beside_adapters_are_kept_in_the_dtype_of_compute(here: Path) -> None:
    build = chain(here, BF16)
    specc.run(build, say=quiet)
    stage, before, last = build.stages["tune"], state(build, "pretrain", 3), state(build, "tune", 5)
    numbers = {p["path"]: math.prod(p["shape"]) for p in stage.params}
    factors = sum(numbers[p] for p in stage.trainable())
    frozen = sum(numbers.values()) - factors
    assert all(torch.equal(last[p], t.bfloat16()) for p, t in before.items())
    assert {last[p].dtype for p in stage.trainable()} == {torch.float32}
    memory = json.loads((stage.path / "memory.json").read_text())
    assert sum(t.nbytes for t in last.values()) == 2 * frozen + 4 * factors
    assert memory["weights"] == 2 * frozen + (4 + 2) * factors
    assert memory["optimizer"] == 8 * factors
    after = state(build, "after", 1)
    assert {t.dtype for t in after.values()} == {torch.float32}
    a = next(a for a in stage.adapters if a.weight == "layers.1.glu.down.weight")
    want = last[a.weight].double() + 2 * last[a.a].double() @ last[a.b].double()
    assert torch.equal(after[a.weight], want.float())
    assert not torch.equal(after[a.weight], want.bfloat16().float())


@pytest.mark.dist
def test_parts_of_frozen_weights_are_kept_in_the_dtype_of_compute(here: Path) -> None:
    one, many = chain(here, BF16, out="one"), chain(here, BF16, "plan.mesh={dp: 2}", "plan.zero=3", out="many")
    for build in (one, many):
        specc.run(build, say=quiet)
    before, last = state(many, "pretrain", 3), state(many, "tune", 5)
    assert all(torch.equal(last[p], t.bfloat16()) for p, t in before.items())
    assert {last[p].dtype for p in many.stages["tune"].trainable()} == {torch.float32}
    ends = [[json.loads(x)["loss"] for x in metrics(b).splitlines()][-1] for b in (one, many)]
    assert ends[1] == pytest.approx(ends[0], abs=0.02)


def metrics(build: Build) -> str:
    return (stage_folder(build, build.stages["tune"]) / "metrics.jsonl").read_text()


def test_a_stage_with_other_adapters_than_its_parent_is_refused_or_begins_its_own(here: Path) -> None:
    for given, said in (
        ("{rank: 2, alpha: 4, match: ['layers.*.attention.*']}", "'tune' has 'layers.0.attention.q.lora_a.weight' as"),
        ("{rank: 4, alpha: 4, match: ['layers.*.attention.*']}", "'tune' adds the adapter of 'layers.0.attention.q."),
    ):
        text = CHAIN.replace("  after:\n    model: base", "  after:\n    model: other")
        text = text.replace("stages:\n", f"  other: {{use: llama, dims: {DIMS}, lora: {given}}}\nstages:\n", 1)
        with pytest.raises(SpecError) as caught:
            chain(here, text=text)
        assert caught.value.codes == ("S311",)
        assert said in str(caught.value)


def test_adapters_that_a_later_stage_has_too_are_trained_on_and_others_are_merged(here: Path) -> None:
    text = CHAIN.replace("  after:\n    model: base", "  after:\n    model: other")
    lora = "{rank: 4, alpha: 8, match: ['layers.*.attention.*', head.weight]}"
    text = text.replace("stages:\n", f"  other: {{use: llama, dims: {DIMS}, lora: {lora}}}\nstages:\n", 1)
    build = chain(here, text=text)
    specc.run(build, say=quiet)
    before, after = state(build, "tune", 5), state(build, "after", 1)
    kept = {p for p in after if "attention" in p}
    assert all(torch.allclose(after[p], before[p], rtol=0, atol=1e-20) for p in kept)  # its steps are 1e-30
    assert not torch.equal(after["layers.0.glu.up.weight"], before["layers.0.glu.up.weight"])
    assert "layers.0.glu.up.lora_a.weight" not in after
    assert float(after["head.lora_a.weight"].abs().max()) == pytest.approx(0.25, rel=0.1)
    torch.testing.assert_close(ours(build, "after", after), ours(build, "tune", before), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.dist
def test_a_step_with_dropout_on_a_mesh_is_that_of_one_process(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = "lora: {rank: 4, alpha: 8, dropout: 0.2, "
    (here / "mesh.yaml").write_text(CHAIN.replace("lora: {rank: 4, alpha: 8, ", lora) + "plan: {mesh: {tp: 2}}\n")
    assert main(["verify", "mesh.yaml", "--stage", "tune", "--ranks", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["worst"] < 1e-12
    assert len(found["grads"]) == 2 * 2 * 7


FP64 = "plan.precision={compute: fp64, master: fp64, reduce: fp64}"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The chain in fp64 on one process."""
    folder = tmp_path_factory.mktemp("one")
    write_texts(folder)
    build = chain(folder, FP64)
    specc.run(build, say=quiet, base=folder)
    return build


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("plan", ["{mesh: {tp: 2}}", "{mesh: {dp: 2}, zero: 3}", "{mesh: {pp: 2}}"])
def test_a_chain_on_a_mesh_is_that_of_one_process(plan: str, one: Build, here: Path) -> None:
    """The ranks' parts of base weights, first values of adapters, their training, and the merge."""
    many = chain(here, f"plan={plan}", FP64)
    specc.run(many, say=quiet)
    for stage, step in (("tune", 5), ("after", 1)):
        want, found = state(one, stage, step), state(many, stage, step)
        assert set(found) == set(want)
        for name, t in want.items():
            torch.testing.assert_close(found[name], t, rtol=1e-9, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("match", ["['layers.*']", "['layers.1.attention.*', head.weight]"])
def test_an_adapter_is_written_as_peft_reads_it(match: str, here: Path) -> None:
    """The published model with W + scale B A in the modules that the config names has the logits of training."""
    pytest.importorskip("transformers")
    build = chain(here, f"models.adapted.lora.match={match}", "models.adapted.lora.rslora=true")
    specc.run(build, stage="pretrain", say=quiet)
    specc.run(build, stage="tune", say=quiet)
    specc.export(build, "base", "pretrain")
    assert main(["export", str(build.path), "-o", "own", "--stage", "tune", "--adapter"]) == 0
    tensors = load_file(here / "own" / "adapter_model.safetensors")
    config = json.loads((here / "own" / "adapter_config.json").read_text())
    model, hit = reference(here / "base"), 0
    for name, module in model.named_modules():
        if any(name == t or name.endswith(f".{t}") for t in config["target_modules"]):
            a, b = (tensors.pop(f"base_model.model.{name}.lora_{x}.weight") for x in "AB")
            assert (a.shape[0], b.shape[1]) == (config["r"], config["r"])
            module.weight.data += config["lora_alpha"] / math.sqrt(config["r"]) * b @ a
            hit += 1
    assert (hit, tensors) == (5 if "head" in match else 14, {})
    with torch.no_grad():
        logits = model(input_ids=text_tokens(build)).logits[0, -1]
    torch.testing.assert_close(logits, ours(build, "tune", state(build, "tune", 5)), rtol=1e-5, atol=1e-5)


def test_an_adapter_that_peft_has_no_form_for_is_refused(here: Path) -> None:
    build = chain(here, "models.adapted.train=['norm.*']")
    specc.run(build, say=quiet)
    with pytest.raises(specc.RunError, match=r"'tune' trains 'norm\.weight' beside its adapters"):
        specc.export(build, "own", "tune", adapter=True)
    with pytest.raises(specc.RunError, match="the model of 'pretrain' has no adapters"):
        specc.export(build, "own", "pretrain", adapter=True)


def test_gpt2s_joined_weights_are_exported_merged_alone(here: Path) -> None:
    pytest.importorskip("transformers")
    publish("gpt2", here)
    assert main(["new", "start", "--checkpoint", "gpt2"]) == 0
    own = built(here / "start.yaml", "model.lora={rank: 2, alpha: 4, match: ['*.mlp.*']}")
    specc.run(own, say=quiet)
    specc.export(own, "own", adapter=True)
    config = json.loads((here / "own" / "adapter_config.json").read_text())
    assert (config["fan_in_fan_out"], config["base_model_name_or_path"]) == (True, "gpt2")
    joined = built(here / "start.yaml", "model.lora={rank: 2, alpha: 4, match: ['*.attention.*']}", out="joined")
    specc.run(joined, say=quiet)
    with pytest.raises(specc.RunError, match="is no module of its own in the published model"):
        specc.export(joined, "other", adapter=True)
    specc.export(joined, "merged")
    logits = ours(joined, "tune", state(joined, "tune", 1))
    torch.testing.assert_close(theirs(here / "merged", joined), logits, rtol=1e-5, atol=1e-5)
