"""Decoding token by token gives what the whole text gives at once; a model that cannot says why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import specc
from specc.compiler.elaborate import elaborate
from specc.compiler.lower.run import run_program
from specc.runtime.commands import new
from specc.runtime.commands.build import notes
from specc.runtime.sample import Choice, Decoder, draw
from specc.runtime.seat import Seat, first_values
from specc.spec.spec import load
from tests.text_models import FP64, SMALL, built, drawn, random_params

SEES_ALL = "`attend` (attention.attend) lets tokens see later ones: its mask is not `causal` nor `causal & ...`"
WHY_NOT = {
    "gpt2": "",
    "bert": SEES_ALL,
    "glm": SEES_ALL,
    "t5": "decoding goes along 'S' alone; it has no int[B T] for 'enc_tokens'",
}


@pytest.mark.parametrize("name", SMALL)
def test_a_build_says_whether_and_why_not_it_decodes(name: str, tmp_path: Path) -> None:
    stage = built(tmp_path, name).stages["pretrain"]
    assert stage.facts["decodes"] == (name == "gpt2")
    assert (stage.path / "decode.txt").read_text().strip() == WHY_NOT[name]


def test_attention_without_a_mask_does_not_decode(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SPEC.replace("mask: causal, ", ""))
    stage = specc.build(tmp_path / "x.yaml", tmp_path / "b").stages["a"]
    assert stage.refusal == SEES_ALL
    assert list(notes(stage)) == [f"'a' predicts the next token and cannot write any: {SEES_ALL}"]


def test_prompts_of_a_model_that_writes_no_text_are_told(tmp_path: Path) -> None:
    said: list[str] = []
    specc.run(built(tmp_path, "t5", "stages.pretrain.budget.steps=1"), say=said.append, base=tmp_path)
    assert f"  no samples: {WHY_NOT['t5']}" in said
    with pytest.raises(specc.RunError, match="'pretrain' cannot decode: decoding goes along 'S' alone"):
        specc.sample(tmp_path / "build", "the cat")


@pytest.mark.parametrize(("name", "prompts"), [("gpt2", True), ("bert", False), ("glm", False), ("t5", False)])
def test_a_starter_has_prompts_if_the_model_writes_text(name: str, prompts: bool, tmp_path: Path) -> None:
    text = new.starter("mine", name, new.library()[name], tmp_path / "mine.yaml")
    assert ("prompts:" in text) == prompts


def test_a_decoder_with_learned_positions_decodes_what_it_gives_all_at_once(tmp_path: Path) -> None:
    stage = built(tmp_path, "gpt2", "plan.precision.compute=fp64").stages["pretrain"]
    params = {n: drawn(*p.shape, seed=i) * 0.2 for i, (n, p) in enumerate(first_values(stage, Seat(), FP64).items())}
    program = elaborate(load(tmp_path / "x.yaml"))
    tokens = torch.randint(400, (1, 40), generator=torch.Generator().manual_seed(0))
    inputs = {"tokens": tokens, "labels": tokens, "doc": torch.zeros_like(tokens), "pos": torch.arange(40)[None]}
    want = run_program(program, inputs, params, {"B": 1, "S": 40})["logits"][0]
    decoder = Decoder(stage, params)
    got = [decoder.feed([int(t)]) for t in tokens[0, :5]] + [decoder.feed(tokens[0, 5:].tolist())]
    torch.testing.assert_close(torch.stack(got), want[[0, 1, 2, 3, 4, 39]].float())


def test_the_smallest_temperatures_take_the_likeliest() -> None:
    logits = torch.tensor([1.0, 1.0 + 1e-6, -3.0])
    assert {draw(logits, Choice(t), torch.Generator().manual_seed(0)) for t in (0.0, 1e-50, 1e-30, 1e-7)} == {1}


def test_a_bias_by_distance_decodes_what_it_gives_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(SPEC)
    stage = specc.build(tmp_path / "x.yaml", tmp_path / "b").stages["a"]
    program = elaborate(load(tmp_path / "x.yaml"))
    params, tokens = random_params(program), torch.randint(400, (1, 37), generator=torch.Generator().manual_seed(0))
    want = run_program(program, {"tokens": tokens, "labels": tokens}, params, {"B": 1, "S": 37})["logits"][0]
    decoder = Decoder(stage, params)
    got = [decoder.feed([int(t)]) for t in tokens[0, :5]] + [decoder.feed(tokens[0, 5:].tolist())]
    torch.testing.assert_close(torch.stack(got), want[[0, 1, 2, 3, 4, 36]].float())


@pytest.mark.parametrize(
    "steps",
    [
        "- mean: {over: S, as: m}\n    - expr: x + m",
        "- mean: {as: m}\n    - expr: x + m",
        "- max: {over: S, as: m}\n    - expr: x + m",
        "- min: {as: m}\n    - expr: x + m",
        "- sum: {over: S, as: m}\n    - expr: x + m",
        "- rearrange: b s d -> b d s\n    - softmax\n    - rearrange: b d s -> b s d",
        "- rearrange: b s d -> b d s\n    - rms_norm: {scale: false}\n    - rearrange: b d s -> b s d",
        "- rearrange: b s d -> b (s d)\n    - softmax\n"
        "    - rearrange: {pattern: b (s d) -> b s d, dims: {s: S, d: D}}",
        "- einsum: {rule: 'b s d, b t d -> b s t', from: [x, y], as: a}\n"
        "    - einsum: {rule: 'b s t, b t d -> b s d', from: [a, y]}",
    ],
)
def test_a_model_that_mixes_tokens_otherwise_does_not_decode(steps: str, tmp_path: Path) -> None:
    """Its steps would give other logits than the whole text."""
    own = "- rename: {dims: {S: T}, as: y}\n    " if "y" in steps else ""
    text = SPEC.replace(
        "    - linear: {out: V", f"    - {{expr: 1 * _, as: x}}\n    {own}{steps}\n    - linear: {{out: V"
    )
    (tmp_path / "x.yaml").write_text(text)
    stage = specc.build(tmp_path / "x.yaml", tmp_path / "b").stages["a"]
    assert "mixes tokens along 'S' and has no incremental rule" in (stage.path / "decode.txt").read_text()


def test_a_product_along_the_sequence_does_not_decode(tmp_path: Path) -> None:
    """Its result has the dim that it mixes, as in an MLP-Mixer."""
    mixer = "- rearrange: b s d -> b d s\n    - linear: {out: S, name: mixer}\n    - rearrange: b d s -> b s d"
    text = SPEC.replace("V: 400}", "V: 400, S: 40}", 1).replace(
        "    - linear: {out: V", f"    {mixer}\n    - linear: {{out: V"
    )
    (tmp_path / "x.yaml").write_text(text)
    stage = specc.build(tmp_path / "x.yaml", tmp_path / "b").stages["a"]
    assert "`linear` (mixer) mixes tokens along 'S'" in stage.refusal


@pytest.mark.parametrize("with_dropout", [False, True])
def test_latent_attention_decodes_what_it_gives_all_at_once(with_dropout: bool, tmp_path: Path) -> None:
    """Its keys are joined from two parts; what dropout leaves out in training stays."""
    before, after = SPEC.split("    - relative_bucket")[0], SPEC[SPEC.index("    - linear") :]
    steps = [
        "    - embedding: {rows: V, out: D, from: tokens, name: embed}",
        "    - mla: {heads: H, nope: 4, rotary: 2, v_dim: 4, kv_rank: 5, mask: causal}",
    ]
    if with_dropout:
        before = before.replace("  steps:", '  attributes: {key: "int[B]"}\n  steps:')
        steps.append("    - dropout: {p: 0.5, from: [_, key]}")
    text = "\n".join([before.rstrip(), *steps, after])
    (tmp_path / "x.yaml").write_text(text)
    stage = specc.build(tmp_path / "x.yaml", tmp_path / "b").stages["a"]
    program = elaborate(load(tmp_path / "x.yaml"))
    params, tokens = random_params(program), torch.randint(400, (1, 37), generator=torch.Generator().manual_seed(0))
    inputs = {"tokens": tokens, "labels": tokens, "key": torch.tensor([-1])}
    want = run_program(program, {n: inputs[n] for n in program.inputs}, params, {"B": 1, "S": 37})["logits"][0]
    decoder = Decoder(stage, params)
    got = [decoder.feed([int(t)]) for t in tokens[0, :5]] + [decoder.feed(tokens[0, 5:].tolist())]
    torch.testing.assert_close(torch.stack(got), want[[0, 1, 2, 3, 4, 36]].float())


SPEC = """
specc: 1
model:
  dims: {D: 6, H: 2, V: 400}
  inputs: {tokens: "int[B S]", labels: "int[B S]"}
  steps:
    - relative_bucket: {q: S, k: S, buckets: 6, max_distance: 9, bidirectional: false}
    - embedding: {rows: 6, out: H, name: distances, as: far}
    - embedding: {rows: V, out: D, from: tokens, name: embed}
    - attention: {heads: H, head_dim: 3, mask: causal, score_bias: far}
    - linear: {out: V, as: logits}
    - cross_entropy: {from: [logits, labels], as: loss}
  outputs: {logits: logits}
  loss: loss
plan: {precision: {compute: fp64}}
stages:
  a: {data: {sources: [{path: x}], seq_len: 40}, tokenizer: {vocab: 400}, budget: {steps: 1}}
"""
