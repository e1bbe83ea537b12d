"""Low-rank adapters (LoRA): `lora:` of a model, stages that train them, and what is exported."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from specc.compiler.build import lower
from specc.compiler.cost import n_params
from specc.compiler.elaborate import elaborate_model
from specc.compiler.foresight.flops import step_flops
from specc.compiler.foresight.memory import memories
from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.work import work_of
from specc.compiler.hardware.tables import hardware
from specc.compiler.passes.prune import prune
from specc.compiler.placement.options import Options
from specc.compiler.placement.place import place
from specc.compiler.placement.types import Mesh
from specc.compiler.program import Program
from specc.compiler.schedule.actions import one_rank
from specc.runtime.adapters import merged
from specc.runtime.executor import Executor
from specc.spec.errors import SpecError
from specc.spec.model import ModelSpec
from specc.spec.spec import library_model
from tests.parity.case import body_as_it_is

SIZES = {"B": 2, "S": 8}
DIMS = {"D": 16, "L": 2, "H": 4, "K": 2, "F": 24, "V": 64}
LAYERS = {"rank": 4, "alpha": 8, "match": ["layers.*.attention.*", "layers.*.glu.*"]}


def llama(lora: dict[str, Any] | None = None, **sections: Any) -> ModelSpec:
    """The library's, in small."""
    written = library_model("llama", **DIMS).model_dump(by_alias=True)
    return ModelSpec.model_validate({**written, "lora": lora, **sections})


def adapted(lora: dict[str, Any] | None = None, **sections: Any) -> Program:
    return elaborate_model(llama({**LAYERS, **(lora or {})}, **sections), "m")


def mistakes(model: ModelSpec) -> list[tuple[str, str, str]]:
    with pytest.raises(SpecError) as caught:
        elaborate_model(model, "m")
    return [(d.code, d.message, d.hint) for d in caught.value.diagnostics]


def values(program: Program) -> dict[str, Tensor]:
    """Drawn parameters; no B is zero."""
    draw = torch.Generator().manual_seed(0)
    return {
        n: torch.randn(p.type.shape({}), generator=draw, dtype=torch.float64) / 4 + (p.init.kind == "ones")
        for n, p in program.params.items()
    }


def batch() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    tokens, labels = torch.randint(0, DIMS["V"], (2, *SIZES.values()), generator=draw)
    pos = torch.arange(SIZES["S"]).expand_as(tokens).contiguous()
    return {"tokens": tokens, "labels": labels, "doc": torch.zeros_like(tokens), "pos": pos}


Step = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def step_of(program: Program) -> Step:
    """A function of parameters and of further inputs that gives loss and gradients."""
    program = prune(program, [])
    graphs, calls = lower(program, SIZES, torch.float64)
    bodies = {n: body_as_it_is(g) for n, g in graphs.items()}
    actions = one_rank(len(calls), 1, {i for i, c in enumerate(calls) if graphs[c.body].bwd is not None})
    assert program.loss
    run = Executor(calls, bodies, actions, program.loss, {}, program.trainable, torch.float64)

    def step(params: dict[str, Tensor], **more: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        result = run.step(params, [{n: x for n, x in {**batch(), **more}.items() if n in program.inputs}], [1.0])
        return result.losses[0], result.grads

    return step


def plain(program: Program, p: dict[str, Tensor]) -> Tensor:
    """The loss of Llama in plain torch; a product has its adapter beside it, as PEFT's modules have."""
    scales = {a.weight: a.scale for a in program.adapters}

    def product(path: str, x: Tensor, ins: int = 1) -> Tensor:
        def times(x: Tensor, w: Tensor, ins: int) -> Tensor:
            return torch.tensordot(x, w, ins)

        y = times(x, p[f"{path}.weight"], ins)
        if f"{path}.weight" not in scales:
            return y
        low = times(x, p[f"{path}.lora_a.weight"], ins)
        return y + times(low, p[f"{path}.lora_b.weight"], 1) * scales[f"{path}.weight"]

    def norm(path: str, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], p[f"{path}.weight"], 1e-5)

    given = batch()
    x, half = p["embed.weight"][given["tokens"]], DIMS["D"] // DIMS["H"] // 2
    angles = given["pos"][0, :, None].double() * 1e4 ** (-torch.arange(half).double() / half)
    cos, sin = (f(angles)[:, None].repeat(1, 1, 2) for f in (torch.cos, torch.sin))

    def turned(x: Tensor) -> Tensor:
        return (x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin).transpose(1, 2)

    for n in range(DIMS["L"]):
        at = f"layers.{n}"
        h = norm(f"{at}.attention_norm", x)
        q, k, v = (product(f"{at}.attention.{name}", h) for name in ("q", "k", "v"))
        seen = F.scaled_dot_product_attention(turned(q), turned(k), v.transpose(1, 2), is_causal=True, enable_gqa=True)
        x = x + product(f"{at}.attention.out", seen.transpose(1, 2), 2)
        h = norm(f"{at}.glu_norm", x)
        x = x + product(f"{at}.glu.down", F.silu(product(f"{at}.glu.gate", h)) * product(f"{at}.glu.up", h))
    logits = product("head", norm("norm", x))
    return F.cross_entropy(logits.flatten(0, 1), given["labels"].flatten())


@pytest.mark.parametrize("lora", [{}, {"rslora": True, "rank": 3}, {"match": ["layers.1.*", "head.*"]}], ids=str)
def test_loss_and_gradients_are_those_of_plain_torch(lora: dict[str, Any]) -> None:
    program = adapted(lora)
    params = values(program)
    trained = {n: params[n].requires_grad_() for n in params if n in program.trainable}
    assert set(trained) == {p for a in program.adapters for p in (a.a, a.b)}
    want = plain(program, params)
    grads = torch.autograd.grad(want, list(trained.values()))
    loss, found = step_of(program)({n: p.detach() for n, p in params.items()})
    torch.testing.assert_close(loss, want.detach(), rtol=1e-12, atol=1e-12)
    assert set(found) == set(trained)
    for path, grad in zip(trained, grads, strict=True):
        torch.testing.assert_close(found[path], grad, rtol=1e-9, atol=1e-11)


def test_only_adapters_are_trained_and_what_train_names() -> None:
    program = adapted(train=["norm.*"])
    factors = {p for p in program.params if ".lora_" in p}
    assert len(factors) == 2 * 2 * 7
    assert program.trainable == factors | {"norm.weight"}
    assert [c.body for c in program.calls] == ["stem", "layers", "layers", "head"]
    a, b = program.params["layers.0.attention.out.lora_a.weight"], program.params["layers.1.glu.down.lora_b.weight"]
    assert str(a.type) == "float[H E 4]"
    assert str(a.init) == "uniform low=-0.25 high=0.25"  # kaiming_uniform_(a=5**0.5): 1 / in**0.5
    assert (str(b.type), str(b.init)) == ("float[4 D]", "zeros")


def test_patterns_may_choose_among_the_tiles_of_a_repeat() -> None:
    program = adapted({"match": ["layers.1.attention.q.*"]})
    assert [a.weight for a in program.adapters] == ["layers.1.attention.q.weight"]
    assert [c.body for c in program.calls] == ["stem", "layers", "layers_1", "head"]


@pytest.mark.parametrize(
    ("pattern", "message", "hint"),
    [
        ("layer.*.attention.*", "no linear weight matches 'layer.*.attention.*'", "did you mean 'layers."),
        ("embed.*", "'embed.weight' is no weight of a `linear` of its own", "are layers.0.attention.q.weight, "),
    ],
)
def test_a_pattern_that_matches_no_linear_weight_is_a_mistake(pattern: str, message: str, hint: str) -> None:
    [(code, said, told)] = mistakes(llama({**LAYERS, "match": [pattern]}))
    assert code == "S108"
    assert message in said
    assert hint in told


def test_a_weight_that_another_step_shares_has_no_adapter() -> None:
    steps = [
        {"linear": {"out": "D", "name": "first", "from": "x"}},
        {"linear": {"out": "D", "tie": "first", "name": "second"}},
    ]
    written = {"dims": {"D": 8}, "inputs": {"x": "float[B S D]"}, "steps": steps}
    for match, code in (("first.*", "S117"), ("second.*", "S108")):
        lora = {"rank": 2, "alpha": 2, "match": [match]}
        assert [m[0] for m in mistakes(ModelSpec.model_validate({**written, "lora": lora}))] == [code]


KINDS: dict[str, dict[str, Any]] = {
    "weights by an attribute": {
        "inputs": {"x": "float[B S D]"}, "attributes": {"modality": "int[B S]"},
        "steps": [
            {"linear": {"out": [2, 3], "bias": True, "name": "wide", "per": {"by": "modality", "of": ["a", "b"]}}},
        ],
    },
    "experts": {
        "inputs": {"x": "float[B S D]"},
        "steps": [{"moe": {"experts": 4, "top_k": 2, "hidden": 12, "name": "moe", "shared": 6}}],
    },
    "tied calls": {
        "inputs": {"x": "float[B S D]"},
        "steps": [
            {"glu": {"hidden": 12, "name": "one"}},
            {"repeat": {"block": "again", "times": 2}},
        ],
        "blocks": {"again": {"in": {"x": "[B S D]"}, "steps": [{"glu": {"hidden": 12, "tie": "one"}}]}},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_compute_what_adapters_do(kind: str) -> None:
    written = {"dims": {"D": 8}, **KINDS[kind]}
    written["steps"] = [*written["steps"], {"expr": "square(_)"}, {"mean": {}, "as": "loss"}]
    lora = {"rank": 3, "alpha": 2, "match": ["*"]}
    program, plain = (
        elaborate_model(ModelSpec.model_validate({**written, "loss": "loss", "lora": x}), "m") for x in (lora, None)
    )
    assert program.adapters
    params = values(program)
    shapes = {n: p.type.shape({}) for n, p in program.params.items()}
    whole = merged(params, program.adapters, shapes)
    assert set(whole) == set(plain.params)
    draw = torch.Generator().manual_seed(2)
    given = {"x": torch.randn(2, 8, 8, generator=draw, dtype=torch.float64),
             "modality": torch.randint(0, 2, (2, 8), generator=draw)}  # fmt: skip
    of_plain = step_of(plain)
    loss, want = step_of(program)(params, **given)[0], of_plain(whole, **given)[0]
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(of_plain({n: params[n] for n in whole}, **given)[0], want, rtol=1e-3)


def test_all_weights_by_an_attribute_have_adapters_or_none() -> None:
    written = {"dims": {"D": 8}, **KINDS["weights by an attribute"]}
    lora = {"rank": 3, "alpha": 2, "match": ["wide.a.*"]}
    [(code, said, _)] = mistakes(ModelSpec.model_validate({**written, "lora": lora}))
    assert code == "S117"
    assert said == "'wide.a' has an adapter and 'wide.b' has none, and one product takes both"


def test_dropout_acts_on_what_adapters_see_alone() -> None:
    program, still = adapted({"dropout": 0.5}), adapted()
    params = values(program)
    assert program.inputs["key"] == program.inputs["tokens"].with_dims(program.inputs["tokens"].dims[0])
    step, plainly = step_of(program), step_of(still)
    off, on = (step(params, key=key)[0] for key in (torch.full((2,), -1), torch.arange(2)))
    torch.testing.assert_close(off, plainly(params)[0], rtol=1e-12, atol=0)
    assert abs(float(on - off)) > 1e-6
    zeros = params | {a.b: torch.zeros_like(params[a.b]) for a in program.adapters}
    assert torch.equal(step(zeros, key=torch.arange(2))[0], plainly(zeros)[0])


def test_before_the_first_step_the_model_is_as_it_was() -> None:
    program, bare = adapted(), elaborate_model(llama(), "m")
    params = values(program)
    zeros = params | {a.b: torch.zeros_like(params[a.b]) for a in program.adapters}
    assert torch.equal(step_of(program)(zeros)[0], step_of(bare)({n: params[n] for n in bare.params})[0])


def test_plans_count_neither_gradients_nor_moments_of_frozen_weights() -> None:
    software = hardware().software["specc"]
    for model, narrow in ((llama(LAYERS), True), (llama(train=["norm.*", "head.*"]), False)):
        program = prune(elaborate_model(model, "m"), [])
        works = work_of(place(program, Mesh(()), SIZES, Options()))
        [found] = memories(works, [[c.body for c in program.calls]], Recipe(), software)
        trained, whole = n_params(program, trainable=True), n_params(program)
        assert found["weights"] == 2 * whole
        assert found["gradients"] == 4 * trained
        assert found["optimizer"] == 12 * trained + (0 if narrow else 4 * (whole - trained))


def test_flops_of_a_step_leave_gradients_of_frozen_weights_out() -> None:
    """6 a token and number of what is trained, 4 of what is not."""
    bare, program = (prune(elaborate_model(llama(x), "m"), []) for x in (None, LAYERS))
    full, tuned = (step_flops(p, SIZES).full for p in (bare, program))
    tokens, factors = math.prod(SIZES.values()), n_params(program, trainable=True)
    products = sum(p.type.numel({}) for n, p in bare.params.items() if len(p.type.dims) > 1 and n != "embed.weight")
    assert full - tuned == 2 * tokens * products - 6 * tokens * factors
