"""Claims about what the models of images need of the language."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specc.compiler.elaborate import elaborate_model
from specc.compiler.lower.run import run_program
from specc.compiler.program import Program
from specc.spec.errors import SpecError
from specc.spec.model import ModelSpec


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
