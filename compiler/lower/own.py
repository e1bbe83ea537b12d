"""Ops of our own for torch, in Python. `torch.library.custom_op` would do the same, and import all of torch.compile at
the first call: 140 MB and seconds of a process that may never compile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Op = Callable[..., Tensor]


def own_op(name: str, fake: Op, device: str = "default") -> Callable[[Op], Op]:
    """Make a function the op `specc::name`, of which graphs keep a node; the op stands in its place.

    It changes no operand. `fake` gives the shape and the dtype of its result (an empty tensor) for the same operands;
    `device` is the kind of device that it is for, `default` is any."""

    def define(function: Op) -> Op:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(f"specc::{name}", schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(f"specc::{name}", device, function)
        torch.library.register_fake(f"specc::{name}", fake)
        op: Op = getattr(torch.ops.specc, name).default
        return op

    return define
