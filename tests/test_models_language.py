"""Claims about what the models of images need of the language."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from specc.compiler.build import lower
from specc.compiler.elaborate import elaborate_model
from specc.compiler.lower.bodies import variants
from specc.compiler.lower.run import run_program
from specc.compiler.ops.pointwise import FUNCTIONS
from specc.compiler.program import Program
from specc.compiler.schedule.actions import one_rank
from specc.runtime.executor import Executor
from specc.runtime.init import initial
from specc.spec.errors import SpecError
from specc.spec.model import ModelSpec
from tests.parity.case import body_as_it_is


def model(**sections: Any) -> Program:
    return elaborate_model(ModelSpec.model_validate(sections), "m")


def test_rearrange_gives_its_result_the_dims_that_a_step_names() -> None:
    step = {"rearrange": {"pattern": "b (h w) -> (b h) w", "dims": {"w": 3}, "as_dims": ["N", "W"]}}
    program = model(dims={"B": 2, "M": 6, "N": 4, "W": 3}, inputs={"x": "float[B M]"}, steps=[step])
    x = torch.arange(12.0).reshape(2, 6)
    assert str(program.value_types()[program.outputs["out"]]) == "float[N W]"
    assert torch.equal(run_program(program, {"x": x}, {}, {})["out"], x.reshape(4, 3))


def test_rearrange_refuses_names_of_other_sizes() -> None:
    step = {"rearrange": {"pattern": "b m -> m b", "as_dims": ["B", "M"]}}
    with pytest.raises(SpecError, match="M=6 is not B=2"):
        model(dims={"B": 2, "M": 6}, inputs={"x": "float[B M]"}, steps=[step])


def test_softmax_in_fp32_rounds_an_fp64_model_and_leaves_an_fp32_model_alone() -> None:
    def run(x: torch.Tensor, **extra: str) -> torch.Tensor:
        step = {"attend": {"mask": "causal", **extra}, "from": ["x", "x", "x"]}
        program = model(inputs={"x": "float[B S H E]"}, steps=[step])
        return run_program(program, {"x": x}, {}, {"B": 1, "S": 5, "H": 2, "E": 4})["out"]

    x = torch.randn(1, 5, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gap = (run(x, softmax="fp32") - run(x)).abs().max().item()
    assert 1e-12 < gap < 1e-6
    assert torch.equal(run(x.float(), softmax="fp32"), run(x.float()))


def test_unbind_gives_each_entry_of_a_dim() -> None:
    steps = [{"unbind": 2, "as": ["a", "b"]}, {"expr": "a - b"}]
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    program = model(dims={"B": 3, "D": 4}, inputs={"x": "float[B 2 D]"}, steps=steps)
    assert torch.equal(run_program(program, {"x": x}, {}, {})["out"], x[:, 0] - x[:, 1])


def test_unbind_needs_a_dim_of_known_size() -> None:
    with pytest.raises(SpecError, match="known parts"):
        model(inputs={"x": "float[B S D]"}, steps=[{"unbind": "S"}])


def test_times_have_the_same_waves_in_every_precision_if_asked() -> None:
    step = {"sinusoidal": {"out": 8, "cos_first": True, "angles": "fp32"}}
    program = model(inputs={"t": "float[B]"}, steps=[step])
    t = torch.tensor([0.0, 3.0, 999.0])
    narrow, broad = (run_program(program, {"t": x}, {}, {"B": 3})["out"] for x in (t, t.double()))
    assert torch.equal(narrow.double(), broad)
    assert narrow[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_waves_of_an_fp64_model_are_fp64() -> None:
    program = model(inputs={"t": "float[B]"}, steps=[{"sinusoidal": {"out": 8}}])
    t = torch.tensor([0.3, 3.0, 999.7], dtype=torch.float64)
    angle = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(4, dtype=torch.float64) / 4)
    want = torch.cat([angle.sin(), angle.cos()], -1)
    torch.testing.assert_close(run_program(program, {"t": t}, {}, {"B": 3})["out"], want, rtol=1e-14, atol=1e-13)


def test_a_position_table_knows_its_columns_and_rows() -> None:
    table = initial("positions", (4, 6, 8), "sincos", {"extent": 2.0}, seed=0)
    x, y = 5 * 2.0 / 6, 3 * 2.0 / 4
    want = [math.sin(x), math.sin(x / 100), math.cos(x), math.cos(x / 100)]
    want += [math.sin(y), math.sin(y / 100), math.cos(y), math.cos(y / 100)]
    assert torch.allclose(table[3, 5], torch.tensor(want))


def test_a_position_table_has_rows_and_columns() -> None:
    with pytest.raises(SpecError, match="sincos"):
        model(
            dims={"N": 4, "D": 8},
            inputs={"x": "float[B D]"},
            steps=[{"param": {"shape": ["N", "D"], "init": {"sincos": 2}}}],
        )


def test_a_formula_tells_dims_of_one_size_apart() -> None:
    steps = [{"conv": {"out": 4, "bias": False}, "as": "y"}, {"expr": "y + x"}]
    program = model(dims={"B": 2, "C": 4, "Y": 4, "X": 4}, inputs={"x": "float[B C Y X]"}, steps=steps)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    out = run_program(program, {"x": x}, {"conv.weight": torch.zeros(4, 4, 3, 3)}, {})["out"]
    assert torch.equal(out, x)


def test_a_formula_of_square_images_keeps_channels_and_space_apart() -> None:
    steps = [{"rearrange": {"pattern": "c y x -> c y x", "as_dims": [4, 4, 4]}, "as": "y"}, {"expr": "y * y - x * y"}]
    program = model(dims={"C": 4, "Y": 4, "X": 4}, inputs={"x": "float[C Y X]"}, steps=steps)
    x = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert not run_program(program, {"x": x}, {}, {})["out"].any()


LEVELS: dict[str, Any] = {
    "dims": {"widths": [4, 6, 6], "D": "first(widths)", "Z": "last(widths) * len(widths)"},
    "inputs": {"x": "float[B D]"},
    "blocks": {
        "level": {
            "args": {"out": "dim", "tile": "int", "tiles": "int"},
            "in": {"x": "[B I]"},
            "steps": [
                {"linear": {"out": "out", "when": "I != out"}},
                {"expr": "_ + tile", "when": "tile < tiles - 1"},
            ],
        }
    },
    "steps": [{"repeat": {"block": "level", "each": {"out": "widths"}, "name": "levels"}}],
}


def test_a_repeat_over_a_list_gives_each_call_its_own_shape() -> None:
    program = model(**LEVELS)
    assert {n: str(p.type) for n, p in program.params.items()} == {"levels.1.linear.weight": "float[D 6]"}
    x = torch.ones(2, 4)
    out = run_program(program, {"x": x}, {"levels.1.linear.weight": torch.ones(4, 6)}, {"B": 2})["out"]
    assert torch.equal(out, torch.full((2, 6), 5.0))


def test_calls_of_a_list_that_are_alike_share_a_body() -> None:
    """Layers that alternate are compiled once a kind, run forward again, and fall into stages."""
    blocks = {
        "layer": {
            "args": {"by": "int"}, "in": {"x": "[B I]"},
            "steps": [
                {"linear": {"out": "I"}, "as": "y"}, {"expr": "x + by * y", "as": "x"},
                {"mean": {"from": "x"}, "as": "z"},
            ],
            "out": ["x", "z"],
        }
    }  # fmt: skip
    steps = [{"repeat": {"block": "layer", "each": {"by": [1, 2, 1]}, "name": "layers"}, "as": ["x", "z"]}]
    program = model(dims={"D": 3}, inputs={"x": "float[B D]"}, blocks=blocks, steps=steps, outputs={"out": "z"})
    kinds = [(c.body, c.tile) for c in program.calls]
    assert kinds == [("layers", 0), ("layers_1", 0), ("layers", 1), ("head", 0)]
    assert list(program.params) == [f"layers.{i}.linear.weight" for i in range(3)]
    x, weights = torch.randn(2, 3), {n: torch.eye(3) for n in program.params}
    out = run_program(program, {"x": x}, weights, {"B": 2})["out"]
    torch.testing.assert_close(out, (2 + 6 + 12) * x.mean())


def test_what_a_nested_repeat_does_not_carry_is_summed() -> None:
    blocks = {
        "inner": {"in": {"x": "[B I]"}, "steps": [{"expr": "x + 1", "as": "x"}, {"mean": {"from": "x"}, "as": "z"}],
                  "out": ["x", "z"]},
        "pair": {"in": {"x": "[B I]"}, "steps": [{"repeat": {"block": "inner", "times": 2}, "as": ["x", "z"]}],
                 "out": ["x", "z"]},
    }  # fmt: skip
    steps = [{"repeat": {"block": "pair", "times": 2}, "as": ["x", "z"]}]
    program = model(dims={"D": 3}, inputs={"x": "float[B D]"}, blocks=blocks, steps=steps, outputs={"out": "z"})
    assert run_program(program, {"x": torch.zeros(2, 3)}, {}, {"B": 2})["out"].item() == 1 + 2 + 3 + 4


def test_a_repeat_goes_through_a_list_backwards() -> None:
    turned = [{"repeat": {"block": "level", "each": {"out": "widths"}, "reverse": True, "name": "levels"}}]
    program = model(**{**LEVELS, "steps": turned})
    assert [p.type.shape({}) for p in program.params.values()] == [(4, 6), (6, 4)]


def test_the_ends_and_length_of_a_list_are_numbers() -> None:
    steps = [{"linear": {"out": "Z"}}]
    program = model(**{**LEVELS, "steps": steps})
    assert program.params["linear.weight"].type.shape({}) == (4, 18)


@pytest.mark.parametrize(
    ("dims", "call", "message"),
    [
        ({"widths": []}, {"each": {"out": "widths"}}, "one known size"),
        ({"widths": [4, "B"]}, {"each": {"out": "widths"}}, "no dim is called 'B'"),
        ({}, {"each": {"out": "widths"}}, "the name of one"),
        ({}, {"each": {"out": [4], "tile": [1, 2]}}, "differ in length"),
        ({}, {"each": [4]}, "reads"),
        ({}, {"each": {"out": [4]}, "times": 2}, "without 'times'"),
        ({}, {"each": {"out": [4]}, "args": [1]}, "reads"),
        ({}, {"each": {"out": [{}]}}, "a dim is"),
    ],
)
def test_mistakes_in_lists_are_reported(dims: dict[str, Any], call: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        model(
            dims={"D": 4, **dims}, inputs=LEVELS["inputs"], blocks=LEVELS["blocks"],
            steps=[{"repeat": {"block": "level", **call}}],
        )  # fmt: skip


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in ("float", "detach", "where")])
def test_every_function_of_a_formula_lowers_with_its_gradient(name: str) -> None:
    rest = {1: "", 2: ", y", 3: ", -1, 0.5"}[FUNCTIONS[name]]
    program = model(
        dims={"N": 5},
        inputs={"y": "float[N]"},
        steps=[
            {"param": {"shape": "N", "name": "x"}, "as": "x"},
            {"expr": f"{name}(x{rest})"},
            {"sum": {}, "as": "loss"},
        ],
        loss="loss",
    )
    x = torch.tensor([0.3, 0.9, 2.0, 0.1, 0.5], dtype=torch.float64, requires_grad=True)
    inputs = {"y": torch.full((5,), 0.4, dtype=torch.float64)}
    (want,) = torch.autograd.grad(run_program(program, inputs, {"x": x}, {})["loss"], x)
    graphs, calls = lower(program, {}, torch.float64)
    bodies = {n: body_as_it_is(g) for n, g in graphs.items()}
    actions = one_rank(len(calls), 1, set(range(len(calls))))
    run = Executor(calls, bodies, actions, program.loss, {}, frozenset({"x"}), torch.float64)
    grad = run.step({"x": x.detach()}, [inputs], [1.0]).grads["x"]
    torch.testing.assert_close(grad, want)


def test_every_dropout_of_a_model_has_a_mask_of_its_own() -> None:
    """Of steps of one name, of tiles, of nested repeats, and of blocks called twice; a negative key drops nothing."""
    drop = {"dropout": {"p": 0.5}, "from": ["x", "key"]}
    blocks = {
        "two": {"in": {"x": "[B I]"},
                "steps": [{**drop, "as": "a"}, {**drop, "as": "b"}, {"concat": {"over": "I"}, "from": ["a", "b"]}]},
    }  # fmt: skip
    steps = [
        {"repeat": {"block": "two", "times": 1}, "as": "p"},
        {"repeat": {"block": "two", "times": 1, "start": 1}, "from": "x", "as": "q"},
        {"two": {}, "from": "x", "as": "r"},
        {"two": {}, "from": "x", "name": "again", "as": "s"},
        {"concat": {"over": "D + D"}, "from": ["p", "q", "r", "s"]},
    ]
    program = model(
        dims={"D": 64}, inputs={"x": "float[B D]"}, attributes={"key": "int[B]"}, blocks=blocks, steps=steps
    )
    x, sizes = torch.ones(3, 64), {"B": 3}
    out = run_program(program, {"x": x, "key": torch.tensor([5, 5, 6])}, {}, sizes)["out"].reshape(3, 8, 64)
    assert torch.equal(out[0], out[1]), "one key, one mask"
    assert len({tuple(row.tolist()) for row in out[[0, 2]].reshape(16, 64)}) == 16
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert 0.4 < out.mean() / 2 < 0.6
    whole = run_program(program, {"x": x, "key": torch.full((3,), -1)}, {}, sizes)["out"]
    assert torch.equal(whole, torch.ones(3, 512))


@pytest.mark.parametrize(("op", "want"), [("mean", [0.5, 0.75]), ("sum", [2.0, 3.0])])
def test_conditions_and_integers_have_means_and_sums(op: str, want: list[float]) -> None:
    steps: list[Any] = [{"expr": "t > 1", "as": "c"}, {op: {"over": "S"}, "from": "c", "as": "a"}]
    steps += [{op: {"over": "S"}, "from": "t", "as": "b"}, {"expr": "a + 0 * b", "as": "out"}]
    program = model(dims={"S": 4}, inputs={"t": "int[B S]"}, steps=steps)
    t = torch.tensor([[0, 1, 2, 3], [2, 2, 2, 0]])
    out = run_program(program, {"t": t}, {}, {"B": 2})["out"]
    assert out.tolist() == want
    assert out.dtype == torch.get_default_dtype()


@pytest.mark.parametrize("name", ["head", "stem", "mid_1", "a"])
@pytest.mark.parametrize("how", [{"each": {"by": [2, 3]}}, {"times": 2, "args": {"by": 2}}])
def test_a_repeat_may_be_called_as_the_parts_around_it(name: str, how: dict[str, Any]) -> None:
    blocks = {"b": {"args": {"by": "int"}, "in": {"x": "[B I]"}, "steps": [{"expr": "x * by"}]}}
    steps: list[Any] = [{"expr": "x + 1"}, {"repeat": {"block": "b", **how, "name": name}}, {"expr": "_ + 1"}]
    program = model(dims={"D": 2}, inputs={"x": "float[B D]"}, blocks=blocks, steps=steps)
    out = run_program(program, {"x": torch.ones(1, 2)}, {}, {"B": 1})["out"]
    assert out.tolist() == ([[13, 13]] if "each" in how else [[9, 9]])


def test_names_of_bodies_do_not_meet() -> None:
    blocks = {"b": {"args": {"by": "int"}, "in": {"x": "[B I]"}, "steps": [{"expr": "x * by"}]}}
    steps = [{"repeat": {"block": "b", "each": {"by": by}, "name": name}}
             for name, by in (("a_1", [2]), ("a_2", [3]), ("a", [5, 7, 5]), ("a", [11]))]  # fmt: skip
    program = model(dims={"D": 2}, inputs={"x": "float[B D]"}, blocks=blocks, steps=steps)
    out = run_program(program, {"x": torch.ones(1, 2)}, {}, {"B": 1})["out"]
    assert out[0, 0] == 2 * 3 * 5 * 7 * 5 * 11
    assert len(program.bodies) == 5


def test_variants_of_a_body_have_names_of_their_own() -> None:
    """One that passes no gradient on is another graph than one that does, and than that of another kind of layer."""
    blocks = {
        "b": {"args": {"by": "int"}, "in": {"x": "[B I]"}, "steps": [{"linear": {"out": "I"}}, {"expr": "by * _"}]}
    }
    steps = [{"repeat": {"block": "b", "each": {"by": [1, 2, 3, 1]}, "name": "layers"}}]
    program = model(dims={"D": 2}, inputs={"x": "float[B D]"}, blocks=blocks, steps=steps, freeze=["layers.0.*"])
    found, calls = variants(program)
    assert [c.body for c in calls] == ["layers", "layers_1", "layers_2", "layers_3"]
    assert [found[c.body].source for c in calls] == ["layers", "layers_1", "layers_2", "layers"]


def test_a_tile_may_take_the_weights_of_an_earlier_one() -> None:
    body = [{"linear": {"out": "I", "tie": "t"}}, {"linear": {"out": "I", "name": "own"}}]
    blocks = {"b": {"args": {"t": "str"}, "in": {"x": "[B I]"}, "steps": body}}
    ties = {"t": ["first", "layers.0.own"]}
    steps = [{"linear": {"out": "D", "name": "first"}}, {"repeat": {"block": "b", "each": ties, "name": "layers"}}]
    program = model(dims={"D": 2}, inputs={"x": "float[B D]"}, blocks=blocks, steps=steps)
    assert list(program.params) == ["first.weight", "layers.0.own.weight", "layers.1.own.weight"]


def test_a_key_of_dropout_is_itself_in_other_steps() -> None:
    steps = [{"dropout": {"p": 0.5}, "from": ["x", "k"], "as": "y"}, {"expr": "0 * y + float(k)"}]
    blocks = {"b": {"in": {"x": "[B I]", "k": "int[B]"}, "steps": steps}}
    program = model(
        dims={"D": 2}, inputs={"x": "float[B D]"}, attributes={"key": "int[B]"}, blocks=blocks,
        steps=[{"repeat": {"block": "b", "times": 1}, "from": ["x", "key"]}],
    )  # fmt: skip
    inputs = {"x": torch.ones(1, 2), "key": torch.tensor([3])}
    assert run_program(program, inputs, {}, {"B": 1})["out"].tolist() == [[3, 3]]


def test_a_key_that_comes_in_twice_is_own_both_times() -> None:
    drop = [{"dropout": {"p": 0.5}, "from": ["x", "k"], "as": "x"}, {"dropout": {"p": 0.5}, "from": ["x", "key"]}]
    program = model(
        dims={"D": 512}, inputs={"x": "float[B D]"}, attributes={"key": "int[B]"},
        blocks={"b": {"in": {"x": "[B I]", "k": "int[B]"}, "steps": drop}},
        steps=[{"repeat": {"block": "b", "times": 2}, "from": ["x", "key"]}],
    )  # fmt: skip
    out = run_program(program, {"x": torch.ones(1, 512), "key": torch.tensor([3])}, {}, {"B": 1})["out"]
    assert 0.02 < (out > 0).float().mean() < 0.12, "a sixteenth is left by four masks"
