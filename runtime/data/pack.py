"""Documents as rows of a fixed length: tokens, aligned labels, document numbers and restarting positions."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data.noise import Ints
from specc.runtime.data.store import Store

Fields = dict[str, NDArray[Any]]  # whole numbers, and float32 of pictures


def stream(store: Store, rows: Ints, seq_len: int) -> Fields:
    """Rows [B] of the documents laid one after the other and cut every `seq_len` tokens.

    `labels[t]` is the token after t in the same document, or IGNORE."""
    at = rows[:, None] * seq_len + np.arange(seq_len)
    doc = np.searchsorted(store.starts, at, side="right") - 1
    last = at + 1 == store.starts[doc + 1]
    after = store.tokens[np.minimum(at + 1, len(store.tokens) - 1)].astype(np.int64)
    local = doc - doc[:, :1]
    return {"tokens": store.tokens[at].astype(np.int64), "labels": np.where(last, IGNORE, after), "doc": local,
            "pos": restarts(local)}  # fmt: skip


def restarts(doc: Ints) -> Ints:
    """Positions that start at 0 where a row's document changes."""
    index = np.broadcast_to(np.arange(doc.shape[1]), doc.shape)
    new = np.ones(doc.shape, dtype=bool)
    new[:, 1:] = doc[:, 1:] != doc[:, :-1]
    positions: Ints = index - np.maximum.accumulate(np.where(new, index, 0), axis=1)
    return positions


def fit(lengths: Sequence[int], seq_len: int, most: int | None = None) -> list[list[int]]:
    """Which samples share a row, at most so many: longest first, each where it leaves the least room (best-fit
    decreasing)."""
    rows: list[list[int]] = []
    room: dict[int, list[int]] = {}  # rows by what is free in them
    free: list[int] = []  # the keys of `room` in order
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = min(lengths[i], seq_len)
        at = bisect_left(free, need)
        if at < len(free):
            left = free[at]
            row = room[left].pop()
            if not room[left]:
                del room[left], free[at]
        else:
            left, row = seq_len, len(rows)
            rows.append([])
        rows[row].append(i)
        left -= need
        if most is not None and len(rows[row]) == most:
            continue
        if left not in room:
            room[left] = []
            insort(free, left)
        room[left].append(row)
    return rows


def shares(lengths: Ints, seq_len: int) -> Ints:
    """Of the lengths [N 2] of two answers each those [N 2] that fit a row: each has half of it, or what the other
    leaves."""
    first = np.minimum(lengths[:, 0], np.maximum(seq_len // 2, seq_len - lengths[:, 1]))
    return np.stack([first, np.minimum(lengths[:, 1], seq_len - first)], axis=1)


def packed(
    store: Store, members: Sequence[Sequence[int]], seq_len: int, pad: int, lengths: Ints | None = None
) -> Fields:
    """Rows of whole samples, cut at `seq_len` or at their `lengths`; labels on answers alone. Padding is the document
    -1, without labels."""
    shape = (len(members), seq_len)
    tokens, labels, doc = np.full(shape, pad), np.full(shape, IGNORE), np.full(shape, -1)
    for r, samples in enumerate(members):
        start = 0
        for number, i in enumerate(samples):
            most = seq_len if lengths is None else lengths[i]
            span = slice(store.starts[i], min(store.starts[i + 1], store.starts[i] + most))
            ids, answers = store.tokens[span].astype(np.int64), store.answers[span]
            here = slice(start, start + len(ids))
            tokens[r, here], doc[r, here] = ids, number
            labels[r, here] = np.append(np.where(answers[1:], ids[1:], IGNORE), IGNORE)
            start += len(ids)
    return {"tokens": tokens, "labels": labels, "doc": doc, "pos": restarts(doc)}
