"""An equation seen along one axis: the pieces that strategies are put together from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.types import Axis, P, Place, R, S, V
from specc.compiler.program import Eqn
from specc.compiler.types import TensorType, size_of


@dataclass(frozen=True)
class Case:
    """An equation, the types of its operands, and the axis. Whole numbers have no gradient: they are R, not V or P."""

    eqn: Eqn
    ins: tuple[TensorType | None, ...]
    axis: Axis
    sizes: Mapping[str, int]

    def type(self, i: int) -> TensorType | None:
        return self.ins[i] if i < len(self.ins) else None

    def at(self, i: int) -> TensorType:
        """The type of an operand that is there."""
        t = self.ins[i]
        assert t is not None
        return t

    def floats(self) -> list[int]:
        return [i for i, t in enumerate(self.ins) if t is not None and t.dtype == "float"]

    def named(self, i: int, name: str) -> int | None:
        """Where an operand has a dim of this name; None if it has none, or is left out."""
        t = self.type(i)
        return next((p for p, d in enumerate(t.dims) if d.name == name), None) if t else None

    def replicated(self) -> Iterator[Strategy]:
        """All R, and all V; the same for an equation without real numbers."""
        for place in (R, V):
            ins = tuple(None if t is None else _real(t, place) for t in self.ins)
            yield Strategy("rep", ins, tuple(_real(t, place) for t in self.eqn.types))

    def cut(self, ins: Mapping[int, int], outs: Mapping[int, int], name: str = "", label: str = "") -> Strategy | None:
        """Operands and results split on these places, other operands V, other results P; None where a rest is left."""
        parts = [(self.at(i), p) for i, p in ins.items() if self.type(i) is not None]
        parts += [(self.eqn.types[j], p) for j, p in outs.items()]
        if not all(size_of(t.dims[p], self.sizes) % self.axis.size == 0 for t, p in parts):
            return None
        kind, dim = ("split", self.eqn.types[min(outs)].dims[outs[min(outs)]]) if outs else ("sum", None)
        if dim is None:
            dim = self.at(min(ins)).dims[ins[min(ins)]]
        takes = tuple(None if t is None else S(ins[i]) if i in ins else _real(t, V) for i, t in enumerate(self.ins))
        gives = tuple(S(outs[j]) if j in outs else _real(t, P) for j, t in enumerate(self.eqn.types))
        return Strategy(name or f"{kind}:{label or dim.name}", takes, gives)

    def linear(self, *chosen: int) -> Strategy | None:
        """Partial sums in these operands stay partial sums."""
        if not chosen:
            return None
        takes = tuple(None if t is None else _real(t, P if i in chosen else V) for i, t in enumerate(self.ins))
        name = f"linear:{chosen[0]}" if len(chosen) == 1 else "linear"
        return Strategy(name, takes, tuple(_real(t, P) for t in self.eqn.types))

    def whole(self, s: Strategy | None) -> Strategy | None:
        """The same with results that are whole on each rank."""
        return replace(s, outs=tuple(R for _ in s.outs)) if s else None


def _real(t: TensorType, place: Place) -> Place:
    return place if t.dtype == "float" else R
