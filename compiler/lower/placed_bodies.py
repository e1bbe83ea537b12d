"""A placed program as graphs of a rank's parts: forward, backward, and how parameters come and gradients go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.graphs import Carry, Graphs, verify
from specc.compiler.lower.bodies import Variant, fake, variants
from specc.compiler.lower.collectives import reshard, reshard_gradient
from specc.compiler.lower.local import Impl
from specc.compiler.lower.placed import local_type, run_placed, zigzag
from specc.compiler.lower.spread import Setting
from specc.compiler.partition import build_graphs, clean, split_at_waits
from specc.compiler.placement.placed import Placed, PlacedBody
from specc.compiler.placement.reshard import moves
from specc.compiler.placement.types import Layout, gradient
from specc.compiler.program import Call
from specc.compiler.types import TensorType


def lower_placed(
    placed: Placed, compute: torch.dtype, own: Mapping[str, Impl] | None = None, share: float = 1.0
) -> tuple[dict[str, Graphs], tuple[Call, ...]]:
    """Graphs of each unique body, and the calls; `share` is that of the bytes saved (see build_graphs)."""
    check_joins(placed)
    found, calls = variants(placed.program, placed.params)
    order = zigzag(placed)
    return {n: lower_variant(v, placed, order, compute, own or {}, share) for n, v in found.items()}, calls


def check_joins(placed: Placed) -> None:
    """Assert that values between calls lie where they are read as where they are made."""
    lies = dict(placed.inputs)
    for call in placed.program.calls:
        body = placed.bodies[call.body]
        for value, wanted in zip(call.ins, body.ins, strict=True):
            assert lies[value] == wanted, f"{value} lies as {lies[value]}, {call.body} takes {wanted}"
        lies |= zip(call.outs, body.outs, strict=True)


def lower_variant(
    v: Variant, placed: Placed, order: Mapping[str, int], compute: torch.dtype, own: Mapping[str, Impl], share: float
) -> Graphs:  # fmt: skip
    mode, body = FakeTensorMode(), placed.bodies[v.source]
    with mode:
        coordinates = [torch.zeros(1, dtype=torch.int64) for _ in placed.mesh.axes]
    setting = Setting(placed.mesh, coordinates, placed.sizes, order)

    def parts(types: Sequence[TensorType], layouts: Sequence[Layout], dtype: torch.dtype) -> list[Tensor]:
        return [fake(local_type(t, at, setting), {}, dtype, mode) for t, at in zip(types, layouts, strict=True)]

    ins = parts([x.type for x in v.body.ins], body.ins, compute)
    params = parts([p.type for p in v.body.params], body.params, compute)
    n = len(params)

    def run(ins: Sequence[Tensor], more: Sequence[Tensor]) -> list[Tensor]:
        return run_placed(body, ins, more[:n], replace(setting, coordinates=more[n:]), own)

    flags = [*v.param_grads, *[False] * len(coordinates)]
    graphs = build_graphs(run, ins, [*params, *coordinates], v.in_grads, flags, mode, share, comes_again=True)
    kept = parts([p.type for p in v.body.params], v.kept, compute)
    wide = torch.float64 if compute == torch.float64 else torch.float32
    used = parts([p.type for p in v.body.params], body.params, wide)
    return replace(graphs, param_grads=v.param_grads, carry=carry(v, body, setting, kept, used, mode))


def changes(kept: Layout, used: Layout) -> bool:
    """Whether what a rank holds differs."""
    return any("S" in (m.src.kind, m.dst.kind) for m in moves(kept, used) or [])


def carry(
    v: Variant, body: PlacedBody, setting: Setting, kept: Sequence[Tensor], used: Sequence[Tensor],
    mode: FakeTensorMode,
) -> Carry:  # fmt: skip
    """The graphs of the parameters; `kept` and `used` are fake."""
    mesh, pairs = setting.mesh, list(zip(v.kept, body.params, strict=True))
    gathered = tuple(i for i, (a, b) in enumerate(pairs) if changes(a, b))
    reduced = tuple(
        i for i, (a, b) in enumerate(pairs)
        if v.param_grads[i] and (i in gathered or gradient(a) != gradient(b))
    )  # fmt: skip

    def gather(xs: list[Tensor], at: list[Tensor]) -> list[Tensor]:
        return [reshard(x, *pairs[i], mesh, at) for i, x in zip(gathered, xs, strict=True)]

    def reduce(gs: list[Tensor], at: list[Tensor]) -> list[Tensor]:
        return [reshard_gradient(g, *pairs[i], mesh, at) for i, g in zip(reduced, gs, strict=True)]

    def traced(fn: object, xs: list[Tensor]) -> fx.GraphModule:
        with mode:
            return clean(make_fx(fn)(xs, list(setting.coordinates)))  # type: ignore[arg-type]

    forth = halves(traced(gather, [kept[i] for i in gathered])) if gathered else ()
    back = halves(traced(reduce, [used[i] for i in reduced])) if reduced else ()
    return Carry(gathered, reduced, *(forth or (None, None)), *back)


def halves(gm: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    start, finish = split_at_waits(gm)
    return verify(start), verify(finish)
