"""Which gradients each call needs, and a body as a function of fake tensors, ready to be traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from specc.compiler.lower.local import Impl
from specc.compiler.lower.run import run_body
from specc.compiler.placement.types import Layout
from specc.compiler.program import Body, Call, Program
from specc.compiler.types import DType, TensorType

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True)
class Variant:
    """A body with the gradients that its calls want and the layouts that their parameters are kept in: what is lowered
    once. `source` is the body's name in the program."""

    name: str
    body: Body
    in_grads: tuple[bool, ...]
    param_grads: tuple[bool, ...]
    source: str = ""
    kept: tuple[Layout, ...] = ()


def variants(
    program: Program, kept: Mapping[str, Layout] | None = None
) -> tuple[dict[str, Variant], tuple[Call, ...]]:  # fmt: skip
    """The distinct variants, and the calls renamed to them.

    A value needs a gradient if a trainable parameter acts before it."""
    has_grad: dict[str, bool] = dict.fromkeys(program.inputs, False)
    found: dict[tuple[str, tuple[bool, ...], tuple[bool, ...], tuple[Layout, ...]], Variant] = {}
    calls: list[Call] = []
    for call in program.calls:
        body = program.bodies[call.body]
        types = body.types()
        params = tuple(program.params[p].trainable for p in call.params)
        ins = tuple(has_grad[i] and v.type.dtype == "float" for i, v in zip(call.ins, body.ins, strict=True))
        lies = tuple(kept[p] for p in call.params) if kept else ()
        key = (call.body, ins, params, lies)
        if key not in found:
            alike = sum(k[0] == call.body for k in found)
            taken = {*program.bodies, *(v.name for v in found.values())}
            more = (f"{call.body}_{n}" for n in count(alike + 1))
            name = next(n for n in more if n not in taken) if alike else call.body
            found[key] = Variant(name, body, ins, params, call.body, lies)
        flows = any(ins) or any(params)
        has_grad |= {o: flows and types[b].dtype == "float" for o, b in zip(call.outs, body.outs, strict=True)}
        calls.append(replace(call, body=found[key].name))
    return {v.name: v for v in found.values()}, tuple(calls)


def dtype_of(kind: DType, compute: torch.dtype) -> torch.dtype:
    return compute if kind == "float" else torch.int64 if kind == "int" else torch.bool


def fake(type_: TensorType, sizes: Mapping[str, int], compute: torch.dtype, mode: FakeTensorMode) -> Tensor:
    """A tensor of the type's shape that holds no memory."""
    with mode:
        return torch.empty(type_.shape(sizes), dtype=dtype_of(type_.dtype, compute))


def operands(
    body: Body, sizes: Mapping[str, int], compute: torch.dtype, mode: FakeTensorMode
) -> tuple[list[Tensor], list[Tensor]]:
    """Fake ins and parameters of a body."""
    ins = [fake(v.type, sizes, compute, mode) for v in body.ins]
    return ins, [fake(p.type, sizes, compute, mode) for p in body.params]


def as_function(
    body: Body, sizes: Mapping[str, int], own: Mapping[str, Impl] | None = None
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]:
    """`own` are implementations of the user's own ops."""
    return lambda ins, params: run_body(body, ins, params, sizes, own)
