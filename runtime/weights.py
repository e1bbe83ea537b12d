"""The parameters of a step: where graphs take them from, and where their gradients go.

`Whole` is of one process. `Carried` is of a mesh: parameters are kept in parts, come together before their use and go
after it, and gradients are brought to where their parameters are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from specc.compiler.graphs import comes_again
from specc.compiler.program import Call
from specc.runtime.boxed import Function


@dataclass(frozen=True)
class Compiled:
    """A body's callables and how their operands and results are laid out (see compiler.graphs: Graphs and Carry)."""

    fwd: Function
    bwd: Function | None
    bwd_input: Function | None
    bwd_weight: Function | None
    n_outs: int
    in_grads: tuple[bool, ...]
    param_grads: tuple[bool, ...]
    out_grads: tuple[bool, ...]
    saved_from: tuple[int, ...] = ()
    gathered: tuple[int, ...] = ()
    reduced: tuple[int, ...] = ()
    unshard_start: Function | None = None
    unshard_finish: Function | None = None
    reduce_start: Function | None = None
    reduce_finish: Function | None = None

    @cached_property
    def again(self) -> dict[int, int]:
        """Which saved values are parameters that come again for the backward."""
        return comes_again(len(self.in_grads), self.gathered, self.saved_from)


class Weights(Protocol):
    """What the executor asks of the parameters of a step; a call of -1 means all of them.

    `reduce` lets gradients set out; `grads` has all of them behind `arrive`."""

    grads: dict[str, Tensor]

    def unshard(self, call: int) -> None: ...
    def operands(self, call: int) -> list[Tensor]: ...
    def free(self, call: int) -> None: ...
    def add(self, call: int, grads: Sequence[Tensor], beside: Sequence[Tensor]) -> None: ...
    def reduce(self, call: int) -> None: ...
    def arrive(self) -> None: ...


@dataclass(frozen=True)
class Wiring:
    """The calls with their bodies, which parameters are trained, and the dtypes of graphs and of sums of gradients."""

    calls: Sequence[Call]
    bodies: Mapping[str, Compiled]
    trainable: frozenset[str]
    compute: torch.dtype
    reduce: torch.dtype
    coordinates: Sequence[Tensor] = ()

    def body(self, call: int) -> Compiled:
        return self.bodies[self.calls[call].body]

    def trained(self, call: int) -> list[tuple[int, str]]:
        """Place and path of the parameters that the call's backward has gradients of, in order."""
        pairs = enumerate(zip(self.calls[call].params, self.body(call).param_grads, strict=True))
        return [(i, path) for i, (path, flows) in pairs if flows]

    def cast(self, x: Tensor) -> Tensor:
        """A parameter in the dtype that the graphs compute in."""
        return x if x.dtype == self.compute else x.to(self.compute)


Key = TypeVar("Key")


class Sums(Generic[Key]):
    """Gradients that are added up; a sum grows in place."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.of: dict[Key, Tensor] = {}

    def add(self, key: Key, d: Tensor, seen: set[int]) -> None:
        """`seen` are memories that are used elsewhere: a gradient in one of these is copied (x + a + b has such)."""
        known = self.of.get(key)
        memory = d.untyped_storage().data_ptr()
        if known is None:
            self.of[key] = d.to(torch.promote_types(d.dtype, self.dtype), copy=memory in seen)
        else:
            self.of[key] = known.add_(d) if known is not d else known + d
        seen.add(memory)


class Whole:
    """All parameters on this process."""

    def __init__(self, wiring: Wiring, params: Mapping[str, Tensor]) -> None:
        self.wiring, self.params = wiring, params
        self.used: dict[str, Tensor] = {}
        self.sums = Sums[str](wiring.reduce)
        self.grads = self.sums.of

    def unshard(self, call: int) -> None:
        self.used = {n: self.wiring.cast(p) for n, p in self.params.items()}

    def operands(self, call: int) -> list[Tensor]:
        return [self.used[p] for p in self.wiring.calls[call].params]

    def free(self, call: int) -> None:
        """Nothing: they serve the whole step."""

    def add(self, call: int, grads: Sequence[Tensor], beside: Sequence[Tensor]) -> None:
        seen = {d.untyped_storage().data_ptr() for d in beside}
        for (_, path), d in zip(self.wiring.trained(call), grads, strict=True):
            if path in self.wiring.trainable:
                self.sums.add(path, d, seen)

    def reduce(self, call: int) -> None:
        """Nothing: gradients are complete."""

    def arrive(self) -> None:
        """Nothing: they are here."""


@dataclass
class _Coming:
    """Parameters of a call on their way: collectives that began, and the parts that they began with."""

    pending: Sequence[Tensor]
    kept: list[Tensor]


@dataclass
class _Leaving:
    """Gradients of a call on their way: collectives that began, and gradients that stay where they are, by place."""

    call: int
    pending: Sequence[Tensor]
    found: dict[int, Tensor]


class Carried:
    """Parameters in parts, by the graphs of each call's body."""

    def __init__(self, wiring: Wiring, params: Mapping[str, Tensor]) -> None:
        self.wiring, self.params = wiring, params
        self.coming: dict[int, _Coming] = {}
        self.used: dict[int, list[Tensor]] = {}
        self.leaving: _Leaving | None = None
        self.partial = Sums[tuple[int, int]](wiring.reduce)  # by call and place of the parameter, as it is used
        self.sums = Sums[str](wiring.reduce)
        self.grads = self.sums.of

    def unshard(self, call: int) -> None:
        """Begin to bring the call's parameters together; `operands` waits for them."""
        if call in self.coming or call in self.used:
            return
        body = self.wiring.body(call)
        kept = [self.wiring.cast(self.params[p]) for p in self.wiring.calls[call].params]
        moved = [kept[i] for i in body.gathered]
        pending = body.unshard_start([*moved, *self.wiring.coordinates]) if body.unshard_start else []
        self.coming[call] = _Coming(pending, kept)

    def operands(self, call: int) -> list[Tensor]:
        coming = self.coming.pop(call, None)
        if coming:
            body, used = self.wiring.body(call), coming.kept
            if body.unshard_finish:
                for i, x in zip(body.gathered, body.unshard_finish([*coming.pending]), strict=True):
                    used[i] = x
            self.used[call] = used
        return [*self.used[call], *self.wiring.coordinates]

    def free(self, call: int) -> None:
        self.used.pop(call, None)

    def add(self, call: int, grads: Sequence[Tensor], beside: Sequence[Tensor]) -> None:
        seen = {d.untyped_storage().data_ptr() for d in beside}
        for (i, path), d in zip(self.wiring.trained(call), grads, strict=True):
            if path in self.wiring.trainable:
                self.partial.add((call, i), d, seen)

    def reduce(self, call: int) -> None:
        """Begin to bring the call's gradients to where their parameters are kept; those that left before arrive."""
        body = self.wiring.body(call)
        pending: Sequence[Tensor] = []
        found = {
            i: self.partial.of.pop((call, i)) for i, _ in self.wiring.trained(call) if (call, i) in self.partial.of
        }
        if body.reduce_start:
            given = [found.pop(i).contiguous() for i in body.reduced]
            pending = body.reduce_start([*given, *self.wiring.coordinates])
            del given
        before, self.leaving = self.leaving, _Leaving(call, pending, found)
        self._add(before)

    def arrive(self) -> None:
        """Wait for all gradients that are on their way."""
        before, self.leaving = self.leaving, None
        self._add(before)

    def _add(self, come: _Leaving | None) -> None:
        """Add gradients of a call to those of other calls."""
        if come is None:
            return
        body, paths, found = self.wiring.body(come.call), self.wiring.calls[come.call].params, come.found
        if body.reduce_finish:
            found |= zip(body.reduced, body.reduce_finish([*come.pending]), strict=True)
        seen: set[int] = set()
        for i in sorted(found):
            self.sums.add(paths[i], found[i], seen)
