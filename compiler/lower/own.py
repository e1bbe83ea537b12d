"""Ops of our own for torch, in Python. `torch.library.custom_op` would do the same, and import all of torch.compile at
the first call: 140 MB and seconds of a process that may never compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch

from specc.compiler.imports import without_triton

with without_triton():
    from torch.utils.flop_counter import register_flop_formula

Function = TypeVar("Function", bound=Callable[..., Any])
INSIDE: dict[Callable[..., Any], Callable[..., int]] = {}  # by op


def own_op(
    name: str, fake: Callable[..., Any], device: str = "default", backward: Any = None, save: Any = None,
    inside: Callable[..., int] | None = None, flops: Callable[..., float] | None = None, below_autograd: bool = True,
) -> Callable[[Function], Function]:  # fmt: skip
    """Make a function the op `specc::name`, of which graphs keep a node; the op stands in its place.

    It changes no operand. `fake` gives the shapes and the dtypes of its results (empty tensors) for the same operands;
    `device` is the kind of device that it is for, `default` is any. `backward` and `save` are those of
    torch.library.register_autograd; without them a gradient through the op is an error. For the same operands
    `inside` tells how many bytes it holds meanwhile, beside its results, and for their shapes `flops` how many FLOPs it
    takes. What is not `below_autograd` may ask for gradients inside, and has none of its own."""

    def define(function: Function) -> Function:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(f"specc::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(f"specc::{name}", device, function)
        torch.library.register_fake(f"specc::{name}", fake)
        if below_autograd:
            gradient = backward or partial(_no_gradient, name)
            torch.library.register_autograd(f"specc::{name}", gradient, setup_context=save)
        op: Function = getattr(torch.ops.specc, name).default
        if inside:
            INSIDE[op] = inside
        if flops:
            register_flop_formula(getattr(torch.ops.specc, name))(flops)
        return op

    return define


def _no_gradient(name: str, *_: Any) -> None:
    raise NotImplementedError(f"specc::{name} has no gradient")
