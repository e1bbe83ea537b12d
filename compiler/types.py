"""Named dimensions and tensor types. No torch here: a spec is checked without it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from specc.spec.expr import Expr, evaluate, parse

DType = Literal["float", "int", "bool"]


@dataclass(frozen=True)
class Dim:
    """A dimension's name and size; a size of None is bound when a stage is built (batch, sequence).

    `of` is the expression over the base dims that gives the size of a derived dim (`S + T`, `H // 2`, a
    renamed `B`); empty for a base dim."""

    name: str
    size: int | None = None
    of: str = ""

    def __str__(self) -> str:
        return self.name

    @property
    def is_plain(self) -> bool:
        """A name the user chose, not a number or an expression."""
        return self.name.isidentifier()

    def shown(self) -> str:
        """`D=512`, for messages."""
        return self.name if self.size is None or not self.is_plain else f"{self.name}={self.size}"


def number_dim(size: int) -> Dim:
    return Dim(str(size), size)


def same(a: Dim, b: Dim) -> bool:
    """Equal names, or equal sizes of which at least one is a number or an expression."""
    if a.name == b.name:
        return a.size == b.size
    return a.size is not None and a.size == b.size and not (a.is_plain and b.is_plain)


def places(have: tuple[Dim, ...], want: tuple[Dim, ...]) -> list[int | None]:
    """Where each dim stands among the wanted ones: by name first, else by size; no place is taken twice."""
    found: list[int | None] = [None] * len(have)
    for alike in (lambda a, b: a.name == b.name and same(a, b), same):
        for i, dim in enumerate(have):
            if found[i] is None:
                free = (j for j, w in enumerate(want) if j not in found and alike(dim, w))
                found[i] = next(free, None)
    return found


def preferred(a: Dim, b: Dim) -> Dim:
    return b if b.is_plain and not a.is_plain else a


@dataclass(frozen=True)
class TensorType:
    """Named dims and a kind of number; `float` is whatever the plan computes in."""

    dims: tuple[Dim, ...]
    dtype: DType = "float"

    def __str__(self) -> str:
        return f"{self.dtype}[{' '.join(d.name for d in self.dims)}]"

    def shown(self) -> str:
        return f"{self.dtype}[{' '.join(d.shown() for d in self.dims)}]"

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The concrete shape once the open dims have sizes."""
        return tuple(size_of(d, sizes) for d in self.dims)

    def numel(self, sizes: Mapping[str, int]) -> int:
        return math.prod(self.shape(sizes))

    def with_dims(self, *dims: Dim) -> TensorType:
        return TensorType(dims, self.dtype)


def size_of(dim: Dim, sizes: Mapping[str, int]) -> int:
    if dim.size is not None:
        return dim.size
    if dim.name in sizes:
        return sizes[dim.name]
    return int(evaluate(parse(dim.of or dim.name), sizes))


def derived(e: Expr, names: Mapping[str, Dim]) -> Dim:
    """The dim that an expression over dims stands for: a plain name is that dim itself."""
    if e.op == "name" and e.value in names:
        return names[str(e.value)]
    known = {n: d.size for n, d in names.items() if d.size is not None}
    used = e.names()
    if all(n in known for n in used):
        size = evaluate(e, known)
        whole = int(size)
        if whole != size:
            raise ValueError(f"'{e}' is {size}, and a dim is a whole number")
        # arithmetic over known sizes keeps its text as a name, so that messages stay readable
        return Dim(str(whole) if not used else str(_over(e, names)), whole)
    text = str(_over(e, names))
    return Dim(text, None, str(_over(e, names, base=True)))


def _over(e: Expr, names: Mapping[str, Dim], base: bool = False) -> Expr:
    """The expression with each name replaced by its dim's own name (or its expression over base dims)."""
    if e.op == "name":
        dim = names.get(str(e.value))
        if dim is None:
            return e
        return parse(str(dim.size) if dim.size is not None and base else (base and dim.of) or dim.name)
    return Expr(e.op, e.value, tuple(_over(a, names, base) for a in e.args))


def prod_size(dims: tuple[Dim, ...], name: str | None = None) -> Dim:
    """The dim of several flattened into one."""
    if len(dims) == 1:
        return dims[0]
    text = " * ".join(f"({d.of or d.name})" if d.size is None else str(d.size) for d in dims)
    label = name or " * ".join(d.name if d.is_plain else f"({d.name})" for d in dims) or "1"
    if all(d.size is not None for d in dims):
        return Dim(label, math.prod(d.size or 0 for d in dims))
    return Dim(label, None, text)
