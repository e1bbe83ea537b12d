"""Positions and masks: values that a step needs and that no step makes."""

from __future__ import annotations

from typing import Any

from specc.compiler.elaborate.scope import Frame, Path, Poisoned
from specc.compiler.elaborate.unit import Value
from specc.compiler.masks import CAUSAL, MaskError, bound, expand
from specc.compiler.ops import OPS
from specc.compiler.ops.row import Applied
from specc.compiler.types import Dim, TensorType
from specc.spec.expr import Expr


def positions(frame: Frame, given: Any, x: TensorType, at: Path) -> Value:
    """Positions of the tokens of x [... S H E]: named, else the attribute `pos`, else the index along S."""
    if isinstance(given, str):
        return frame.value(given, at)
    seq = x.dims[-3] if len(x.dims) >= 3 else x.dims[0]
    found = frame.attribute("pos", (seq,))
    if found is not None:
        return found
    return frame.emit("index", [], (TensorType((seq,), "int"),), {"of": seq}, "positions")[0]


def mask(frame: Frame, tree: Expr, q: Dim, k: Dim, at: Path) -> Value | None:
    """The dense mask of an expanded predicate for queries along q and keys along k, made once in the model.

    None if it is plain causal self-attention, which kernels know by name."""
    if tree == CAUSAL and q == k:
        return None
    key = f"{tree} {q.name} {k.name}"
    if key not in frame.ctx.made_masks:
        frame.ctx.made_masks[key] = _make(frame, tree, q, k, at)
    made = frame.ctx.made_masks[key]
    return made if frame.own_unit is None else Value(frame.own_unit.capture(made.name, made.type), made.type, "mask")


def expanded(frame: Frame, predicate: str, at: Path) -> Expr:
    """A predicate as it stands in the frame, without names."""
    sizes = {n: d.size for n, d in frame.ctx.model_dims.items() if d.size is not None}
    try:
        return expand(bound(predicate, frame.ctx.masks, frame.numbers()), frame.ctx.masks, sizes)
    except MaskError as e:
        frame.fail("S206", str(e), at, e.hint)


def with_numbers(frame: Frame, predicate: str, at: Path) -> str:
    """A predicate with the numbers that names stand for here, as a block takes it that does not know these names."""
    try:
        return bound(predicate, frame.ctx.masks, frame.numbers())
    except MaskError as e:
        frame.fail("S206", str(e), at, e.hint)


def _make(frame: Frame, tree: Any, q: Dim, k: Dim, at: Path) -> Value:
    names: list[str] = []
    ins: list[str | None] = []
    types: list[TensorType | None] = []
    for node in tree.walk():
        if node.op != "attr" or node.value in names or str(node.value).endswith(".index"):
            continue
        side, _, attribute = str(node.value).partition(".")
        dim = q if side == "q" else k
        own = next(((n, t) for n, t in frame.ctx.attributes.get(attribute, []) if t.dims[-1] == dim), None)
        if attribute in frame.ctx.unknown_attributes:
            raise Poisoned
        if own is None:
            declared = ", ".join(frame.ctx.attributes) or "none"
            frame.fail(
                "S206", f"the mask needs the attribute '{attribute}' of the tokens along '{dim.name}'", at,
                f"declare it under 'attributes:' as int[B {dim.name}] (declared: {declared})",
            )  # fmt: skip
        names.append(str(node.value))
        ins.append(own[0])
        types.append(own[1])
    row = OPS["mask"]
    attrs = {"predicate": tree, "q": q, "k": k, "names": names}
    assert row.infer is not None
    out = row.infer(Applied(tuple(types), attrs, {}))
    model = frame.ctx.model
    name = model.segment.emit("mask", ins, out, attrs, "mask")[0]
    model.types[name] = out[0]
    return Value(name, out[0], "mask")
