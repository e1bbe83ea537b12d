"""Run a placed body on a rank's parts of its values: moves between layouts, then each op on local sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from specc.compiler.lower import placed_attention, placed_loss, placed_ops, placed_route
from specc.compiler.lower.collectives import reshard
from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.run import IMPLS
from specc.compiler.lower.spread import Setting, Spread
from specc.compiler.placement.placed import Placed, PlacedBody, PlacedEqn
from specc.compiler.placement.types import Layout
from specc.compiler.types import Dim, TensorType, size_of

SPREAD: dict[str, Impl] = {
    **placed_ops.IMPLS, **placed_attention.IMPLS, **placed_loss.IMPLS, **placed_route.IMPLS,
}  # fmt: skip


def run_placed(
    body: PlacedBody, ins: Sequence[Tensor], params: Sequence[Tensor], setting: Setting,
    own: Mapping[str, Impl] | None = None,
) -> list[Tensor]:  # fmt: skip
    """The body's outs in their layouts; differentiable. Parameters are in the layouts of their use."""
    run = _Run(body, setting, ragged(body))
    run.values |= zip((v.name for v in body.body.ins), ins, strict=True)
    run.values |= zip((p.name for p in body.body.params), params, strict=True)
    table = {**IMPLS, **SPREAD, **(own or {})}
    for e in body.eqns:
        run.run(e, table[e.eqn.op])
    return [run.value(name, layout) for name, layout in zip(body.body.outs, body.outs, strict=True)]


Ragged = frozenset[tuple[str, int]]


def ragged(body: PlacedBody) -> Ragged:
    """Dims and axes whose parts are as long as the whole: rows that experts may get from any rank."""
    return frozenset(
        (e.eqn.types[0].dims[0].name, a)
        for e in body.eqns if e.eqn.op == "dispatch"
        for a, s in enumerate(e.strategies) if s.name == "experts"
    )  # fmt: skip


def local_type(type_: TensorType, layout: Layout, setting: Setting, uneven: Ragged = frozenset()) -> TensorType:
    """The type of a rank's part: the same names with local sizes."""
    sizes = [size_of(d, setting.sizes) for d in type_.dims]
    for a, (place, axis) in enumerate(zip(layout, setting.mesh.axes, strict=True)):
        if place.kind == "S" and (type_.dims[place.dim].name, a) not in uneven:
            assert sizes[place.dim] % axis.size == 0, f"{type_.dims[place.dim]} does not split over {axis}"
            sizes[place.dim] //= axis.size
    return type_.with_dims(*(Dim(d.name, n, d.of) for d, n in zip(type_.dims, sizes, strict=True)))


@dataclass
class _Run:
    """The values of a body under way; a value that is wanted twice in a layout is moved once."""

    body: PlacedBody
    setting: Setting
    uneven: Ragged
    values: dict[str, Tensor] = field(default_factory=dict)
    moved: dict[tuple[str, Layout], Tensor] = field(default_factory=dict)
    routes: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layouts, self.types = self.body.layouts(), self.body.body.types()
        self.made = {o: e for e in self.body.eqns for o in e.eqn.outs}

    def value(self, name: str, layout: Layout) -> Tensor:
        """A value in a layout."""
        if layout == self.layouts[name]:
            return self.values[name]
        key = (name, layout)
        if key not in self.moved:
            setting = self.setting
            self.moved[key] = reshard(
                self.values[name], self.layouts[name], layout, setting.mesh, setting.coordinates
            )  # fmt: skip
        return self.moved[key]

    def run(self, e: PlacedEqn, impl: Impl) -> None:
        takes = [e.takes(i) for i in range(len(e.eqn.ins))]
        xs = [None if n is None or at is None else self.value(n, at) for n, at in zip(e.eqn.ins, takes, strict=True)]
        result = impl(self.local(e, takes), *xs)
        self.values |= zip(e.eqn.outs, (result,) if isinstance(result, Tensor) else result, strict=True)

    def local(self, e: PlacedEqn, takes: Sequence[Layout | None]) -> Local:
        """The equation with local sizes in its types and in the dims of its parameters."""
        whole = tuple(None if n is None else self.types[n] for n in e.eqn.ins)
        ins = tuple(
            None if t is None or at is None else local_type(t, at, self.setting, self.uneven)
            for t, at in zip(whole, takes, strict=True)
        )
        outs = tuple(local_type(t, e.gives(j), self.setting, self.uneven) for j, t in enumerate(e.eqn.types))
        dims = {d.name: d for t in (*(t for t in ins if t), *outs) for d in t.dims}
        eqn = replace(e.eqn, types=outs, attrs={k: localised(v, dims) for k, v in e.eqn.attrs.items()})
        spread = Spread(self.setting, e, whole, self.value, self.types, self.made, self.routes)
        return Local(eqn, ins, self.setting.sizes, None, spread)


def localised(value: Any, dims: Mapping[str, Dim]) -> Any:
    """A parameter of an equation with local dims for whole ones."""
    if isinstance(value, Dim):
        return dims.get(value.name, value)
    if isinstance(value, list | tuple):
        return type(value)(localised(v, dims) for v in value)
    if isinstance(value, dict):
        return {k: localised(v, dims) for k, v in value.items()}
    return value


ORDERED = {"slice", "pick", "unbind", "concat", "split", "take", "argmax", "conv", "upsample", "rearrange", "rename"}


def zigzag(placed: Placed) -> dict[str, int]:
    """The sequences that lie in zigzag, and over how many ranks: those of causal rings, if nothing else minds.

    In a ring that is not causal, halves would meet that a causal one leaves out."""
    found: dict[str, int] = {}
    others: set[str] = set()
    for b in placed.bodies.values():
        types = b.body.types()
        for e in b.eqns:
            rings = [a for a, s in enumerate(e.strategies) if s.name == "ring"]
            if not rings or (len(e.eqn.ins) > 4 and e.eqn.ins[4]):
                continue
            dim, n = types[e.eqn.ins[0] or ""].dims[-3], placed.mesh.axes[rings[0]].size
            if not e.eqn.attrs.get("causal"):
                others.add(dim.of or dim.name)
            elif size_of(dim, placed.sizes) % (2 * n) == 0 and n > 1 and not minds(placed, dim):
                found[dim.of or dim.name] = n
    return {name: n for name, n in found.items() if name not in others}


def minds(placed: Placed, dim: Dim) -> bool:
    """Whether some equation needs the dim's entries in their order."""
    for b in placed.bodies.values():
        types = b.body.types()
        for e in b.body.eqns:
            over = e.attrs.get("over")
            names = {d.name for d in over} if isinstance(over, list | tuple) else {getattr(over, "name", None)}
            works = e.op in ("conv", "upsample", "rearrange", "rename") or dim.name in names
            if e.op in ORDERED and works and any(d.name == dim.name for i in e.ins if i for d in types[i].dims):
                return True
    return False
