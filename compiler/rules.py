"""Rule strings over dim names: `... i*, i* o* -> ... o*`. Parsing, matching against types, and what a match binds.

Tokens: `x` one dim, `x*` any number of dims, `...` the batch dims that all operands share, `!x` a dim that may
not be split over a mesh axis."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from specc.compiler.types import Dim, preferred, same

ELLIPSIS = "..."


@dataclass(frozen=True)
class Token:
    """One letter of a pattern; `many` letters stand for any number of dims."""

    letter: str
    many: bool = False
    fixed: bool = False


Pattern = tuple[Token, ...]
Binding = dict[str, tuple[Dim, ...]]


@dataclass(frozen=True)
class Rule:
    """The operands' patterns and the results' patterns."""

    ins: tuple[Pattern, ...]
    outs: tuple[Pattern, ...]

    @property
    def contracted(self) -> tuple[str, ...]:
        """Letters that are summed over: in an operand and in no result."""
        kept = {t.letter for p in self.outs for t in p}
        return tuple(dict.fromkeys(t.letter for p in self.ins for t in p if t.letter not in kept))


class Mismatch(Exception):
    """An operand does not fit its pattern. `dim` is what was found, `wanted` what the letter was bound to.

    `place` says which dim of the operand it is."""

    def __init__(self, message: str, wanted: Dim | None = None, dim: Dim | None = None, place: str = "") -> None:
        super().__init__(message)
        self.wanted, self.dim, self.place = wanted, dim, place


@cache
def parse_rule(text: str) -> Rule:
    left, _, right = text.partition("->")
    return Rule(_patterns(left), _patterns(right))


def _patterns(text: str) -> tuple[Pattern, ...]:
    return tuple(tuple(_token(w) for w in part.split()) for part in text.split(","))


def _token(word: str) -> Token:
    fixed = word.startswith("!")
    word = word.removeprefix("!")
    many = word == ELLIPSIS or word.endswith("*")
    return Token(word if word == ELLIPSIS else word.removesuffix("*"), many, fixed)


def match(pattern: Pattern, dims: tuple[Dim, ...], binding: Binding) -> None:
    """Bind the pattern's letters to the dims, or raise Mismatch."""
    lengths = [len(binding[t.letter]) if t.many and t.letter in binding else 1 for t in pattern]
    open_ = [i for i, t in enumerate(pattern) if t.many and t.letter not in binding]
    assert len(open_) <= 1, f"the pattern {pattern} has two open groups"
    spare = len(dims) - sum(n for i, n in enumerate(lengths) if i not in open_)
    if spare < 0 or (spare > 0 and not open_):
        shape = " ".join(d.name for d in dims)
        raise Mismatch(f"needs dims [{show(pattern, binding)}], got [{shape}]")
    for i in open_:
        lengths[i] = spare
    at = 0
    for token, length in zip(pattern, lengths, strict=True):
        _bind(token, dims[at : at + length], binding, at, len(dims))
        at += length


def _bind(token: Token, dims: tuple[Dim, ...], binding: Binding, start: int, count: int) -> None:
    known = binding.get(token.letter)
    if known is None:
        binding[token.letter] = dims
        return
    for i, (want, got) in enumerate(zip(known, dims, strict=True), start):
        if not same(want, got):
            place = "last dim" if i == count - 1 else "first dim" if i == 0 else f"dim {i + 1}"
            raise Mismatch(f"needs {want.shown()}, got {got.shown()}", want, got, place)
    binding[token.letter] = tuple(preferred(a, b) for a, b in zip(known, dims, strict=True))


def show(pattern: Pattern, binding: Mapping[str, tuple[Dim, ...]]) -> str:
    words: list[str] = []
    for t in pattern:
        words += [d.name for d in binding[t.letter]] if t.letter in binding else [t.letter]
    return " ".join(words)


def build(pattern: Pattern, binding: Mapping[str, tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The dims of an operand whose letters are all bound."""
    return tuple(d for t in pattern for d in binding[t.letter])
