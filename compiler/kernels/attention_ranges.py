"""Which tiles of keys a tile of queries goes over, and the other way round: by the form of the mask's predicate, and by
the bounds that attributes have in tiles, so that documents and chunks cost their own tiles alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specc.compiler.kernels.attention_text import SIGHT
from specc.compiler.kernels.mask_forms import ALWAYS, Span, may_hold
from specc.compiler.masks import CAUSAL, implies_causal, reach
from specc.spec.expr import Expr

BY = ("q.index", "k.index"), ("k.index", "q.index")  # how far a key is behind a query, and ahead of it


@dataclass(frozen=True)
class Ranges:
    """The attributes `names` are a0, a1, ... in the kernels; indices of a part begin at `q_first` and `k_first`."""

    predicate: Expr
    names: Sequence[str]
    is_part: bool

    def words(self) -> dict[str, str]:
        """Over which tiles the loops go, and how it is found out where what a tile may see begins and ends."""
        form = self._by_form()
        if not self._seeks():
            return form | {"SEEK_KEYS": "", "SEEK_QUERIES": ""}
        found: dict[str, str] = {}
        for one, others in (("KEY", "keys"), ("QUERY", "queries")):
            ends = f"{form[f'FIRST_{one}']}, {form[f'LAST_{one}']}"
            call = (
                f"{others}_in_sight(\n        {ends},\n        batch, n_q, n_k{self._given()}, BLOCK_Q, BLOCK_K,\n    )"
            )
            found |= {f"SEEK_{others.upper()}": f"\n    begin, end = {call}"}
            found |= {f"FIRST_{one}": "begin", f"LAST_{one}": "end"}
        return found

    def functions(self) -> list[str]:
        """The functions that find it out, as texts."""
        if not self._seeks():
            return []
        return [self._sight("q", "k", "queries", "keys"), self._sight("k", "q", "keys", "queries")]

    def _by_form(self) -> dict[str, str]:
        """The first and the last tile by the predicate's form: windows, causality."""
        back, ahead = (reach(self.predicate, by) for by in BY)
        if implies_causal(self.predicate):
            ahead = 0
        to_keys, to_queries = (" + q_first - k_first", " + k_first - q_first") if self.is_part else ("", "")
        return {
            "FIRST_KEY": "0" if back is None else _begin("Q", to_keys, "K", back),
            "LAST_KEY": "n_k" if ahead is None else _end("n_k", "Q", to_keys, ahead),
            "FIRST_QUERY": "0" if ahead is None else _begin("K", to_queries, "Q", ahead),
            "LAST_QUERY": "n_q" if back is None else _end("n_q", "K", to_queries, back),
        }

    def _seeks(self) -> bool:
        """Whether bounds in tiles tell more than the form."""
        return may_hold(_without_form(self.predicate), self._spans()) != ALWAYS

    def _spans(self) -> dict[str, Span]:
        """What the bounds of attributes in a tile are called."""
        texts = {f"{s}.index": f"({s}_first + {s}_{{}})" if self.is_part else f"{s}_{{}}" for s in "qk"}
        texts |= {n: f"a{i}_{{}}" for i, n in enumerate(self.names)}
        return {n: (text.format("low"), text.format("high")) for n, text in texts.items()}

    def _given(self) -> str:
        firsts = ", q_first, k_first" if self.is_part else ""
        return firsts + "".join(f", a{i}_ptr" for i in range(len(self.names)))

    def _sight(self, own: str, other: str, owns: str, others: str) -> str:
        text = SIGHT
        words = {
            "OWNS": owns, "OTHERS": others, "GIVEN": self._given(), "MAY": may_hold(self.predicate, self._spans()),
            "OWN_BOUNDS": self._extremes(own, 4, 0), "OTHER_BOUNDS": self._extremes(other, 8, 1),
            "OWN": own, "OTHER": other, "OWN_BLOCK": f"BLOCK_{own.upper()}", "OTHER_BLOCK": f"BLOCK_{other.upper()}",
        }  # fmt: skip
        for word, meaning in words.items():
            text = text.replace(f"<{word}>", meaning)
        return text

    def _extremes(self, side: str, indent: int, axis: int) -> str:
        lines: list[str] = []
        for x in (f"a{i}" for i, n in enumerate(self.names) if n.startswith(side)):
            lines.append(f"{x} = tl.load({x}_ptr + batch * n_{side} + {side}_index)")
            lines.append(f"{x}_low, {x}_high = tl.min({x}, axis={axis}), tl.max({x}, axis={axis})")
        return ("\n" + " " * indent).join(lines) or "pass"


def _begin(of: str, to: str, by: str, less: int) -> str:
    at = f"tl.program_id(0) * BLOCK_{of}{to}" + (f" - {less}" if less else "")
    return f"{f'tl.maximum(0, {at})' if to or less else at} // BLOCK_{by} * BLOCK_{by}"


def _end(n: str, of: str, to: str, more: int) -> str:
    return f"tl.minimum({n}, (tl.program_id(0) + 1) * BLOCK_{of}{to}" + (f" + {more})" if more else ")")


def _without_form(e: Expr) -> Expr:
    """The predicate without the conditions that bound by their form."""
    if e.op == "and":
        return Expr("and", args=tuple(map(_without_form, e.args)))
    return Expr("num", True) if e == CAUSAL or any(reach(e, by) is not None for by in BY) else e
