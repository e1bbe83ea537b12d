"""Counter-based initialisation: element i of a parameter depends on (seed, path, i) alone, whatever the mesh."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from specc.runtime.pieces import Region, extent

CUT = 2.0  # standard deviations that a truncated normal keeps
WORDS = 4  # of one state of Philox's counter
GAP, AT_ONCE = 4096, 1 << 18  # elements: those between two rows that may be drawn in vain, and those of one piece
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Draw = Callable[[str, int, int, int], Numbers]  # path, begin, end, seed
Finish = Callable[[Numbers], Numbers]


def initial(
    path: str, shape: Sequence[int], kind: str, args: Mapping[str, float], seed: int, fan_in: int = 1,
    region: Region | None = None,
) -> Tensor:  # fmt: skip
    """A parameter's first value in fp32, or of a region of it: only that is held, and little more is drawn."""
    at = region if region is not None else tuple(slice(0, n) for n in shape)
    size = extent(at)
    if kind in ("zeros", "ones", "constant"):
        value = {"zeros": 0.0, "ones": 1.0}.get(kind, args.get("value", 0.0))
        return torch.full(size, value)
    if kind == "sincos":
        return torch.from_numpy(np.ascontiguousarray(sincos(tuple(shape), args["extent"])[at])).float()
    if kind == "uniform":
        return drawn(uniform, lambda u: args["low"] + (args["high"] - args["low"]) * u, path, shape, at, seed)
    std = args["std"] if "std" in args else math.sqrt((2.0 if kind.startswith("kaiming") else 1.0) / fan_in)
    cut: Finish = (lambda z: np.clip(z, -CUT, CUT)) if kind == "truncated_normal" else lambda z: z
    return drawn(normal, lambda z: std * cut(z), path, shape, at, seed)


def drawn(draw: Draw, finish: Finish, path: str, shape: Sequence[int], at: Region, seed: int) -> Tensor:
    """The values of a region in fp32, in pieces, by as many threads as torch has."""
    starts, length = rows(shape, at)
    value = torch.empty(extent(at), dtype=torch.float32, device="cpu")
    out = value.view(len(starts), length).numpy()

    def fill(share: Sequence[tuple[slice, slice]]) -> None:
        for of, columns in share:
            begin = int(starts[of][0]) + columns.start
            found = draw(path, begin, int(starts[of][-1]) + columns.stop, seed)
            if len(starts[of]) > 1:
                found = found[starts[of, None] - begin + np.arange(length)]
            out[of, columns] = finish(found)

    made = [*pieces(starts, length)]
    n = torch.get_num_threads() if value.numel() > AT_ONCE else 1
    with ThreadPoolExecutor(n) as threads:
        done = [threads.submit(fill, made[i::n]) for i in range(n)]
    for part in done:
        part.result()
    return value


def pieces(starts: Ints, length: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns that are drawn at once: rows that lie near each other in the stream, or a part of a long one."""
    first = 0
    while first < len(starts):
        last = first
        while last + 1 < len(starts) and near(starts, length, first, last + 1):
            last += 1
        for begin in range(0, length, AT_ONCE):
            yield slice(first, last + 1), slice(begin, min(length, begin + AT_ONCE))
        first = last + 1


def near(starts: Ints, length: int, first: int, last: int) -> bool:
    """Whether a row is drawn with the ones before it: the gap is small, and not too much is held."""
    return bool(starts[last] - starts[last - 1] - length <= GAP and starts[last] + length - starts[first] <= AT_ONCE)


def rows(shape: Sequence[int], at: Region) -> tuple[Ints, int]:
    """The runs of a region in a whole whose elements are numbered row after row: their starts, and their length."""
    inner = len(shape)  # the dims from here on are whole
    while inner and at[inner - 1] == slice(0, shape[inner - 1]):
        inner -= 1
    tail = math.prod(shape[inner:])
    if inner == 0:
        return np.zeros(1, dtype=np.int64), tail
    cut = at[inner - 1]
    starts = np.array([cut.start * tail], dtype=np.int64)
    stride = tail * shape[inner - 1]
    for span, n in reversed(list(zip(at[: inner - 1], shape[: inner - 1], strict=True))):
        starts = (np.arange(span.start, span.stop)[:, None] * stride + starts).reshape(-1)
        stride *= n
    return starts, (cut.stop - cut.start) * tail


def uniform(path: str, begin: int, end: int, seed: int) -> Numbers:
    """Numbers in [0, 1): the i-th from the i-th 64-bit word of a Philox stream keyed by (seed, path)."""
    key = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    stream = np.random.Philox(key=int.from_bytes(key[:16], "little")).advance(begin // WORDS)
    words = np.atleast_1d(stream.random_raw(end - begin + begin % WORDS))[begin % WORDS :]
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(path: str, begin: int, end: int, seed: int) -> Numbers:
    """Standard normals by Box and Muller; elements 2i and 2i+1 come from words 2i and 2i+1."""
    first = begin - begin % 2
    u = uniform(path, first, end + end % 2, seed)
    radius, angle = np.sqrt(-2.0 * np.log1p(-u[0::2])), 2.0 * np.pi * u[1::2]
    out = np.empty(len(u))
    out[0::2], out[1::2] = radius * np.cos(angle), radius * np.sin(angle)
    return out[begin - first : end - first]


def sincos(shape: tuple[int, ...], extent: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Table [height, width, D] of sines and cosines of the column, then of the row (arXiv:2212.09748).

    Coordinates run from 0 to `extent` over the table, so that a larger table is a finer one."""
    height, width, size = shape
    frequency = 10000.0 ** (-np.arange(size // 4) / (size // 4))
    rows, columns = np.meshgrid(np.arange(height) * extent / height, np.arange(width) * extent / width, indexing="ij")
    angles = [place[..., None] * frequency for place in (columns, rows)]
    return np.concatenate([wave(a) for a in angles for wave in (np.sin, np.cos)], axis=-1)
