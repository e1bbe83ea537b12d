"""Run a body's equations on tensors: what is traced into graphs, and the reference that graphs are checked with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from specc.compiler.lower import attention, linear, log_prob, loss, norm, pointwise, shape
from specc.compiler.lower.decode import Decoding
from specc.compiler.lower.local import Impl, Local
from specc.compiler.program import Body, Program

FAMILIES = (linear, norm, attention, pointwise, shape, loss, log_prob)
IMPLS: dict[str, Impl] = {name: impl for family in FAMILIES for name, impl in family.IMPLS.items()}


def run_body(
    body: Body, ins: Sequence[Tensor], params: Sequence[Tensor], sizes: Mapping[str, int],
    user: Mapping[str, Impl] | None = None, decoding: Decoding | None = None,
) -> list[Tensor]:  # fmt: skip
    """The body's outs; differentiable."""
    table = IMPLS if not user else {**IMPLS, **user}
    env: dict[str, Tensor] = dict(zip((v.name for v in body.ins), ins, strict=True))
    env |= zip((p.name for p in body.params), params, strict=True)
    types = body.types()
    for e in body.eqns:
        local = Local(e, tuple(types[i] if i else None for i in e.ins), sizes, decoding)
        result = table[e.op](local, *(env[i] if i else None for i in e.ins))
        results = (result,) if isinstance(result, Tensor) else result
        env |= zip(e.outs, results, strict=True)
    return [env[o] for o in body.outs]


def run_program(
    program: Program, inputs: Mapping[str, Tensor], params: Mapping[str, Tensor], sizes: Mapping[str, int],
    user: Mapping[str, Impl] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """All outputs and the loss (as "loss") under torch's own autograd: the unlowered reference."""
    env = dict(inputs)
    for call in program.calls:
        ins, weights = [env[i] for i in call.ins], [params[p] for p in call.params]
        outs = run_body(program.bodies[call.body], ins, weights, sizes, user)
        env |= zip(call.outs, outs, strict=True)
    named = {n: env[v] for n, v in program.outputs.items()}
    return named | ({"loss": env[program.loss]} if program.loss else {})


def bound_sizes(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, int]:
    """Sizes of the open dims, read off the inputs."""
    sizes: dict[str, int] = {}
    for name, type_ in program.inputs.items():
        for dim, n in zip(type_.dims, inputs[name].shape, strict=True):
            if dim.size is None and not dim.of:
                sizes[dim.name] = n
            elif dim.size is not None and dim.size != n:
                raise ValueError(f"{name}: {dim.shown()}, got {n}")
    return sizes


__all__ = ["IMPLS", "bound_sizes", "run_body", "run_program"]
