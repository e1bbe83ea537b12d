"""Muon: which weights are matrices, its update against torch's, and meshes against one process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from specc.compiler.elaborate import elaborate
from specc.compiler.moments import Matrix, orthogonalised
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.program import Program
from specc.runtime.muon import orthogonal
from specc.runtime.optimizer import Updater
from specc.spec.optimizer import Muon, ParamGroup
from specc.spec.spec import Spec

PLAIN = Matrix((), (0,), (1,))


def program(model: str, *changes: str) -> Program:
    return prune(elaborate(Spec.from_yaml(f"specc: 1\nuse: models/{model}\n").changed(*changes)), [])


def matrices(model: str, *changes: str, **settings: object) -> dict[str, Matrix]:
    spec = Muon.model_validate({"kind": "muon", **settings})
    return orthogonalised(spec, fuse_linear_cross_entropy(program(model, *changes)))


def test_matrices_are_inputs_times_results_by_the_roles_of_the_op() -> None:
    found = {p: m for p, m in matrices("llama").items() if p.startswith("layers.0.")}
    assert found == {
        "layers.0.attention.q.weight": Matrix((), (0,), (1, 2)),
        "layers.0.attention.k.weight": Matrix((), (0,), (1, 2)),
        "layers.0.attention.v.weight": Matrix((), (0,), (1, 2)),
        "layers.0.attention.out.weight": Matrix((), (0, 1), (2,)),
        "layers.0.glu.gate.weight": PLAIN, "layers.0.glu.up.weight": PLAIN, "layers.0.glu.down.weight": PLAIN,
    }  # fmt: skip


def test_experts_are_matrices_of_their_own() -> None:
    found = matrices("mixtral")
    assert found["layers.0.moe.experts.up.weight"] == Matrix((0,), (1,), (2,))
    assert found["layers.0.moe.experts.up.weight"].sizes((8, 4, 6)) == (8, 6, 4)


def test_weights_by_attribute_are_matrices_each() -> None:
    found = matrices("cogvlm_expert")
    assert found["layers.0.attention.out.image.weight"] == Matrix((), (0, 1), (2,))


@pytest.mark.parametrize("model", ["llama", "gpt2", "t5", "bert", "mixtral", "vit"])
def test_tables_heads_vectors_and_what_is_named_are_no_matrices(model: str) -> None:
    """A head that is tied to a table, or that is not fused with its loss, too."""
    whole = program(model)
    found = set(orthogonalised(Muon(kind="muon"), whole))
    assert found == set(matrices(model))
    left = {p.partition("layers.")[2].partition(".")[2] or p for p in whole.params if p not in found}
    few = {p for p in left if not p.endswith(("bias", "norm.weight"))}
    assert all(whole.params[p].type.shape({})[-1] > 0 for p in found)
    assert few <= {
        "embed.weight", "positions.weight", "head.weight", "encoder_bias.weight", "decoder_bias.weight", "class_token",
        "positions", "segments.weight",
    }  # fmt: skip


def test_what_adamw_is_to_update_is_no_matrix() -> None:
    assert not [p for p in matrices("mixtral", adamw=["*.router.*"]) if "router" in p]


def test_a_weight_in_another_order_of_dims_is_the_same_matrix() -> None:
    spec = Spec.from_yaml("""
specc: 1
model:
  dims: {D: 4, F: 6}
  inputs: {x: "float[B D]", y: "float[B D]"}
  steps:
  - linear: {out: F, from: x, name: up}
  - linear: {out: D, tie: up.weight}
  - {expr: (_ - y) ** 2}
  - mean: {as: loss}
  loss: loss
""")
    assert orthogonalised(Muon(kind="muon"), elaborate(spec)) == {"up.weight": PLAIN}


def test_singular_values_come_near_one() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(3, 40, 24, generator=g, dtype=torch.float64)
    found = torch.linalg.svdvals(orthogonal(x.clone(), 5))
    assert float(found.min()) > 0.5
    assert float(found.max()) < 1.3
    flipped = orthogonal(x.mT.clone(), 5)
    torch.testing.assert_close(flipped.mT, orthogonal(x.clone(), 5), rtol=1e-12, atol=1e-14)


@contextmanager
def as_wide_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's Muon rounds to bf16 before it iterates; here it does not."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
        yield


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("shape", "matrix"), [
    ((12, 20), PLAIN), ((20, 3, 4), Matrix((), (0,), (1, 2))), ((3, 4, 20), Matrix((), (0, 1), (2,))),
    ((6, 5, 3, 3), Matrix((), (1, 2, 3), (0,))),
])  # fmt: skip
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize(("nesterov", "dtype", "limit"), [
    (True, torch.float64, 1e-12), (False, torch.float64, 1e-12), (True, torch.float32, 3e-5),
])  # fmt: skip
def test_muon_is_that_of_torch(
    shape: tuple[int, ...], matrix: Matrix, adjust: str, nesterov: bool, dtype: torch.dtype, limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """30 steps at changing rates; torch's weights are [results inputs]."""
    spec = Muon.model_validate({"kind": "muon", "adjust_lr": adjust, "nesterov": nesterov, "weight_decay": 0.2})
    order = (*matrix.outs, *matrix.ins)
    params = {"w": drawn(shape, 0, dtype)}
    _, rows, columns = matrix.sizes(shape)
    theirs = torch.nn.Parameter(params["w"].permute(order).reshape(rows, columns).clone())
    ours = Updater(spec, params, matrices={"w": matrix}, dtype=dtype)
    oracle = torch.optim.Muon([theirs], lr=1.0, weight_decay=0.2, momentum=0.95, nesterov=nesterov, adjust_lr_fn=adjust)
    with as_wide_as_it_comes(monkeypatch):
        for step in range(30):
            grad, lr = drawn(shape, step + 1, dtype), 0.1 / (step + 1)
            theirs.grad = grad.permute(order).reshape(rows, columns).clone()
            oracle.param_groups[0]["lr"] = lr
            oracle.step()
            ours.step({"w": grad}, lr)
    found, expected = params["w"].permute(order).reshape(rows, columns), theirs.detach()
    assert float((found - expected).abs().max() / expected.abs().max()) < limit


def test_products_in_bf16_are_those_of_torch() -> None:
    params = {"w": drawn((24, 40), 0, torch.float32)}
    theirs = torch.nn.Parameter(params["w"].T.clone())
    ours = Updater(Muon(kind="muon", adjust_lr="original"), params, matrices={"w": PLAIN}, dtype=torch.bfloat16)
    oracle = torch.optim.Muon([theirs], lr=0.02)
    before = params["w"].clone()
    for step in range(10):
        grad = drawn((24, 40), step + 1, torch.float32)
        theirs.grad = grad.T.clone()
        oracle.step()
        ours.step({"w": grad}, 0.02)
    moved = float((params["w"] - before).norm())
    assert float((params["w"] - theirs.detach().T).norm()) < 0.01 * moved


def test_each_expert_is_a_matrix_by_itself() -> None:
    matrix = Matrix((0,), (1,), (2,))
    whole = {"w": drawn((3, 5, 4), 0, torch.float64)}
    parts = {f"w{i}": x.clone() for i, x in enumerate(whole["w"])}
    spec = Muon(kind="muon")
    ours = Updater(spec, whole, matrices={"w": matrix}, dtype=torch.float64)
    each = Updater(spec, parts, matrices=dict.fromkeys(parts, PLAIN), dtype=torch.float64)
    for step in range(3):
        grad = drawn((3, 5, 4), step + 1, torch.float64)
        each.step({f"w{i}": x.clone() for i, x in enumerate(grad)}, 0.1)
        ours.step({"w": grad}, 0.1)
    torch.testing.assert_close(whole["w"], torch.stack(list(parts.values())), rtol=1e-12, atol=1e-12)


def test_scales_and_decays_of_groups_count_and_adamw_has_its_own_rate() -> None:
    spec = Muon(
        kind="muon", lr=0.1, adamw_lr=0.01, weight_decay=0.5, no_decay=["b"],
        groups=[ParamGroup(match="c", lr_scale=0.5, weight_decay=0.1)],
    )  # fmt: skip
    params = {n: torch.ones(2, 3, dtype=torch.float64) for n in "abcd"}
    ours = Updater(spec, params, matrices=dict.fromkeys("abc", PLAIN), dtype=torch.float64)
    ours.step({n: torch.zeros(2, 3, dtype=torch.float64) for n in "abcd"}, 0.1)
    expected = {"a": 1 - 0.1 * 0.5, "b": 1.0, "c": 1 - 0.05 * 0.1, "d": 1 - 0.01 * 0.5}
    assert {n: float(p[0, 0]) for n, p in params.items()} == pytest.approx(expected, rel=1e-14)


def test_parameters_of_one_shape_go_in_batches_of_a_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(at_once: int) -> dict[str, Tensor]:
        monkeypatch.setattr("specc.compiler.moments.AT_ONCE", at_once)
        params = {f"w{i}": drawn((4, 6), i, torch.float64) for i in range(5)}
        ours = Updater(Muon(kind="muon"), params, matrices=dict.fromkeys(params, PLAIN), dtype=torch.float64)
        assert len(ours.units) == math.ceil(5 / max(1, at_once // 24))
        ours.step({n: drawn((4, 6), 9 + i, torch.float64) for i, n in enumerate(params)}, 0.1)
        return params

    few, all_ = trained(48), trained(1 << 20)
    for n, p in few.items():
        torch.testing.assert_close(p, all_[n], rtol=1e-13, atol=1e-13)
