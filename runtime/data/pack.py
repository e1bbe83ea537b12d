"""Documents as rows of a fixed length: tokens, aligned labels, document numbers and restarting positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from specc.compiler.ops.loss import IGNORE

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """[N, S] arrays. `labels[t]` is the token after t in the same document, or IGNORE."""

    tokens: Ints
    labels: Ints
    doc: Ints
    pos: Ints

    def __len__(self) -> int:
        return len(self.tokens)


def pack(documents: Iterable[Sequence[int]], seq_len: int, end: int) -> Rows:
    """Documents with `end` behind each, laid one after the other and cut into rows; the last part row is dropped."""
    parts = [np.asarray([*d, end], dtype=np.int64) for d in documents if len(d)]
    if not parts:
        empty = np.zeros((0, seq_len), dtype=np.int64)
        return Rows(empty, empty, empty, empty)
    tokens = np.concatenate(parts)
    doc = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    after = np.append(tokens[1:], IGNORE)
    labels = np.where(np.append(doc[1:], -1) == doc, after, IGNORE)
    n = len(tokens) // seq_len
    cut = [a[: n * seq_len].reshape(n, seq_len) for a in (tokens, labels, doc)]
    local = cut[2] - cut[2][:, :1] if n else cut[2]
    return Rows(cut[0], cut[1], local, restarts(local))


def restarts(doc: Ints) -> Ints:
    """Positions that start at 0 where a row's document changes."""
    index = np.broadcast_to(np.arange(doc.shape[1]), doc.shape)
    new = np.ones(doc.shape, dtype=bool)
    new[:, 1:] = doc[:, 1:] != doc[:, :-1]
    positions: Ints = index - np.maximum.accumulate(np.where(new, index, 0), axis=1)
    return positions


def pack_samples(samples: Sequence[tuple[Sequence[int], Sequence[bool]]], seq_len: int, pad: int) -> Rows:
    """Whole samples (tokens, which of them are answers) packed first-fit, longest first; labels on answers alone.

    A sample longer than a row is cut. Padding is a document of its own, -1, without labels."""
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i][0]), i))
    rows: list[list[int]] = []
    room: list[int] = []
    open_from = 0
    for i in order:
        need = min(len(samples[i][0]), seq_len)
        at = next((r for r in range(open_from, len(rows)) if room[r] >= need), None)
        if at is None:
            rows.append([])
            room.append(seq_len)
            at = len(rows) - 1
        rows[at].append(i)
        room[at] -= need
        while open_from < len(rows) and room[open_from] < 8:
            open_from += 1
    shape = (len(rows), seq_len)
    tokens, labels, doc = np.full(shape, pad), np.full(shape, IGNORE), np.full(shape, -1)
    for r, members in enumerate(rows):
        start = 0
        for number, i in enumerate(members):
            ids, answers = (np.asarray(x[:seq_len]) for x in samples[i])
            span = slice(start, start + len(ids))
            tokens[r, span], doc[r, span] = ids, number
            labels[r, span] = np.append(np.where(answers[1:], ids[1:], IGNORE), IGNORE)
            start += len(ids)
    return Rows(tokens, labels, doc, restarts(doc))
