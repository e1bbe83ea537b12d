"""torch's own checks of custom ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

CHECKS = ("test_schema", "test_faketensor")


def failed_checks(calls: Mapping[str, Sequence[Tensor]], checks: Sequence[str]) -> list[str]:
    """Which checks fail of the ops that the names of `calls` say, called with these operands."""
    said = {
        op: torch.library.opcheck(
            getattr(torch.ops.specc, op), tuple(operands), test_utils=tuple(checks), raise_exception=False
        )
        for op, operands in calls.items()
    }
    return [f"{op}: {check}" for op, found in said.items() for check, how in found.items() if how != "SUCCESS"]
