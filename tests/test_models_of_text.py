"""Claims about what language models need of the language: values handed to blocks, biases of scores, memories."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from specc.compiler.lower import loss as lowered_loss
from specc.compiler.lower.run import run_program
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.program import Program
from specc.spec.errors import SpecError
from tests.parity.case import step
from tests.text_models import BY_DISTANCE, FP64, drawn, model, random_params

SHIFT: dict[str, Any] = {
    "dims": {"D": 4},
    "inputs": {"x": "float[B D]"},
    "blocks": {
        "shift": {
            "args": {"by": "value = none"},
            "in": {"x": ["B D"]},
            "steps": [
                {"expr": "x + by", "as": "x", "when": "by"},
                {"expr": "x * 2"},
            ],
        },
        "nested": {"args": {"by": "value"}, "in": {"x": ["B D"]}, "steps": [{"shift": {"by": "by"}}]},
    },
}


def shifted(*steps: dict[str, Any]) -> tuple[Program, Tensor, Tensor]:
    """The result for x, and x; `a` is a parameter of the model."""
    first = {"param": {"shape": "D", "name": "a"}, "as": "a"}
    program = model(**SHIFT, steps=[first, *steps])
    x = drawn(3, 4)
    return program, run_program(program, {"x": x}, {"a": torch.arange(4.0, dtype=FP64)}, {"B": 3})["out"], x


A = torch.arange(4.0, dtype=FP64)


def test_a_block_takes_a_value_of_its_caller() -> None:
    assert torch.equal(shifted({"shift": {"by": "a"}, "from": "x"})[1], (drawn(3, 4) + A) * 2)


def test_a_value_that_is_not_given_counts_as_false() -> None:
    assert torch.equal(shifted({"shift": {}, "from": "x"})[1], drawn(3, 4) * 2)


def test_a_value_is_handed_on_to_a_block_inside() -> None:
    assert torch.equal(shifted({"nested": {"by": "a"}, "from": "x"})[1], (drawn(3, 4) + A) * 2)


def test_all_tiles_of_a_repeat_take_one_value() -> None:
    step = {"repeat": {"block": "nested", "times": 2, "args": {"by": "a"}}, "from": "x"}
    program, out, x = shifted(step)
    assert torch.equal(out, ((x + A) * 2 + A) * 2)
    tiles = [c for c in program.calls if c.body == "nested"]
    assert len(tiles) == 2
    assert tiles[0].ins[1] == tiles[1].ins[1]


@pytest.mark.parametrize(
    ("by", "code", "message"), [("b", "S105", "no value is called 'b' here"), (3, "S103", "expected a text, got 3")]
)
def test_a_value_that_is_none_is_told(by: Any, code: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as e:
        shifted({"shift": {"by": by}, "from": "x"})
    assert e.value.codes == (code,)


# Attention.


def test_the_bias_of_a_score_follows_the_distance_and_causal_stays_causal() -> None:
    program = model(**BY_DISTANCE)
    p, tokens = random_params(program), torch.tensor([[3, 1, 7, 7, 2]])
    x, at = p["embed.weight"][tokens[0]], torch.arange(5)
    q, k, v = (torch.einsum("sd,dhe->hse", x, p[f"attention.{n}.weight"]) for n in "qkv")
    distance = (at[:, None] - at[None, :]).clamp(min=0)
    # Six buckets: three for the distances 0, 1 and 2, the rest by the logarithm up to 9.
    bucket = torch.tensor([0, 1, 2, 3, 3])[distance]
    scores = q @ k.transpose(1, 2) + p["distances.weight"][bucket].permute(2, 0, 1)
    scores = scores.masked_fill(at[None, :] > at[:, None], -math.inf)
    seen = torch.einsum("hse,hed->sd", scores.softmax(-1) @ v, p["attention.out.weight"])
    out = run_program(program, {"tokens": tokens}, p, {"B": 1, "S": 5})["logits"][0]
    torch.testing.assert_close(out, seen @ p["linear.weight"])


def test_cross_attention_reads_a_memory_of_another_width() -> None:
    step = {"cross_attention": {"heads": 4, "kv_heads": 2, "head_dim": 3, "mask": "k.enc_doc >= 0"}}
    program = model(
        dims={"D": 6, "M": 5}, inputs={"x": "float[B S D]", "memory": "float[B T M]"},
        attributes={"enc_doc": "int[B T]"}, steps=[{**step, "from": ["x", "memory"]}],
    )  # fmt: skip
    p, x, memory = random_params(program), drawn(2, 3, 6), drawn(2, 7, 5, seed=1)
    doc = torch.tensor([[0] * 7, [0] * 4 + [-1] * 3])
    q = torch.einsum("bsd,dhe->bhse", x, p["cross_attention.q.weight"])
    k, v = (
        torch.einsum("btm,mke->bkte", memory, p[f"cross_attention.{n}.weight"]).repeat_interleave(2, 1) for n in "kv"
    )
    scores = (q @ k.transpose(2, 3) / math.sqrt(3)).masked_fill((doc < 0)[:, None, None], -math.inf)
    want = torch.einsum("bhse,hed->bsd", scores.softmax(-1) @ v, p["cross_attention.out.weight"])
    out = run_program(program, {"x": x, "memory": memory, "enc_doc": doc}, p, {"B": 2, "S": 3, "T": 7})["out"]
    torch.testing.assert_close(out, want)


def test_cross_entropy_in_fp32_rounds_an_fp64_model_and_leaves_an_fp32_model_alone() -> None:
    def loss(logits: Tensor, **extra: str) -> Tensor:
        step = {"cross_entropy": extra, "from": ["logits", "labels"], "as": "loss"}
        inputs = {"logits": "float[N V]", "labels": "int[N]"}
        program = model(inputs=inputs, steps=[step], outputs={}, loss="loss")
        labels = torch.tensor([0, 4, -100, 2])
        return run_program(program, {"logits": logits, "labels": labels}, {}, {"N": 4, "V": 9})["loss"]

    logits = drawn(4, 9)
    rounded = loss(logits, softmax="fp32")
    assert rounded.dtype == FP64
    assert 1e-12 < (rounded - loss(logits)).abs() < 1e-6
    assert torch.equal(loss(logits.float(), softmax="fp32"), loss(logits.float()))


def test_a_head_whose_loss_is_rounded_is_not_fused_with_it() -> None:
    loss = {"cross_entropy": {"softmax": "fp32"}, "from": ["_", "labels"], "as": "loss"}
    inputs = {"x": "float[N D]", "labels": "int[N]"}
    steps = [{"linear": "V", "from": "x"}, loss]
    program = model(dims={"D": 4, "V": 9}, inputs=inputs, steps=steps, loss="loss", outputs={})
    assert fuse_linear_cross_entropy(program) is program


@pytest.mark.parametrize("bias", [False, True])
def test_a_head_is_fused_with_its_loss_and_gives_the_same_gradients(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces of three rows, of which some have no label at all."""
    monkeypatch.setattr(lowered_loss, "CHUNK_ELEMENTS", 3 * 9)
    loss = {"cross_entropy": {}, "from": ["_", "labels"], "as": "loss"}
    steps = [{"linear": {"out": "V", "bias": bias}, "from": "x"}, loss]
    inputs = {"x": "float[B S D]", "labels": "int[B S]"}
    program = model(dims={"D": 4, "V": 9}, inputs=inputs, steps=steps, loss="loss", outputs={})
    fused = fuse_linear_cross_entropy(program)
    assert [e.op for b in fused.bodies.values() for e in b.eqns] == ["linear_cross_entropy"]
    labels = torch.randint(9, (5, 7), generator=torch.Generator().manual_seed(0))
    labels[0] = labels[1, :4] = -100
    given = {"x": drawn(5, 7, 4), "labels": labels}
    results = [step(p, given, random_params(program), FP64) for p in (program, fused)]
    torch.testing.assert_close(results[1][0]["loss"], results[0][0]["loss"], rtol=1e-13, atol=0)
    assert set(results[1][1]) == {"linear.weight"} | ({"linear.bias"} if bias else set())
    for name, grad in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], grad, rtol=1e-12, atol=1e-14)
