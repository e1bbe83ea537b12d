"""Published checkpoints in and out: training starts from what transformers saved, and it loads what was trained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy

import specc
from specc.runtime.built import Build
from specc.runtime.cli import main
from specc.runtime.convert.export import write_folder
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.loop import batches_of
from specc.runtime.sample import Decoder
from specc.runtime.train import begin, stage_folder
from specc.spec.errors import SpecError
from specc.spec.names import load_names, table_for
from tests.published import KINDS, SIZES, built, publish, reference, tokens_of, weights

pytest.importorskip("transformers")
STILL = "stages.tune.optimizer.lr=1e-30"  # a step that leaves every weight as it is
TEXT = "the cat sat on a mat and then ran home the mat sat"


def quiet(_: str) -> None:
    pass


def starter(name: str, folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """A published checkpoint, and the spec that `specc new` writes for it."""
    os.chdir(folder)
    publish(name, folder, dtype, **more)
    assert main(["new", "start", "--checkpoint", name]) == 0
    assert main(["check", "start.yaml"]) == 0
    return folder / "start.yaml"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decoded(build: Build, params: dict[str, Tensor]) -> Tensor:
    """The logits behind the text."""
    stage = build.stages["tune"]
    tokens = tokens_of(tokenizers.load(stage_folder(build, stage) / "tokenizer.json"), TEXT)
    return Decoder(stage, params).feed(tokens[0].tolist())


def theirs(model: Any, build: Build) -> Tensor:
    tokens = tokens_of(tokenizers.load(stage_folder(build, build.stages["tune"]) / "tokenizer.json"), TEXT)
    with torch.no_grad():
        logits: Tensor = model(input_ids=tokens).logits[0, -1]
    return logits


def their_loss(model: Any, batch: dict[str, Tensor]) -> float:
    """Of a batch of ours: tokens see their own document, at positions that begin with it."""
    doc = batch["doc"]
    seen = (doc[:, :, None] == doc[:, None, :]).tril()[:, None]
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits = model(input_ids=batch["tokens"], attention_mask=mask, position_ids=batch["pos"]).logits
    return float(cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-100))


def first_loss(build: Build) -> float:
    """As the run told it."""
    lines = (stage_folder(build, build.stages["tune"]) / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(lines[0])["loss"])


@pytest.mark.parametrize("name", SIZES)
def test_a_stage_starts_from_a_published_checkpoint_and_is_exported_for_transformers(name: str, here: Path) -> None:
    build = built(starter(name, here))
    stage, model = build.stages["tune"], reference(here / name)
    folder = stage_folder(build, stage)
    folder.mkdir(parents=True)
    run = begin(build, stage, folder, here, quiet)
    torch.testing.assert_close(decoded(build, run.params), theirs(model, build), rtol=1e-5, atol=1e-5)
    specc.run(build, say=quiet)
    if name not in ("mixtral", "deepseek_v2"):  # their loss has the balance of experts in it
        assert first_loss(build) == pytest.approx(their_loss(model, batches_of(run, 0)[0][0]), abs=1e-5)
    assert main(["export", str(build.path), "-o", "out"]) == 0
    trained, exported = weights(build), reference(here / "out")
    assert not torch.equal(exported.get_input_embeddings().weight, model.get_input_embeddings().weight)
    torch.testing.assert_close(decoded(build, trained), theirs(exported, build), rtol=1e-5, atol=1e-5)
    assert json.loads((here / "out" / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_what_is_exported_comes_back_with_the_same_bits(name: str, here: Path) -> None:
    build = built(starter(name, here), STILL)
    specc.run(build, say=quiet)
    assert specc.export(build, "out") == ("tune", 1)
    published, exported = (load_file(here / d / "model.safetensors") for d in (name, "out"))
    assert set(exported) == set(published)
    assert all(torch.equal(exported[n], t) for n, t in published.items())
    assert main(["new", "again", "--checkpoint", "out"]) == 0
    again = built(here / "again.yaml", STILL)
    specc.run(again, say=quiet)
    first, second = weights(build), weights(again)
    assert set(first) == set(second)
    assert all(torch.equal(second[n], t) for n, t in first.items())


@pytest.mark.parametrize("name", ["tied", "llama3", "qwen2", "qwen3", "gpt2", "deepseek_v2"])
def test_a_model_of_the_library_is_exported_with_a_config_that_is_made(name: str, here: Path) -> None:
    path = starter(name, here)
    spec = path.read_text().split("\n")
    path.write_text("\n".join(line for line in spec if not line.strip().startswith("weights:")))
    build = built(path, "stages.tune.ema=0.5")
    specc.run(build, say=quiet)
    assert main(["export", str(build.path), "-o", "out", "--stage", "tune"]) == 0
    model = reference(here / "out")
    root = stage_folder(build, build.stages["tune"]) / "checkpoints" / "step_00000001"
    averaged = load_file(root / "ema.safetensors")
    torch.testing.assert_close(decoded(build, averaged), theirs(model, build), rtol=1e-5, atol=1e-5)
    assert model.config.eos_token_id == 1
    config = json.loads((here / "out" / "config.json").read_text())
    kind = KINDS.get(name, name)
    assert table_for(config) == kind
    assert load_names(kind).overrides(config) == load_names(kind).overrides(
        json.loads((here / name / "config.json").read_text())
    )


@pytest.mark.dist
@pytest.mark.parametrize(("name", "mesh"), [("llama", "{tp: 2}"), ("gpt2", "{dp: 2}"), ("tied", "{pp: 2}")])
def test_ranks_read_their_parts(name: str, mesh: str, here: Path) -> None:
    path = starter(name, here)
    zero = ["plan.zero=3"] if "dp" in mesh else []
    more = [f"plan.mesh={mesh}", *zero, "stages.tune.batch.microbatch=2"]
    build = built(path, STILL, *more)
    specc.run(build, say=quiet)
    one = built(path, STILL, "stages.tune.batch.microbatch=2", out="one")
    stage = one.stages["tune"]
    folder = stage_folder(one, stage)
    folder.mkdir(parents=True)
    batches, shares = batches_of(begin(one, stage, folder, here, quiet), 0)
    model = reference(here / name)
    expected = sum(their_loss(model, b) * w for b, w in zip(batches, shares, strict=True))
    assert first_loss(build) == pytest.approx(expected, abs=1e-5)
    specc.export(build, "out")
    exported = load_file(here / "out" / "model.safetensors")
    assert all(torch.equal(exported[n], t) for n, t in load_file(here / name / "model.safetensors").items())


def test_shards_and_half_precision_are_read_and_written(here: Path) -> None:
    build = built(starter("llama", here, torch.bfloat16, use_cache=False), STILL)
    assert len(list((here / "llama").glob("model-*.safetensors"))) > 1
    specc.run(build, say=quiet)
    trained = weights(build)
    assert {t.dtype for t in trained.values()} == {torch.float32}
    write_folder(build, build.stages["tune"], trained, here / "out", "bf16", None, shard_bytes=40_000)
    index = json.loads((here / "out" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    before, after = (reference(here / d).state_dict() for d in ("llama", "out"))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-20)  # a weight of 0 is now as small as the step


def test_older_files_leave_out_what_their_time_took_for_granted(here: Path) -> None:
    """GPT-2's own file has no names of the head's module; Llama 2 has no head_dim, and rope_theta by itself."""
    publish("gpt2", here)
    tensors = load_file(here / "gpt2" / "model.safetensors")
    bare = {n.removeprefix("transformer."): t for n, t in tensors.items()} | {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}
    save_file(bare, here / "gpt2" / "model.safetensors", {"format": "pt"})
    assert main(["new", "start", "--checkpoint", "gpt2"]) == 0
    build = built(here / "start.yaml", STILL)
    specc.run(build, say=quiet)
    assert torch.equal(weights(build)["embed.weight"], tensors["transformer.wte.weight"])
    config = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 64, "num_hidden_layers": 2,
              "num_attention_heads": 4, "intermediate_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
              "rope_scaling": None}  # fmt: skip
    overrides = load_names("llama").overrides(config)
    assert {"model.dims.E=16", "model.dims.K=4", "model.numbers.theta=500000.0"} <= set(overrides)
    with pytest.raises(SpecError, match="rope_parameters_rope_type is 'linear'"):
        load_names("llama").overrides({**config, "rope_scaling": {"type": "linear", "factor": 2.0}})


def test_a_tokenizer_that_fills_the_model_needs_no_more_tokens(here: Path) -> None:
    """Llama's has `</s>` for what ends a text, and nothing to fill up rows; all rows of its table are taken."""
    path = starter("llama", here)
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, min_frequency=1,
    )  # fmt: skip
    own.train_from_iterator([f"{n} {n * 7919 % 10007}" for n in range(3000)], trainer)
    assert own.get_vocab_size() == 512
    own.save(str(here / "llama" / "tokenizer.json"))
    build = built(path)
    specc.run(build, say=quiet)
    kept = tokenizers.load(stage_folder(build, build.stages["tune"]) / "tokenizer.json")
    assert (kept.get_vocab_size(), tokenizers.end_id(kept), tokenizers.padding(kept)) == (512, 1, 1)
    specc.export(build, "out")
    assert json.loads((here / "out" / "tokenizer_config.json").read_text())["eos_token"] == "</s>"


def refused(build: Build) -> str:
    with pytest.raises(specc.RunError) as e:
        specc.run(build, say=quiet)
    return str(e.value)


def test_what_does_not_fit_is_told(here: Path) -> None:
    path = starter("llama", here)
    other = refused(built(path, "model.dims.D=64"))
    assert "config.json is of another model: it needs model.dims.D=32, and here it is 64" in other
    assert "it needs model.numbers.eps=1e-05, and here it is 1e-06" in refused(built(path, "model.numbers.eps=1e-6"))
    assert "there is no folder" in refused(built(path, "stages.tune.weights.path=nowhere"))
    file = here / "llama" / "model.safetensors"
    tensors = load_file(file)
    build = built(path)
    norm = "model.norm.weight"
    for changed, said in (
        ({n: t for n, t in tensors.items() if n != norm}, "nothing for 'norm.weight'"),
        ({**tensors, "extra": torch.ones(2)}, "'extra', which no rule names"),
        ({**tensors, norm: torch.ones(31)}, "'model.norm.weight' is [31], the model needs [32]"),
    ):
        save_file(changed, file)
        assert said in refused(build)
    file.write_bytes(b"no tensors")
    assert "is not a safetensors file" in refused(build)
    (here / "llama" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret"}}')
    file.unlink()
    assert "does not say which file" in refused(build)


def test_a_later_stage_that_finds_no_checkpoint_is_told_before_the_first_one_trains(here: Path) -> None:
    path = starter("llama", here)
    text = path.read_text()
    stage = text[text.index("  tune:") :]
    wider = stage.replace("  tune:", "  wider:").replace("path: llama", "path: nowhere")
    path.write_text(text + wider.replace("corpus: python-stdlib", "path: texts"))
    build = built(path)
    assert refused(build) == f"there is no folder {here / 'nowhere'}"
    assert not (stage_folder(build, build.stages["tune"]) / "checkpoints").exists()


def test_a_config_of_no_known_kind_asks_for_a_table(here: Path) -> None:
    with pytest.raises(SpecError, match="no name table is known for the model_type 'mamba'"):
        table_for({"model_type": "mamba"})
    path = starter("llama", here)
    config = json.loads((here / "llama" / "config.json").read_text())
    (here / "llama" / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    assert main(["new", "mine", "--checkpoint", "llama"]) == 2
    assert main(["new", "mine", "--checkpoint", "llama", "--from", "llama"]) == 0
    assert main(["check", "mine.yaml"]) == 0
    assert path.read_text().count("names: llama") == 1


def test_a_stage_of_another_model_than_its_checkpoint_is_not_exported_as_that(here: Path) -> None:
    build = built(starter("llama", here), "model.blocks.decoder_layer.steps.4.glu.act=gelu")
    specc.run(build, say=quiet)
    with pytest.raises(specc.RunError, match="transformers would compute something else; with --names llama"):
        specc.export(build, "out")


def test_a_stage_that_goes_back_to_a_checkpoint_is_exported_with_its_config(here: Path) -> None:
    path = starter("llama", here)
    text = path.read_text()
    stage = text[text.index("  tune:") :].replace("  tune:", "  wider:").replace("corpus: python-stdlib", "path: texts")
    wider = [line for line in stage.split("\n") if not line.strip().startswith(("weights:", "tokenizer:"))]
    wider.insert(1, "    from: tune")
    path.write_text(text + "\n".join(wider))
    small = ("data.seq_len=32", "data.validation=0.2", "budget.steps=1", "batch.sequences=4")
    build = built(path, *(f"stages.wider.{text}" for text in small))
    specc.run(build, say=quiet)
    assert specc.export(build, "out", dtype="bf16") == ("wider", 1)
    written, published = (json.loads((here / d / "config.json").read_text()) for d in ("out", "llama"))
    assert written.pop("torch_dtype") == "bfloat16"
    assert published.pop("dtype") == "float32"
    assert written == published
    reference(here / "out")


def test_an_export_that_would_compute_something_else_is_refused(here: Path) -> None:
    path = starter("llama", here)
    lines = [line for line in path.read_text().split("\n") if not line.strip().startswith("weights:")]
    path.write_text("\n".join(lines))
    build = built(path, "model.blocks.decoder_layer.steps.4.glu.act=gelu")
    specc.run(build, say=quiet)
    with pytest.raises(specc.RunError, match="transformers would compute something else; with --names llama"):
        specc.export(build, "out")
    assert specc.export(build, "out", names="llama") == ("tune", 1)
    with pytest.raises(specc.RunError, match="exists"):
        specc.export(build, "out", names="llama")
    with pytest.raises(specc.RunError, match="no config of 'gpt2' says its model"):
        specc.export(build, "other", names="gpt2")
    with pytest.raises(specc.RunError, match="no dtype 'fp8'"):
        specc.export(build, "other", dtype="fp8")
