"""Numbers that are not finite: which tensor they are in, and where they came from first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from specc.compiler.program import Call
from specc.runtime.errors import RunError
from specc.runtime.executor import Executor

MAX_IN_A_ROW = 5


def count_bad(kind: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """`the gradient of layers.0.glu.up.weight (3 of 4096 elements)`, for every tensor with such elements."""
    found: list[str] = []
    for path, t in tensors.items():
        bad = int((~torch.isfinite(t)).sum()) if t.is_floating_point() else 0
        if bad:
            found.append(f"{kind} {path} ({bad} of {t.numel()} elements)")
    return found


@torch.no_grad()
def find_bad(
    executor: Executor, params: Mapping[str, Tensor], batches: Sequence[Mapping[str, Tensor]],
    grads: Mapping[str, Tensor],
) -> list[str]:  # fmt: skip
    """Where a step went wrong, the likeliest cause first: weights, inputs, the forward pass, gradients.

    Runs the forward pass once more, call by call. All ranks of a mesh do the same, whatever each finds."""
    found = count_bad("the parameter", params)
    for batch in batches:
        outputs = first_bad_value(executor, params, batch)
        found = found or count_bad("the input", batch) or outputs
    return found + count_bad("the gradient of", grads)


def first_bad_value(executor: Executor, params: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> list[str]:
    """The first call of the forward pass with an output that is not finite (a mask's -inf does not count)."""
    found: list[str] = []
    for call, outs in executor.walk(params, batch):
        for t in outs:
            if not found and t.is_floating_point() and bool((torch.isnan(t) | (t == torch.inf)).any()):
                found = [f"the output of {call_name(call)}"]
    return found


def call_name(call: Call) -> str:
    """Where a call stands in the model: the path that its parameters share, or its block's name."""
    paths = [p.split(".") for p in call.params]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    if len(paths) == 1:
        shared = shared[:-1]
    return f"{'.'.join(shared)} (block '{call.body}')" if shared else f"block '{call.body}'"


class Guard:
    """Counts the steps that were skipped because a number was not finite; stops when there are too many in a row."""

    def __init__(self, skipped: int = 0, in_a_row: int = 0) -> None:
        self.skipped, self.in_a_row = skipped, in_a_row

    def good(self) -> None:
        self.in_a_row = 0

    def bad(self, step: int, told: str) -> None:
        """Raises RunError when this is one too many."""
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= MAX_IN_A_ROW:
            raise RunError(
                f"{self.in_a_row} steps in a row, to step {step}, had numbers that are not finite ({told}); the "
                "weights are those of the last good step. Lower optimizer.lr or optimizer.clip, or "
                "lengthen schedule.warmup; then build and run again"
            )
