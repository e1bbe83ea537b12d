"""The bodies of a program as decoding functions: new tokens and caches in, results and caches out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from specc.compiler.lower.bodies import dtype_of, operands
from specc.compiler.lower.decode import Decoding, cache_types, key_attributes
from specc.compiler.lower.local import Impl
from specc.compiler.lower.run import run_body
from specc.compiler.program import Body

Flat = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class DecodeBody:
    """What a decoding function takes after the body's ins and parameters: offset, end, key attributes, caches.

    `caches` are the shapes of each attention's key and value cache, in order; they come out behind the outs."""

    body: Body
    key_attributes: tuple[str, ...]  # operands of the body that are also needed for all cached tokens
    caches: tuple[tuple[int, ...], ...]


def decode_body(body: Body, seq: str, sizes: Mapping[str, int], capacity: int) -> DecodeBody:
    full = {**sizes, seq: capacity}
    shapes: list[tuple[int, ...]] = []
    for _, k, v in cache_types(body, seq):
        for t in (k, v):
            shape = t.shape(full)
            shapes.append((int(torch.Size(shape[:-3]).numel()), *shape[-3:]))
    return DecodeBody(body, tuple(key_attributes(body, seq)), tuple(shapes))


def decode_function(
    d: DecodeBody, seq: str, sizes: Mapping[str, int], capacity: int, own: Mapping[str, Impl] | None = None
) -> Flat:
    """f(*ins, *params, offset, end, *key attributes, *caches) -> [*outs, *caches]."""
    names = [name for name, _, _ in cache_types(d.body, seq)]
    n_ins, n_params, n_keys = len(d.body.ins), len(d.body.params), len(d.key_attributes)

    def run(*flat: Tensor) -> list[Tensor]:
        ins, params, rest = flat[:n_ins], flat[n_ins : n_ins + n_params], list(flat[n_ins + n_params :])
        offset, end = rest[0], rest[1]
        keys = dict(zip(d.key_attributes, rest[2 : 2 + n_keys], strict=True))
        flat_caches = rest[2 + n_keys :]
        caches = {n: (flat_caches[2 * i], flat_caches[2 * i + 1]) for i, n in enumerate(names)}
        state = Decoding(seq, capacity, offset, end, keys, caches)
        outs = run_body(d.body, ins, params, sizes, own, state)
        return [*outs, *(t for n in names for t in state.caches[n])]

    return run


def decode_operands(
    d: DecodeBody, seq: str, sizes: Mapping[str, int], capacity: int, compute: torch.dtype, mode: FakeTensorMode
) -> Sequence[Tensor]:
    """Fake tensors for everything that the function takes."""
    ins, params = operands(d.body, sizes, compute, mode)
    full = {**sizes, seq: capacity}
    types = {v.name: v.type for v in d.body.ins}
    with mode:
        scalars = [torch.zeros((), dtype=torch.int64) for _ in range(2)]
        keys = [torch.empty(types[n].shape(full), dtype=dtype_of("int", compute)) for n in d.key_attributes]
        caches = [torch.empty(shape, dtype=compute) for shape in d.caches]
    return [*ins, *params, *scalars, *keys, *caches]
