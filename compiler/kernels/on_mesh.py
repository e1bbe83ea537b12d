"""Kernels on a mesh: what a rank computes between moves is a body of its own, of which regions are cut as ever.

placed: %7 = linear(..) [sum:F]; %7: P => R; %8 = expr(%x, %7) [rep]; %9 = rms_norm(%8, %p) [rep]
local:  %7 = placed.linear(..); %7@1 = move(%7); %8 = expr(%x, %7@1); %9 = rms_norm(%8, %p)
kernel: %8, %9 = expr_rms_norm_1a2b3c4d5e(%x, %7: R, %p)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from specc.compiler.kernels.attention import PART_OP
from specc.compiler.kernels.cut import PLACED, Cut
from specc.compiler.lower.placed import Ragged, local_type, localised, ragged
from specc.compiler.lower.placed_attention import cut_alone
from specc.compiler.lower.spread import Setting, is_ordered
from specc.compiler.placement.placed import Placed, PlacedBody, PlacedEqn, Strategy
from specc.compiler.placement.types import Layout, R, S
from specc.compiler.program import Body, Eqn
from specc.compiler.types import Dim, TensorType

MOVE = "move"
LOOKING = (-2, -1)  # the dims of a mask that make it look at where in the whole a part lies
TOKENS = -3  # the dim of queries and of keys
MASK = 3  # the operand of an attention


@dataclass
class LocalBody:
    """A body with the types of a rank's parts, where a value that moves is another one behind a `move`.

    `lies` says of each value which one of the placed body it is, and in which layout. `sizes` are those of dims of
    which a rank has one entry: a dim whose size is known to be 1 would be one that broadcasts."""

    placed: PlacedBody
    body: Body
    sizes: dict[str, int]
    lies: dict[str, tuple[str, Layout]]


@dataclass
class _Making:
    placed: PlacedBody
    setting: Setting
    uneven: Ragged
    eqns: list[Eqn] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.types = self.placed.body.types()
        self.lies = {n: (n, at) for n, at in self.placed.layouts().items()}
        self.names = {pair: n for n, pair in self.lies.items()}
        self.makers = {o: e for e in self.placed.eqns for o in e.eqn.outs}

    def is_local(self, e: PlacedEqn) -> bool:
        return is_local(e, self.types, self.setting.zigzag)

    def read(self, name: str, layout: Layout) -> str:
        """A value in a layout, by its name here."""
        if (name, layout) not in self.names:
            moved = f"{name}@{len(self.names)}"
            self.names[name, layout], self.lies[moved] = moved, (name, layout)
            self.eqns.append(Eqn(MOVE, (name,), (moved,), (self.type_of(name, layout),), {}, ""))
        return self.names[name, layout]

    def read_mask(self, name: str, layout: Layout) -> str:
        """A mask in a layout: one that lies otherwise is made anew of its attributes."""
        maker = self.makers.get(name)
        known = (name, layout) in self.names and maker is not None and self.is_local(maker)
        if known or maker is None or maker.eqn.op != "mask":
            return self.read(name, layout)
        dims = self.types[name].dims
        ins: list[str] = []
        for own in filter(None, maker.eqn.ins):
            at = {d.name: i for i, d in enumerate(self.types[own].dims)}
            split = [dims[p.dim].name if p.kind == "S" else "" for p in layout]
            ins.append(self.read(own, tuple(S(at[n]) if n in at else R for n in split)))
        made = f"{name}@{len(self.names)}"
        self.names[name, layout], self.lies[made] = made, (name, layout)
        self.eqns.append(replace(maker.eqn, ins=tuple(ins), outs=(made,), types=(self.type_of(name, layout),)))
        return made

    def type_of(self, name: str, layout: Layout) -> TensorType:
        whole = self.types[name]
        local = local_type(whole, layout, self.setting, self.uneven)
        return local.with_dims(*(self._open(d, w) for d, w in zip(local.dims, whole.dims, strict=True)))

    def _open(self, local: Dim, whole: Dim) -> Dim:
        if local.size != 1 or whole.size == 1:
            return local
        self.sizes[local.of or local.name] = 1
        return replace(local, size=None)

    def add(self, e: PlacedEqn) -> None:
        ins: list[str | None] = []
        for i, n in enumerate(e.eqn.ins):
            layout = e.takes(i)
            read = self.read_mask if e.eqn.op == "attend" and i == MASK and self.is_local(e) else self.read
            ins.append(None if n is None or layout is None else read(n, layout))
        types = tuple(self.type_of(o, e.gives(j)) for j, o in enumerate(e.eqn.outs))
        dims = {d.name: d for t in (*(self.type_of(*self.lies[i]) for i in ins if i), *types) for d in t.dims}
        is_part = e.eqn.op == "attend" and is_part_of_attention(e, self.types, self.setting)
        op = e.eqn.op if self.is_local(e) else PART_OP if is_part else f"{PLACED}{e.eqn.op}"
        attrs = {k: localised(v, dims) for k, v in e.eqn.attrs.items()}
        self.eqns.append(replace(e.eqn, op=op, ins=tuple(ins), types=types, attrs=attrs))


def local_bodies(placed: Placed, zigzag: Mapping[str, int]) -> dict[str, LocalBody]:
    """What a rank runs of each body."""
    setting = Setting(placed.mesh, (), placed.sizes, zigzag)
    return {name: local_body(b, setting) for name, b in placed.bodies.items()}


def local_body(placed: PlacedBody, setting: Setting) -> LocalBody:
    making = _Making(placed, setting, ragged(placed))
    own = placed.body
    ins = tuple(replace(v, type=making.type_of(v.name, at)) for v, at in zip(own.ins, placed.ins, strict=True))
    params = tuple(replace(p, type=making.type_of(p.name, at)) for p, at in zip(own.params, placed.params, strict=True))
    for e in placed.eqns:
        making.add(e)
    outs = tuple(making.read(n, at) for n, at in zip(own.outs, placed.outs, strict=True))
    body = replace(own, ins=ins, params=params, eqns=tuple(making.eqns), outs=outs)
    return LocalBody(placed, body, making.sizes, making.lies)


def is_local(e: PlacedEqn, types: Mapping[str, TensorType], zigzag: Mapping[str, int]) -> bool:
    """Whether a rank does with its parts what the op does with wholes."""
    names = {s.name for s in e.strategies}
    op, result = e.eqn.op, e.eqn.types[0]
    if any(n.startswith("sum:") for n in names) or names & {"ring", "gather_kv", "vocab", "rows"}:
        return False

    if op == "attend":
        return all(is_ordered(e.takes(i) or (), types[e.eqn.ins[i] or ""].dims, TOKENS, zigzag) for i in (0, 1))
    # The elements of a dropout are counted within a sequence.
    looking = range(1, len(result.dims)) if op == "dropout" else LOOKING if op == "mask" else ()
    return all(is_ordered(e.gives(0), result.dims, i, zigzag) for i in looking)


def is_part_of_attention(e: PlacedEqn, types: Mapping[str, TensorType], setting: Setting) -> bool:
    """Whether runs of queries meet runs of keys, in a ring or all keys at once: a kernel is told where a run begins."""
    q, k = (types[e.eqn.ins[i] or ""].dims for i in (0, 1))
    if cut_alone(e, q, "ring", setting):
        return True
    is_whole = is_ordered(e.takes(1) or (), k, TOKENS, setting.zigzag)
    is_run = (q[TOKENS].of or q[TOKENS].name) not in setting.zigzag
    return is_run and is_whole and cut_alone(e, q, "gather_kv", setting)


def with_local_kernels(local: LocalBody, cut: Cut) -> PlacedBody:
    """The placed body with the kernels of its local one."""
    return replace(local.placed, eqns=tuple(_placed_eqns(local, cut)))


def _placed_eqns(local: LocalBody, cut: Cut) -> Iterator[PlacedEqn]:
    made_by = {e.eqn.outs[0]: e for e in local.placed.eqns}
    before = {e.outs[0]: e for e in local.body.eqns}
    types, n_axes = local.placed.body.types(), max((len(e.strategies) for e in local.placed.eqns), default=0)
    for e in cut.body.eqns:
        known = made_by.get(e.outs[0])
        if e.op == MOVE or (known is None and e.op == "mask"):
            continue  # a value is moved where it is read
        if e.op not in cut.made:
            assert known is not None
            yield known
        elif known and (e.ins, e.outs) == (before[e.outs[0]].ins, before[e.outs[0]].outs):
            yield replace(known, eqn=replace(known.eqn, op=e.op))
        else:
            ins, outs = [local.lies[i] if i else None for i in e.ins], [local.lies[o] for o in e.outs]
            names = [s.name for s in known.strategies] if known and e.op not in cut.regions else ["kernel"] * n_axes
            strategies = tuple(
                Strategy(names[a], tuple(i and i[1][a] for i in ins), tuple(o[1][a] for o in outs))
                for a in range(n_axes)
            )
            whole = tuple(types[o] for o, _ in outs)
            yield PlacedEqn(replace(e, ins=tuple(i and i[0] for i in ins), types=whole), strategies)
