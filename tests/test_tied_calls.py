"""Block calls that have the weights of an earlier call: `tie: NAME`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from specc.compiler.build import lower
from specc.compiler.elaborate import elaborate_model
from specc.compiler.program import Program
from specc.compiler.report.program import model_data
from specc.compiler.schedule.actions import one_rank
from specc.runtime.cli import main
from specc.runtime.executor import Executor
from specc.spec.errors import SpecError
from specc.spec.model import ModelSpec
from tests.parity.case import body_as_it_is

BLOCKS: dict[str, Any] = {
    "layer": {
        "args": {"mask": "mask"},
        "in": {"x": "[B S D]"},
        "steps": [{"attention": {"heads": 2, "head_dim": 4, "mask": "mask"}}, {"expr": "x + _"}],
    },
    "former": {
        "args": {"mask": "mask"},
        "in": {"x": "[B S D]"},
        "steps": [{"repeat": {"block": "layer", "times": 2, "args": {"mask": "mask"}, "name": "layers"}}],
    },
    "siamese": {
        "in": {"x": "[B S D]"},
        "steps": [
            {"layer": {"mask": "full", "name": "first"}, "as": "y"},
            {"layer": {"mask": "causal", "name": "second", "tie": "first", "from": "x"}},
            {"expr": "y + _"},
        ],
    },
    "again": {"in": {"x": "[B S D]"}, "steps": [{"layer": {"mask": "causal", "tie": "shared"}}]},
}
TWICE = [
    {"former": {"mask": "full", "name": "former"}, "as": "a"},
    {"former": {"mask": "causal", "name": "second"}, "from": "x", "tie": "former", "as": "b"},
]
LOSS = [{"expr": "square(_)"}, {"mean": {}, "as": "loss"}]
SIZES = {"B": 2, "S": 5}
VIEWS: dict[str, tuple[list[Any], list[str]]] = {
    "a call": ([*TWICE, {"expr": "a - 2 * b"}], ["former.layers.0", "former.layers.1"]),
    "calls in a repeated block": (
        [{"repeat": {"block": "siamese", "times": 2, "name": "tower"}}], ["tower.0.first", "tower.1.first"],
    ),
    "a repeat": (
        [
            {"repeat": {"block": "layer", "times": 2, "args": {"mask": "full"}, "name": "one"}},
            {"repeat": {"block": "layer", "times": 2, "args": {"mask": "causal"}, "name": "two", "tie": "one"}},
        ],
        ["one.0", "one.1"],
    ),
    "all tiles": (
        [{"layer": {"mask": "full", "name": "shared"}}, {"repeat": {"block": "again", "times": 2}}], ["shared"],
    ),
    "a call of one name": (
        [{"layer": {"mask": "full"}, "as": "y"}, {"layer": {"mask": "causal", "tie": "layer", "from": "y"}}], ["layer"],
    ),
}  # fmt: skip


def model(steps: list[Any], **sections: Any) -> Program:
    written = {"dims": {"D": 8}, "inputs": {"x": "float[B S D]"}, "blocks": BLOCKS, "steps": steps}
    return elaborate_model(ModelSpec.model_validate(written | sections), "m")


def codes(steps: list[Any], **sections: Any) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        model(steps, **sections)
    return caught.value.codes


def attended(params: dict[str, Tensor], path: str, x: Tensor, causal: bool) -> Tensor:
    """`layer` in plain torch."""
    q, k, v = (torch.einsum("bsd,dhe->bhse", x, params[f"{path}.attention.{n}.weight"]) for n in ("q", "k", "v"))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return x + torch.einsum("bhse,hed->bsd", out, params[f"{path}.attention.out.weight"])


def plain(view: str, p: dict[str, Tensor], x: Tensor, paths: list[str]) -> Tensor:
    """The model of a view in plain torch."""
    a, b = x, x
    match view:
        case "a call":
            for path in paths:
                a, b = attended(p, path, a, False), attended(p, path, b, True)
            return a - 2 * b
        case "calls in a repeated block":
            for path in paths:
                x = attended(p, path, x, False) + attended(p, path, x, True)
            return x
        case "all tiles":
            return attended(p, "shared", attended(p, "shared", attended(p, "shared", x, False), True), True)
    for causal in (False, True):
        for path in paths:
            x = attended(p, path, x, causal)
    return x


@pytest.mark.parametrize("view", VIEWS)
def test_tied_calls_have_the_loss_and_gradients_of_plain_torch(view: str) -> None:
    steps, paths = VIEWS[view]
    program = model([*steps, *LOSS], loss="loss")
    assert list(program.params) == [f"{p}.attention.{n}.weight" for p in paths for n in ("q", "k", "v", "out")]
    draw = torch.Generator().manual_seed(0)
    params = {
        n: (torch.randn(p.type.shape({}), generator=draw, dtype=torch.float64) / 2).requires_grad_()
        for n, p in program.params.items()
    }
    x = torch.randn(2, 5, 8, generator=draw, dtype=torch.float64)
    want = plain(view, params, x, paths).square().mean()
    grads = torch.autograd.grad(want, list(params.values()))
    graphs, calls = lower(program, SIZES, torch.float64)
    bodies = {n: body_as_it_is(g) for n, g in graphs.items()}
    actions = one_rank(len(calls), 1, {i for i, c in enumerate(calls) if graphs[c.body].bwd is not None})
    assert program.loss
    run = Executor(calls, bodies, actions, program.loss, {}, frozenset(params), torch.float64)
    result = run.step({n: p.detach() for n, p in params.items()}, [{"x": x}], [1.0])
    torch.testing.assert_close(result.losses[0], want.detach(), rtol=1e-12, atol=1e-12)
    for name, grad in zip(params, grads, strict=True):
        torch.testing.assert_close(result.grads[name], grad, rtol=1e-9, atol=1e-11)


def test_a_call_may_be_tied_to_a_tied_one_and_to_a_tile() -> None:
    third = {"former": {"mask": "full", "name": "third", "tie": "second"}}
    tile = {"layer": {"mask": "full", "name": "fourth", "tie": "third.layers.1"}}
    assert list(model([*TWICE, third, tile]).params) == list(model(TWICE).params)


def test_a_tied_call_may_leave_parameters_out() -> None:
    blocks = {"b": {"args": {"wide": "bool"}, "in": {"x": "[B S D]"}, "steps": [
        {"linear": {"out": "D", "name": "one"}}, {"linear": {"out": "D", "name": "two", "when": "wide"}},
    ]}}  # fmt: skip
    few, many = {"b": {"wide": False, "tie": "b"}}, {"b": {"wide": True}}
    assert list(model([many, few], blocks=blocks).params) == ["b.one.weight", "b.two.weight"]
    swapped = [{"b": {"wide": False}}, {"b": {"wide": True, "tie": "b"}}]
    assert codes(swapped, blocks=blocks) == ("S116",)


def test_an_argument_called_tie_is_the_blocks_own() -> None:
    blocks = {"b": {"args": {"tie": "str"}, "in": {"x": "[B S D]"}, "steps": [{"linear": {"out": "D", "tie": "tie"}}]}}
    steps = [{"linear": {"out": "D", "name": "first"}}, {"b": {"tie": "first"}}]
    assert list(model(steps, blocks=blocks).params) == ["first.weight"]


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([{"former": {"mask": "full", "tie": "formr"}}], "S105"),
        ([{"former": {"mask": "full", "tie": 3}}], "S103"),
        ([{"layer": {"mask": "full", "name": "one"}}, {"former": {"mask": "full", "tie": "one"}}], "S116"),
        ([*TWICE, {"repeat": {"block": "layer", "times": 3, "args": {"mask": "full"}, "tie": "former.layers",
                              "name": "more"}}], "S116"),
        ([{"glu": {"hidden": 4, "name": "one"}}, {"glu": {"hidden": 6, "tie": "one"}}], "S116"),
        ([{"former": {"mask": "full"}}, {"former": {"mask": "causal"}}], "S109"),
    ],
)  # fmt: skip
def test_a_tie_that_cannot_be_has_a_code(steps: list[Any], code: str) -> None:
    assert set(codes(steps)) == {code}


def test_two_calls_of_one_name_are_told_of_tie() -> None:
    with pytest.raises(SpecError, match="tie: NAME"):
        model([{"former": {"mask": "full"}}, {"former": {"mask": "causal"}}])


def test_a_report_counts_shared_weights_once() -> None:
    program = model([*TWICE, *VIEWS["a call of one name"][0]])
    card = model_data(program, SIZES, 10)
    assert sum(b["params"] * b["times"] for b in card["blocks"]) == card["params"] == 3 * 4 * 64


TWO_VIEWS = """specc: 1
model:
  dims: {D: 16, V: 300}
  inputs: {tokens: 'int[B S]', labels: 'int[B S]', gain: 'float[B D]'}
  blocks:
    layer:
      args: {mask: mask}
      in: {x: [B S D]}
      steps: [{attention: {heads: 2, head_dim: 8, mask: mask}}, {expr: x + _}]
    former:
      args: {mask: mask}
      in: {x: [B S D]}
      steps: [{repeat: {block: layer, times: 2, args: {mask: mask}, name: layers}}]
  steps:
    - embedding: {rows: V, out: D, from: tokens, name: embed, as: x}
    - former: {mask: causal, as: a}
    - former: {mask: chunk(4), tie: former, name: second, from: x}
    - expr: a * _ + gain
    - linear: {out: V, name: head, as: logits}
    - cross_entropy: {from: [logits, labels], as: loss}
  loss: loss
stages:
  pretrain:
    data: {sources: [{corpus: python-stdlib}], seq_len: 16, limit: 20}
    tokenizer: {vocab: 300}
    batch: {sequences: 4}
    budget: {steps: 2}
"""


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("plan", ["{mesh: {tp: 2}}", "{mesh: {dp: 2}, zero: 3}", "{mesh: {pp: 2}}"])
def test_tied_calls_on_a_mesh_are_those_of_one_process(
    plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two.yaml").write_text(f"{TWO_VIEWS}plan: {plan}\n")
    assert main(["verify", str(tmp_path / "two.yaml"), "--ranks", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["worst"] < 1e-12
    assert len(found["grads"]) == 10
