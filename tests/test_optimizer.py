"""Schedules to the last digit, groups, clipping, and each optimizer against its formula."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from specc.compiler.build import build_spec
from specc.compiler.moments import Matrix
from specc.runtime.commands.check import check_file
from specc.runtime.optimizer import Updater, clip, groups, learning_rate
from specc.spec.errors import SpecError
from specc.spec.optimizer import SGD, Lion, Optimizer, OptimizerSpec, ParamGroup
from specc.spec.spec import load
from specc.spec.stage import Schedule

TWO_HEADS = """specc: 1
model:
  dims: {D: 8, V: 300}
  inputs: {tokens: "int[B S]", labels: "int[B S]"}
  steps:
  - embedding: {rows: V, out: D, name: embed, from: tokens, as: x}
  - linear: {out: V, name: other, as: more}
  - linear: {out: V, name: head, from: x, as: logits}
  - cross_entropy: {from: [logits, labels], as: loss}
  outputs: {more: more}
  loss: loss
stages:
  pre:
    data: {sources: [{corpus: python-stdlib}]}
    tokenizer: {vocab: 300}
    budget: {steps: 3}
    optimizer:
      no_decay: [embed.*, other.*]
"""


def optimizer(settings: Mapping[str, object]) -> OptimizerSpec:
    return TypeAdapter[OptimizerSpec](OptimizerSpec).validate_python(settings)


def rates(steps: int, **settings: object) -> list[float]:
    schedule = Schedule.model_validate(settings)
    return [learning_rate(schedule, 2.0, step, steps) for step in range(steps)]


def test_warmup_rises_to_the_base_in_its_last_step() -> None:
    assert rates(6, kind="constant", warmup=4) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert rates(8, kind="constant", warmup=0.5) == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    assert rates(3, kind="constant", warmup=0) == [2.0] * 3


def test_linear() -> None:
    assert rates(5, kind="linear", warmup=1, final=0.5) == [2.0, 2.0, 1.75, 1.5, 1.25]
    assert rates(4, kind="linear", warmup=0, final=0) == [2.0, 1.5, 1.0, 0.5]


def test_cosine() -> None:
    found = rates(8, kind="cosine", warmup=0, final=0.1)
    assert found[0] == 2.0
    assert found[4] == pytest.approx(2.0 * 0.55, abs=1e-15)  # half-way between 1 and 0.1
    assert found == pytest.approx([2 * (0.1 + 0.45 * (1 + math.cos(math.pi * i / 8))) for i in range(8)], abs=1e-15)


def test_wsd_stays_and_then_falls_over_the_last_share_of_all_steps() -> None:
    assert rates(10, kind="wsd", warmup=2, final=0, decay=0.4) == pytest.approx(
        [1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.0, 0.5], abs=1e-15
    )
    assert rates(4, kind="wsd", warmup=0, final=0.5, decay=0) == [2.0] * 4


def test_inverse_sqrt_falls_from_the_end_of_its_warmup() -> None:
    """arXiv:1706.03762, eq. 3, whose rate at the end of the warmup is 2 here."""
    w = 4
    paper = [min((n + 1) ** -0.5, (n + 1) * w**-1.5) for n in range(16)]
    assert rates(16, kind="inverse_sqrt", warmup=w) == pytest.approx([2 * x / paper[w - 1] for x in paper], rel=1e-14)
    assert rates(4, kind="inverse_sqrt", warmup=0) == pytest.approx([2, 2**0.5, 2 / 3**0.5, 1], rel=1e-14)


PARAMS = {
    "embed.weight": torch.zeros(4, 2), "layers.0.norm.weight": torch.zeros(2), "layers.0.up.weight": torch.zeros(2, 3),
    "layers.0.up.bias": torch.zeros(3), "head.weight": torch.zeros(2, 4),
    "layers.0.q.bias": torch.zeros(2, 3),
}  # fmt: skip


def settings_of(spec: Optimizer) -> dict[str, tuple[float, float]]:
    return {p: (g.lr_scale, g.weight_decay) for g in groups(spec, PARAMS) for p in g.paths}


def test_norms_and_biases_do_not_decay() -> None:
    assert settings_of(Optimizer(no_decay=["embed.*"])) == {
        "embed.weight": (1, 0), "layers.0.norm.weight": (1, 0), "layers.0.up.weight": (1, 0.1),
        "layers.0.up.bias": (1, 0), "head.weight": (1, 0.1), "layers.0.q.bias": (1, 0),
    }  # fmt: skip


def test_the_first_group_that_matches_counts() -> None:
    chosen = [ParamGroup(match="*.bias", weight_decay=0.3), ParamGroup(match="layers.*", lr_scale=0.5)]
    assert settings_of(Optimizer(groups=chosen)) == {
        "embed.weight": (1, 0.1), "layers.0.norm.weight": (0.5, 0), "layers.0.up.weight": (0.5, 0.1),
        "layers.0.up.bias": (1, 0.3), "head.weight": (1, 0.1), "layers.0.q.bias": (1, 0.3),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "hint"), [
    ("optimizer_of_frozen_parameters", "it matches what the model freezes (embed.weight): remove it"),
    ("optimizer_group_of_adapted_weights", "it matches what the model freezes (layers.0.glu.down.weight): remove it"),
    ("muon_leaves_to_adamw_what_it_has", "adamw updates vectors, tables and heads anyway: remove it"),
    ("optimizer_is_a_kind", "{kind: muon}"),
])  # fmt: skip
def test_a_section_without_effect_says_what_to_do(name: str, hint: str) -> None:
    with pytest.raises(SpecError) as found:
        check_file(Path(__file__).parent / "broken" / f"{name}.yaml", [])
    assert [d.hint for d in found.value.diagnostics] == [hint]


def test_a_pattern_of_what_the_loss_does_not_need_is_one_of_nothing(tmp_path: Path) -> None:
    """A stage trains what its loss needs, and not the head of another output."""
    spec = tmp_path / "two.yaml"
    spec.write_text(TWO_HEADS)
    with pytest.raises(SpecError) as found:
        build_spec(load(spec), tmp_path / "build")
    assert [(d.code, d.mark and d.mark.line) for d in found.value.diagnostics] == [("S108", 18)]
    assert found.value.diagnostics[0].hint == "it matches what the loss does not need (other.weight): remove it"


def test_adamw_follows_its_formula() -> None:
    """Algorithm 2 of arXiv:1711.05101, in fp64, with one group at half the rate."""
    g = torch.Generator().manual_seed(0)
    start = {n: torch.randn(3, 2, generator=g, dtype=torch.float64) for n in ("a", "b")}
    grads = [{n: torch.randn(3, 2, generator=g, dtype=torch.float64) for n in start} for _ in range(5)]
    spec = Optimizer(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, groups=[ParamGroup(match="b", lr_scale=0.5)])
    params = {n: t.clone() for n, t in start.items()}
    optimizer = Updater(spec, params)
    for t, given in enumerate(grads):
        optimizer.step(given, 0.1 / (t + 1))
    for name, scale in (("a", 1.0), ("b", 0.5)):
        w, m, v = start[name], torch.zeros(3, 2).double(), torch.zeros(3, 2).double()
        for t, given in enumerate(grads, 1):
            lr = scale * 0.1 / t
            m = 0.9 * m + 0.1 * given[name]
            v = 0.95 * v + 0.05 * given[name] ** 2
            w = w - lr * (0.1 * w + m / (1 - 0.9**t) / ((v / (1 - 0.95**t)).sqrt() + 1e-8))
        torch.testing.assert_close(params[name], w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lion_follows_its_formula(dtype: torch.dtype) -> None:
    """Algorithm 2 of arXiv:2302.06675, 20 steps."""
    g = torch.Generator().manual_seed(0)
    w, m = torch.randn(5, 3, generator=g, dtype=torch.float64).to(dtype), torch.zeros(5, 3, dtype=dtype)
    params = {"w": w.clone()}
    ours = Updater(Lion(kind="lion", betas=(0.9, 0.97), weight_decay=0.3), params)
    for t in range(1, 21):
        grad, lr = torch.randn(5, 3, generator=g, dtype=torch.float64).to(dtype), 0.01 / t
        w = w - lr * ((0.9 * m + 0.1 * grad).sign() + 0.3 * w)
        m = 0.97 * m + 0.03 * grad
        ours.step({"w": grad}, lr)
    limit = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(params["w"], w, rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_that_of_torch(momentum: float, nesterov: bool, dtype: torch.dtype) -> None:
    """20 steps; decay apart from the gradients is a decay of torch's weights before its step."""
    g = torch.Generator().manual_seed(0)
    start = torch.randn(5, 3, generator=g, dtype=torch.float64).to(dtype)
    params, theirs = {"w": start.clone()}, torch.nn.Parameter(start.clone())
    ours = Updater(SGD(kind="sgd", momentum=momentum, nesterov=nesterov, weight_decay=0.2), params)
    oracle = torch.optim.SGD([theirs], lr=1.0, momentum=momentum, nesterov=nesterov)
    for t in range(1, 21):
        grad, lr = torch.randn(5, 3, generator=g, dtype=torch.float64).to(dtype), 0.1 / t
        oracle.param_groups[0]["lr"], theirs.grad = lr, grad.clone()
        with torch.no_grad():
            theirs.mul_(1 - lr * 0.2)
        oracle.step()
        ours.step({"w": grad}, lr)
    limit = 1e-12 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(params["w"], theirs.detach(), rtol=limit, atol=limit)


@pytest.mark.parametrize("kind", ["lion", "sgd"])
def test_scales_and_decays_count_for_every_kind(kind: str) -> None:
    """Without gradients weights decay alone, by rate and scale."""
    groups = [{"match": "head.*", "lr_scale": 0.5, "weight_decay": 0.1}]
    spec = optimizer({"kind": kind, "weight_decay": 0.5, "no_decay": ["embed.*"], "groups": groups})
    params = {n: torch.ones_like(t) for n, t in PARAMS.items()}
    Updater(spec, params).step({n: torch.zeros_like(t) for n, t in PARAMS.items()}, 0.1)
    found = {n: float(t.flatten()[0]) for n, t in params.items()}
    assert found == pytest.approx({
        "embed.weight": 1, "layers.0.norm.weight": 1, "layers.0.up.weight": 0.95, "layers.0.up.bias": 1,
        "head.weight": 1 - 0.05 * 0.1, "layers.0.q.bias": 1,
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["adamw", "muon", "lion", "sgd"])
def test_every_kind_goes_on_from_its_state_bit_by_bit(kind: str) -> None:
    def grads(step: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(step)
        return {n: torch.randn(t.shape, generator=g) for n, t in PARAMS.items()}

    spec, matrices = optimizer({"kind": kind}), {"layers.0.up.weight": Matrix((), (0,), (1,))}
    one = {n: t.clone() for n, t in PARAMS.items()}
    first = Updater(spec, one, matrices=matrices)
    for step in range(3):
        first.step(grads(step), 0.01)
    two = {n: t.clone() for n, t in one.items()}
    second = Updater(spec, two, matrices=matrices)
    second.load({n: t.clone() for n, t in first.state().items()})
    for step in range(3, 6):
        first.step(grads(step), 0.01)
        second.step(grads(step), 0.01)
    assert all(torch.equal(one[n], two[n]) for n in one)
    kept = {n for n in first.state() if not n.startswith("step/")}
    per = {"adamw": 2, "lion": 1, "sgd": 1}
    assert len(kept) == (2 * len(PARAMS) - 1 if kind == "muon" else per[kind] * len(PARAMS))


@pytest.mark.parametrize("kind", ["adamw", "muon", "lion", "sgd"])
def test_moments_on_the_host_change_nothing(kind: str) -> None:
    made = [{n: torch.ones_like(t) for n, t in PARAMS.items()} for _ in range(2)]
    matrices = {"layers.0.up.weight": Matrix((), (0,), (1,))}
    both = [Updater(optimizer({"kind": kind}), p, bool(i), matrices) for i, p in enumerate(made)]
    for step in range(3):
        for each in both:
            each.step({n: torch.full_like(t, step - 0.5) for n, t in PARAMS.items()}, 0.01)
    assert all(torch.equal(x, made[1][n]) for n, x in made[0].items())
    assert both[0].state().keys() == both[1].state().keys()


def test_a_gradient_in_another_order_of_memory_is_the_same_gradient() -> None:
    """That of a tied head, say, which is a transpose."""
    g = torch.Generator().manual_seed(0)
    start, grad = torch.randn(30, 20, generator=g), torch.randn(20, 30, generator=g)
    params = [{"a": start.clone()} for _ in range(2)]
    Updater(Optimizer(), params[0]).step({"a": grad.t()}, 0.1)
    Updater(Optimizer(), params[1]).step({"a": grad.t().contiguous()}, 0.1)
    assert torch.equal(params[0]["a"], params[1]["a"])


def test_the_state_goes_into_another_optimizer_bit_by_bit() -> None:
    def grads(step: int) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(step)
        return {n: torch.randn(t.shape, generator=g) for n, t in PARAMS.items()}

    spec = Optimizer(groups=[ParamGroup(match="head.*", lr_scale=2)])
    one = {n: t.clone() for n, t in PARAMS.items()}
    first = Updater(spec, one)
    for step in range(3):
        first.step(grads(step), 0.01)
    two = {n: t.clone() for n, t in one.items()}
    second = Updater(spec, two)
    second.load(first.state())
    for step in range(3, 6):
        first.step(grads(step), 0.01)
        second.step(grads(step), 0.01)
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert all(torch.equal(t, second.state()[n]) for n, t in first.state().items())


def test_clipping_is_by_the_norm_of_all() -> None:
    grads = {"a": torch.full((2, 2), 3.0), "b": torch.full((7,), 4.0)}
    norm = math.sqrt(4 * 9 + 7 * 16)
    assert clip(dict(grads), 1e9) == pytest.approx(norm)
    assert float(grads["a"][0, 0]) == 3.0
    assert clip(grads, 2.0) == pytest.approx(norm)
    assert math.sqrt(sum(float(g.square().sum()) for g in grads.values())) == pytest.approx(2.0, rel=1e-6)
    assert math.isnan(clip({"a": torch.tensor([1.0, math.nan])}, 1.0))
    assert clip({"a": torch.tensor([1.0, math.inf])}, 1.0) == math.inf
