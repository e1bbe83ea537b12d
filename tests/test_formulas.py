"""Formulas of kernels, computed by torch in fp32 as Triton would, against ATen's in fp64."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from specc.compiler.kernels.formulas import FORMULAS

ATEN = torch.ops.aten
TL = SimpleNamespace(where=torch.where, abs=torch.abs, sigmoid=torch.sigmoid, log=torch.log)


def computed(op: torch._ops.OpOverload, x: torch.Tensor, folder: Path) -> torch.Tensor:
    (folder / "formula.py").write_text(f"def formula(tl, x):\n    return {FORMULAS[op].format('x')}\n")
    spec = importlib.util.spec_from_file_location("formula", folder / "formula.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result: torch.Tensor = module.formula(TL, x)
    return result


@pytest.mark.parametrize(("op", "low", "high"), [(ATEN.tanh.default, -90, 90), (ATEN.log1p.default, -0.9, 1e30)])
def test_formulas_keep_their_digits_around_zero(
    op: torch._ops.OpOverload, low: float, high: float, tmp_path: Path
) -> None:  # fmt: skip
    small = torch.logspace(-30, 0, 2000)
    x = torch.cat([-small, small, torch.linspace(0.2, 0.4, 999), torch.logspace(0, 30, 999), torch.zeros(1)])
    x = x[(x >= low) & (x <= high)]
    found = computed(op, x, tmp_path)
    want = op(x.double())
    assert ((found - want).abs() <= 5e-7 * want.abs()).all()


@pytest.mark.parametrize("op", [ATEN.tanh.default, ATEN.log1p.default])
def test_formulas_go_to_their_limits(op: torch._ops.OpOverload, tmp_path: Path) -> None:
    x = torch.tensor([-torch.inf, torch.inf, torch.nan, -1.0])
    torch.testing.assert_close(computed(op, x, tmp_path), op(x), equal_nan=True)
