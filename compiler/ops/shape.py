"""Rows: ops that move, join and pick values; none of them does arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from specc.compiler.ops.row import INIT, Applied, Arg, Op, OpError, Weight
from specc.compiler.types import Dim, TensorType, derived, places, preferred, prod_size
from specc.spec.expr import parse


def axis_of(t: TensorType, dim: Dim, operand: int = 0) -> int:
    """Where a tensor has a dim."""
    for i, d in enumerate(t.dims):
        if d.name == dim.name:
            return i
    raise OpError("S202", f"{t} has no dim '{dim.name}'", operand=operand)


def groups(side: str) -> list[list[str]]:
    """`b (h e)` as [[b], [h, e]]."""
    out: list[list[str]] = []
    inside: list[str] | None = None
    for word in side.replace("(", " ( ").replace(")", " ) ").split():
        if word == "(":
            inside = []
        elif word == ")":
            if inside is None:
                raise OpError("S103", f"unbalanced bracket in '{side}'")
            out.append(inside)
            inside = None
        elif inside is not None:
            inside.append(word)
        else:
            out.append([word])
    if inside is not None:
        raise OpError("S103", f"unbalanced bracket in '{side}'")
    return out


def solve_letters(side: list[list[str]], dims: tuple[Dim, ...], given: dict[str, Dim]) -> dict[str, Dim]:
    """The dim of each letter on the left of a pattern; one letter of a group may be left open."""
    if len(side) != len(dims):
        raise OpError("S201", f"the pattern has {len(side)} dims, got [{' '.join(d.name for d in dims)}]")
    known = dict(given)
    for group, dim in zip(side, dims, strict=True):
        open_ = [x for x in group if x not in known]
        if len(group) == 1:
            known.setdefault(group[0], dim)
        elif len(open_) > 1:
            raise OpError("S103", f"the sizes of {', '.join(open_)} are not known; give them under 'dims'")
        elif open_:
            rest = prod_size(tuple(known[x] for x in group if x not in open_))
            known[open_[0]] = _quotient(dim, rest)
    return known


def _quotient(dim: Dim, rest: Dim) -> Dim:
    if dim.size is not None and rest.size is not None:
        if dim.size % rest.size:
            raise OpError("S203", f"{dim.shown()} does not split into parts of {rest.shown()}")
        return Dim(str(dim.size // rest.size), dim.size // rest.size)
    return derived(parse("n // r"), {"n": dim, "r": rest})


def _rearrange(a: Applied) -> tuple[TensorType, ...]:
    left, arrow, right = str(a.args["pattern"]).partition("->")
    if not arrow:
        raise OpError("S103", "a pattern reads 'left -> right'")
    x = a.type(0)
    letters = solve_letters(groups(left), x.dims, a.args["dims"] or {})
    sides = groups(right)
    unknown = [w for g in sides for w in g if w not in letters]
    lost = [w for w in letters if w not in [v for g in sides for v in g]]
    if unknown or lost:
        raise OpError("S103", f"the two sides differ in '{(unknown or lost)[0]}'")
    dims = tuple(prod_size(tuple(letters[w] for w in g)) for g in sides)
    return (TensorType(_called(dims, a.args["as_dims"]), x.dtype),)


def _called(dims: tuple[Dim, ...], names: tuple[Dim, ...] | None) -> tuple[Dim, ...]:
    """The dims under other names, which must agree in size."""
    if names is None:
        return dims
    wrong = [(d, n) for d, n in zip(dims, names, strict=False) if d != n and (d.size is None or d.size != n.size)]
    if len(names) != len(dims) or wrong:
        what = f"{wrong[0][0].shown()} is not {wrong[0][1].shown()}" if wrong else f"there are {len(dims)} dims"
        raise OpError("S201", f"'as_dims' does not fit the result: {what}")
    return names


def joined(types: Sequence[TensorType], over: Sequence[Dim]) -> tuple[int, list[list[int | None]]]:
    """Where a concat of these inputs joins, and for each input where its dims stand in the result; dims fit by name, or
    by size. An input may lack dims of the result."""
    names = over if len(over) == len(types) else [*over] * len(types)
    if len(names) != len(types):
        raise OpError("S103", f"'over' names one dim, or one for each of the {len(types)} inputs")
    owner = max(
        range(len(types)),
        key=lambda i: (names[i].name in [d.name for d in types[i].dims], len(types[i].dims)),
    )
    at = axis_of(types[owner], names[owner], owner)
    others = types[owner].dims[:at] + types[owner].dims[at + 1 :]
    found = list[list[int | None]]()
    for t, name in zip(types, names, strict=True):
        free = iter(places(tuple(d for d in t.dims if d.name != name.name), others))
        spots = [at if d.name == name.name else next(free) for d in t.dims]
        found.append(
            [s if s is None or d.name == name.name else s + (s >= at) for s, d in zip(spots, t.dims, strict=True)]
        )
    return at, found


def _concat(a: Applied) -> tuple[TensorType, ...]:
    types = [t for t in a.ins if t is not None]
    at, found = joined(types, a.args["over"])
    owner = types[max(range(len(types)), key=lambda i: (at in found[i], len(found[i])))]
    letters = dict[str, Dim]()
    dims = list(owner.dims)
    for i, (t, spots) in enumerate(zip(types, found, strict=True)):
        letters[f"p{i}"] = t.dims[spots.index(at)] if at in spots else Dim("1", 1)
        for d, spot in zip(t.dims, spots, strict=True):
            if spot is None:
                raise OpError("S201", f"input {i} has dim '{d.shown()}', which {owner.shown()} has not", operand=i)
            dims[spot] = preferred(dims[spot], d)
    dims[at] = a.args["as_dim"] or derived(parse(" + ".join(letters)), letters)
    return (TensorType(tuple(dims), owner.dtype),)


def _split(a: Applied) -> tuple[TensorType, ...]:
    x, into = a.type(0), a.args["into"]
    at = axis_of(x, a.args["over"]) if a.args["over"] else len(x.dims) - 1
    sizes = [d.size for d in into]
    known = [s for s in sizes if s is not None]
    if x.dims[at].size is not None and len(known) == len(sizes) and sum(known) != x.dims[at].size:
        raise OpError("S203", f"{x.dims[at].shown()} does not split into {' + '.join(map(str, known))}")
    return tuple(TensorType((*x.dims[:at], d, *x.dims[at + 1 :]), x.dtype) for d in into)


def _slice(a: Applied) -> tuple[TensorType, ...]:
    x, length = a.type(0), a.args["length"]
    at = axis_of(x, a.args["over"])
    size = x.dims[at].size
    if size is not None and length.size is not None and a.args["start"] + length.size > size:
        raise OpError("S203", f"{a.args['start']} + {length.size} passes the end of {x.dims[at].shown()}")
    return (TensorType((*x.dims[:at], length, *x.dims[at + 1 :]), x.dtype),)


def _pick(a: Applied) -> tuple[TensorType, ...]:
    x = a.type(0)
    at, place = axis_of(x, a.args["over"]), a.args["at"]
    size = x.dims[at].size
    if size is not None and not -size <= place < size:
        raise OpError("S203", f"{x.dims[at].shown()} has no entry {place}")
    return (TensorType(x.dims[:at] + x.dims[at + 1 :], x.dtype),)


def _unbind(a: Applied) -> tuple[TensorType, ...]:
    x = a.type(0)
    at = axis_of(x, a.args["over"])
    n = x.dims[at].size
    if n is None or n > MAX_PARTS:
        raise OpError("S203", f"{x.dims[at].shown()} does not fall into 1 to {MAX_PARTS} known parts")
    return (TensorType(x.dims[:at] + x.dims[at + 1 :], x.dtype),) * n


def _take(a: Applied) -> tuple[TensorType, ...]:
    """The index has the dims before `over`, then its own: new ones, or `over` itself (entries in another order)."""
    x, index, over = a.type(0), a.type(1), a.args["over"]
    at = axis_of(x, over)
    shared = tuple(d for d in index.dims if d in x.dims and d.name != over.name)
    if shared != index.dims[: len(shared)] or shared != x.dims[: len(shared)] or len(shared) not in (0, at):
        before = " ".join(d.name for d in x.dims[:at])
        raise OpError(
            "S201", f"the index {index} must begin with all dims of {x} before '{over.name}' ([{before}]) or none"
        )
    return (TensorType((*x.dims[:at], *index.dims[len(shared) :], *x.dims[at + 1 :]), x.dtype),)


def _rename(a: Applied) -> tuple[TensorType, ...]:
    x, names = a.type(0), a.args["dims"]
    for name in names:
        axis_of(x, Dim(name))
    dims = tuple(_renamed(d, names[d.name]) if d.name in names else d for d in x.dims)
    return (TensorType(dims, x.dtype),)


def _renamed(d: Dim, name: Any) -> Dim:
    return Dim(str(name), d.size, "" if d.size is not None else d.of or d.name)


def _index(a: Applied) -> tuple[TensorType, ...]:
    return (TensorType((a.args["of"],), "int"),)


def _expand(a: Applied) -> tuple[TensorType, ...]:
    x, dims = a.type(0), tuple(a.args["dims"])
    missing = [d for d in x.dims if d not in dims]
    if missing:
        raise OpError("S202", f"'dims' lacks '{missing[0].name}' of {x}")
    return (TensorType(dims, x.dtype),)


def _upsample(a: Applied) -> tuple[TensorType, ...]:
    x, factor = a.type(0), a.args["factor"]
    if len(x.dims) < 3 or x.dims[1].size is None:
        hint = "take images or sound apart: [B channels *space], with a known number of channels"
        raise OpError("S201", f"it enlarges the space of [batch channels *space], got {x.shown()}", hint)
    big = [derived(parse(f"n * {factor}"), {"n": d}) for d in x.dims[2:]]
    return (TensorType((*x.dims[:2], *(Dim(str(d.size), d.size) if d.size else d for d in big)), x.dtype),)


MAX_PARTS = 64
ANY: tuple[Literal["any"], ...] = ("any",)
ROWS = (
    Op("rearrange", "-> ", "Split, join and reorder dims: 'b s (h e) -> b s h e'; `dims` gives the new letters' dims.",
       args={"pattern": Arg("str"), "dims": Arg("renames", None, "{letter: dim}"),
             "as_dims": Arg("dims", None, "names for the result's dims")},
       takes=ANY, infer=_rearrange, flops="none"),
    Op("concat", "-> ", "Join along a dim; `over` names it, or one dim for each input; a missing dim counts as 1.",
       inputs=("*xs",), args={"over": Arg("dims"), "as_dim": Arg("dim", None, "name of the joined dim")},
       takes=ANY * 8, infer=_concat, flops="none", mixes="over"),
    Op("split", "-> ", "Cut a dim (default: the last) into parts with the dims `into`.",
       args={"into": Arg("dims"), "over": Arg("dim", None)}, takes=ANY, infer=_split, flops="none", mixes="over"),
    Op("slice", "-> ", "`length` entries of a dim from `start`.",
       args={"over": Arg("dim"), "start": Arg("int", 0, within="[0, inf)"), "length": Arg("dim")},
       takes=ANY, infer=_slice, flops="none", mixes="over"),
    Op("pick", "-> ", "One entry of a dim, which goes; `at` may be negative.",
       args={"over": Arg("dim"), "at": Arg("int", 0)}, takes=ANY, infer=_pick, flops="none", mixes="summed"),
    Op("unbind", "-> ", "All entries of a dim, each a result of its own: `as: [scale, shift]`.",
       args={"over": Arg("dim")}, takes=ANY, infer=_unbind, flops="none", mixes="summed"),
    Op("take", "-> ", "Entries of a dim by an integer tensor, per batch; an index along the dim itself sorts it.",
       inputs=("x", "index"),
       args={"over": Arg("dim")}, takes=("any", "int"), infer=_take, flops="none", mixes="over"),
    Op("rename", "-> ", "Give dims other names: {B: N}.", args={"dims": Arg("pattern")}, takes=ANY, infer=_rename,
       flops="none"),
    Op("index", "-> ", "0, 1, 2, ... along a dim.", inputs=(), args={"of": Arg("dim")}, gives=("int",), infer=_index,
       flops="none"),
    Op("expand", "-> ", "Repeat along the dims that the input lacks.", args={"dims": Arg("dims")}, takes=ANY,
       infer=_expand, flops="none"),
    Op("upsample", "-> ", "Nearest-neighbour enlargement of the space dims of [batch channels *space].",
       args={"factor": Arg("int", 2, within="[1, inf)")}, infer=_upsample, mixes="space"),
    Op("param", "s* -> s*", "A parameter of its own, as a value.", inputs=(), weights=(Weight(""),),
       args={"shape": Arg("dims"), "init": INIT}, binds={"s": "shape"}, flops="none"),
)  # fmt: skip
