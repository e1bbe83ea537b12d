"""What single ops of the language promise, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specc.compiler.build import lower
from specc.compiler.elaborate import elaborate_model
from specc.compiler.lower.run import run_program
from specc.compiler.program import Program
from specc.compiler.schedule.actions import one_rank
from specc.runtime.executor import Executor
from specc.spec.errors import SpecError
from specc.spec.model import ModelSpec
from tests.parity.case import body_as_it_is


def model(**sections: Any) -> Program:
    return elaborate_model(ModelSpec.model_validate(sections), "m")


def test_concat_fits_dims_by_size() -> None:
    """A skip past a convolution of stride 2 and an enlargement, whose space has numbers for names."""
    steps = [
        {"conv": {"out": "C", "stride": 2, "bias": False, "name": "down"}},
        {"upsample": {}, "as": "u"},
        {"concat": {"over": "C", "from": ["u", "x"]}},
    ]
    dims = {"C": 3, "Y": 4, "X": 4}
    program = model(dims=dims, inputs={"x": "float[B C Y X]"}, steps=steps)
    assert str(program.value_types()[program.outputs["out"]]) == "float[B C + C Y X]"
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    down = torch.nn.functional.conv2d(x, weight, stride=2, padding=1)
    want = torch.cat([down.repeat_interleave(2, 2).repeat_interleave(2, 3), x], 1)
    torch.testing.assert_close(run_program(program, {"x": x}, {"down.weight": weight}, {"B": 2})["out"], want)


def test_concat_refuses_dims_of_another_size() -> None:
    step = {"concat": {"over": ["C", "D"], "from": ["x", "y"]}}
    with pytest.raises(SpecError, match=r"input 1 has dim 'Z=5', which float.B C=3 Y=4. has not"):
        model(dims={"C": 3, "D": 2, "Y": 4, "Z": 5}, inputs={"x": "float[B C Y]", "y": "float[B D Z]"}, steps=[step])


def test_take_along_the_dim_itself_sorts_it() -> None:
    """The unshuffling of a masked autoencoder: each row has an order of its own."""
    program = model(
        dims={"N": 5, "D": 2}, inputs={"x": "float[B N D]", "at": "int[B N]"},
        steps=[{"take": {"over": "N", "from": ["x", "at"]}}],
    )  # fmt: skip
    assert str(program.value_types()[program.outputs["out"]]) == "float[B N D]"
    x = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    at = torch.stack([torch.tensor([4, 2, 0, 1, 3]), torch.tensor([1, 1, 0, 3, 2])])
    want = x.gather(1, at[..., None].expand(2, 5, 2))
    assert torch.equal(run_program(program, {"x": x, "at": at}, {}, {"B": 2})["out"], want)


def test_take_refuses_an_index_whose_dims_are_in_another_order() -> None:
    with pytest.raises(SpecError, match="must begin with all dims"):
        model(
            dims={"N": 5, "K": 2}, inputs={"x": "float[B N]", "at": "int[K B]"},
            steps=[{"take": {"over": "N", "from": ["x", "at"]}}],
        )  # fmt: skip


@pytest.mark.parametrize(("op", "torch_op"), [("max", torch.amax), ("min", torch.amin)])
@pytest.mark.parametrize("over", [["N"], ["B", "D"], None])
def test_the_largest_and_smallest_have_the_gradients_of_torch(op: str, torch_op: Any, over: list[str] | None) -> None:
    program = model(
        dims={"B": 2, "N": 3, "D": 4}, inputs={"y": "float[N]"},
        steps=[
            {"param": {"shape": ["B", "N", "D"], "name": "x"}, "as": "x"},
            {op: {"over": over} if over else {}},
            {"expr": "square(_)"}, {"sum": {}, "as": "loss"},
        ],
        loss="loss",
    )  # fmt: skip
    x = torch.randint(0, 4, (2, 3, 4), generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    axes = [["B", "N", "D"].index(d) for d in over or ["B", "N", "D"]]
    (want,) = torch.autograd.grad(torch_op(x, axes).square().sum(), x)
    graphs, calls = lower(program, {}, torch.float64)
    bodies = {n: body_as_it_is(g) for n, g in graphs.items()}
    actions = one_rank(len(calls), 1, set(range(len(calls))))
    run = Executor(calls, bodies, actions, program.loss or "", {}, frozenset({"x"}), torch.float64)
    grad = run.step({"x": x.detach()}, [{"y": torch.ones(3, dtype=torch.float64)}], [1.0]).grads["x"]
    torch.testing.assert_close(grad, want)


def test_a_dim_that_stands_twice_as_a_number_is_told_what_to_write() -> None:
    with pytest.raises(SpecError, match=r"'dims: \{Y: 16, X: 16\}' and \[B 3 Y X\]"):
        model(inputs={"x": "float[B 3 16 16]"}, steps=[{"expr": "x"}])
