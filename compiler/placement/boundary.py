"""Values between calls: which of them must lie alike, and how an axis's role lays them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.roles import KIND_OF, Context, Followed, Kind, context_of
from specc.compiler.placement.types import Axis, Layout, Mesh, P, Place, R, S, V, fits
from specc.compiler.program import Program
from specc.compiler.types import TensorType

Rule = tuple[Kind, ...]  # the kinds of dims that a free axis splits between calls; none: nothing


@dataclass(frozen=True)
class Slot:
    """An operand or result of a body, by name."""

    body: str
    name: str


Sums = frozenset[tuple[int, Slot]]  # an axis and a result


@dataclass(frozen=True)
class Group:
    """Values and slots that calls join, so that they have one layout; what tiles a body ties its ins to its outs."""

    values: tuple[str, ...]
    slots: tuple[Slot, ...]
    type: TensorType
    marks: Mapping[Kind, int]  # the first marked dim of each kind

    @property
    def is_index(self) -> bool:
        return self.type.dtype != "float"


def groups(program: Program, followed: Followed) -> list[Group]:
    """All of them, in the order of the program."""
    root: dict[str | Slot, str | Slot] = {}

    def find(x: str | Slot) -> str | Slot:
        while root.setdefault(x, x) != x:
            x = root[x]
        return x

    for name in program.inputs:
        find(name)
    for call in program.calls:
        body = program.bodies[call.body]
        inner = [*(v.name for v in body.ins), *body.outs]
        for value, name in zip((*call.ins, *call.outs), inner, strict=True):
            a, b = find(value), find(Slot(call.body, name))
            if a != b:
                root[b] = a
    members: dict[str | Slot, list[str | Slot]] = {}
    for x in root:
        members.setdefault(find(x), []).append(x)
    return [_group(program, followed, each) for each in members.values()]


def _group(program: Program, followed: Followed, members: Sequence[str | Slot]) -> Group:
    slots = tuple(m for m in members if isinstance(m, Slot))
    values = tuple(m for m in members if isinstance(m, str))
    types = [program.bodies[s.body].types()[s.name] for s in slots]
    types += [program.inputs[v] for v in values if v in program.inputs]
    marks: dict[Kind, int] = {}
    for kind, names in followed.names.items():
        places = {p for s in slots for n, p in followed.marks[s.body][kind] if n == s.name}
        places |= {p for t in types for p, d in enumerate(t.dims) if d.name in names}
        if places:
            marks[kind] = min(places)
    return Group(values, slots, types[0], marks)


def lay(
    group: Group, mesh: Mesh, rules: Sequence[Rule], program: Program, sizes: Mapping[str, int], context: Context,
    sums: Sums,
) -> Layout:  # fmt: skip
    """The group's layout; on a free axis as its rule says."""
    found: list[Place] = []
    for a, axis in enumerate(mesh.axes):
        place = _along(group, axis, rules[a], program, context_of(axis, mesh, context))
        if place == V and not group.type.dims and _is_sum(group, a, program, sums):
            place = P
        rest = (R,) * (len(mesh.axes) - a - 1)
        if place.kind == "S" and not fits(group.type, (*found, place, *rest), mesh, sizes):
            place = R
        found.append(place)
    return tuple(found)


def _along(group: Group, axis: Axis, rule: Rule, program: Program, context: Context) -> Place:
    kinds = rule if axis.role == "free" else (KIND_OF[axis.role],)
    at = next((group.marks[k] for k in kinds if k in group.marks), None)
    if program.loss in group.values or (not group.type.dims and set(group.values) & set(program.outputs.values())):
        return R
    if group.is_index:
        whole = axis.role == "sequence" and (
            _of_keys(group, program) or (group.type.dtype == "bool" and context == "ulysses")
        )
        return R if at is None or whole or axis.role == "free" else S(at)
    if at is not None:
        return S(at)
    return R if axis.role == "free" else V


def _of_keys(group: Group, program: Program) -> bool:
    """Whether a mask reads an attribute of keys from it: each rank needs those of all tokens."""
    return any(_key_attributes(program, s) for s in group.slots) and any(v in program.inputs for v in group.values)


def _key_attributes(program: Program, slot: Slot) -> bool:
    masks = [e for e in program.bodies[slot.body].eqns if e.op == "mask"]
    return any(
        i == slot.name and str(n).startswith("k.") for e in masks for n, i in zip(e.attrs["names"], e.ins, strict=True)
    )


def _is_sum(group: Group, axis: int, program: Program, sums: Sums) -> bool:
    """Whether every body that makes it can give it as parts of a sum."""
    made = [s for s in group.slots if s.name in program.bodies[s.body].outs]
    return bool(made) and all((axis, s) in sums for s in made) and not set(group.values) & set(program.inputs)


def partial_outs(program: Program, domains: Mapping[str, Sequence[Sequence[Sequence[Strategy]]]]) -> Sums:
    """The axes and results of bodies whose equation can give a partial sum."""
    return frozenset(
        (a, Slot(name, o))
        for name, body in program.bodies.items()
        for e, each in zip(body.eqns, domains[name], strict=True)
        for j, o in enumerate(e.outs) if o in body.outs
        for a, found in enumerate(each) if any(s.outs[j] == P for s in found)
    )  # fmt: skip
