"""Ops of our own for torch, in Python. `torch.library.custom_op` would do the same, and import all of torch.compile at
the first call: 140 MB and seconds of a process that may never compile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Tensor]


def own_op(
    name: str, fake: Function, device: str = "default", backward: Any = None, save: Any = None
) -> Callable[[Function], Function]:  # fmt: skip
    """Make a function the op `specc::name`, of which graphs keep a node; the op stands in its place.

    It changes no operand. `fake` gives the shape and the dtype of its result (an empty tensor) for the same operands;
    `device` is the kind of device that it is for, `default` is any. `backward` and `save` are those of
    torch.library.register_autograd; without them a gradient through the op is an error."""

    def define(function: Function) -> Function:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(f"specc::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(f"specc::{name}", device, function)
        torch.library.register_fake(f"specc::{name}", fake)
        gradient = backward or partial(_no_gradient, name)
        torch.library.register_autograd(f"specc::{name}", gradient, setup_context=save)
        op: Function = getattr(torch.ops.specc, name).default
        return op

    return define


def _no_gradient(name: str, *_: Any) -> None:
    raise NotImplementedError(f"specc::{name} has no gradient")
