"""Runs every region's kernels in Triton's interpreter and prints what came out, as JSON.

`TRITON_INTERPRET=1 python -m tests.kernels.interpret`: Triton reads the variable when it is imported, so this is a
process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from specc.compiler.kernels.load import load_kernel
from specc.compiler.lower.run import run_body
from tests.kernels.interpreter import Guarded, round_bf16
from tests.kernels.regions import SIZES, Case, cases, operands

# Programs that share the rows and rows of a step: so that there are several of each, and a last one that is not full.
PROGRAMS, STEP = 3, 2


def main() -> None:
    torch.set_num_threads(1)
    round_bf16()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    print(json.dumps([row(case, folder) for dtype in (torch.float32, torch.bfloat16) for case in cases(dtype)]))


def row(case: Case, folder: Path) -> dict[str, Any]:
    """The largest errors of a region, each as a share of the largest entry, and whether the guard bands stand."""
    file = folder / f"{case.made.name}.py"
    file.write_text(case.made.source, encoding="utf-8")
    module, guard = load_kernel(file), Guarded()
    few(module, case)
    module.torch = guard  # type: ignore[attr-defined]
    ins = [guard.guarded(x) for x in operands(case)]
    forward, backward = compared(case, ins)
    module.torch = torch  # type: ignore[attr-defined]
    return {
        "name": case.made.name, "model": case.model, "dtype": str(case.dtype).removeprefix("torch."),
        "forward": forward, "backward": backward, "untouched": guard.untouched(), "checked": checked(case),
    }  # fmt: skip


def few(module: ModuleType, case: Case) -> None:
    """Settings under which even few rows are many steps of many programs."""
    module.PROGRAMS = module.SUM_PROGRAMS = PROGRAMS  # type: ignore[attr-defined]
    for kind in case.made.configs:
        getattr(module, kind).__defaults__ = ((STEP, 4),)


def compared(case: Case, ins: Sequence[Tensor]) -> tuple[float, float]:
    """Errors of outs and of gradients against the same body in fp64."""
    low = [x.requires_grad_() if x.is_floating_point() else x for x in ins]
    exact = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in ins]
    got = called(case, low)
    want = run_body(case.region.body, exact, (), SIZES)
    forward = max(error(a, b) for a, b in zip(got, want, strict=True))
    ends = [i for i, w in enumerate(want) if w.requires_grad]
    if not ends:
        return forward, 0.0
    draw = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(want[i].shape, generator=draw, dtype=torch.float64).to(case.dtype) for i in ends]
    found = torch.autograd.grad([got[i] for i in ends], [x for x in low if x.requires_grad], cotangents)
    true = torch.autograd.grad(
        [want[i] for i in ends], [x for x in exact if x.requires_grad], [c.double() for c in cotangents],
        materialize_grads=True, allow_unused=True,
    )  # fmt: skip
    return forward, max(error(a, b) for a, b in zip(found, true, strict=True))


def called(case: Case, ins: Sequence[Tensor]) -> list[Tensor]:
    outs = getattr(torch.ops.specc, case.made.name)(*ins)
    return [outs] if isinstance(outs, Tensor) else list(outs)


def error(got: Tensor, want: Tensor) -> float:
    """NaN where something was not written."""
    if not want.is_floating_point():
        return float((got != want).any())
    scale = want.abs().max().clamp(min=1e-30)
    return float(((got.double() - want).abs() / scale).detach().max())


def checked(case: Case) -> list[str]:
    """Which of torch's own checks of the op fail."""
    ins = [x.requires_grad_() if x.is_floating_point() else x for x in operands(case)]
    op = getattr(torch.ops.specc, case.made.name)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    said = torch.library.opcheck(op, tuple(ins), test_utils=tests, raise_exception=False)
    return [name for name, verdict in said.items() if verdict != "SUCCESS"]


if __name__ == "__main__":
    main()
