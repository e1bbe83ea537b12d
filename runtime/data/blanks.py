"""Autoregressive blank infilling (GLM, arXiv:2103.10360 sec. 2.1).

Part A is the text with each span replaced by [MASK]; part B has the spans in random order, each behind a start token.
`pos` counts along part A, and is that of a span's [MASK] all through the span; `block_pos` is 0 in part A and 1, 2, ...
in a span. Labels are of part B alone, and not shifted: `start a b` asks for `a b end`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data.noise import Ints
from specc.spec.objective import BlankInfilling

Fields = dict[str, Ints]


@dataclass(frozen=True)
class Marks:
    """Ids of the objective's own tokens."""

    mask: int  # a short span
    long_mask: int  # a long span at the end
    start: int
    end: int
    pad: int


def blank(text: Ints, spec: BlankInfilling, marks: Marks, seq_len: int, draw: np.random.Generator) -> Fields:
    """The fields [S] of a text [n], padded to `seq_len`; padding is the document -1."""
    n = len(text)
    if draw.random() < spec.document:
        shortest = min(max(int(np.ceil(spec.document_span * n)), 1), n)
        begin = n - int(draw.integers(shortest, n + 1))
        return infill(text, [(begin, n)], marks, marks.long_mask, seq_len)
    lengths = span_lengths(spec, n, draw)
    slots = np.sort(draw.permutation(n - sum(lengths) + 1)[: len(lengths)])
    begins = slots + np.concatenate([[0], np.cumsum(lengths)[:-1]])
    spans = [(int(b), int(b) + length) for b, length in zip(begins, lengths, strict=True)]
    return infill(text, [spans[i] for i in draw.permutation(len(spans))], marks, marks.mask, seq_len)


def span_lengths(spec: BlankInfilling, n: int, draw: np.random.Generator) -> list[int]:
    """Poisson lengths of at least 1 until they reach the tokens to hide; the last is cut to the exact number."""
    hidden, most = spec.hidden(n), spec.most_spans(n)
    for _ in range(100):
        lengths = np.maximum(draw.poisson(spec.mean_span, hidden), 1)
        reached = int(np.searchsorted(np.cumsum(lengths), hidden)) + 1
        if reached <= most:
            chosen = lengths[:reached].copy()
            chosen[-1] -= chosen.sum() - hidden
            return [int(x) for x in draw.permutation(chosen)]
    return [int(x) for x in np.diff(np.linspace(0, hidden, most + 1).astype(np.int64))]


def infill(text: Ints, spans: list[tuple[int, int]], marks: Marks, mask: int, seq_len: int) -> Fields:
    """Spans (begin, end) of the text, not touching, in the order in which they are written."""
    n = len(text)
    hidden = np.zeros(n, dtype=bool)
    begins = np.zeros(n, dtype=bool)
    for b, e in spans:
        hidden[b:e] = True
        begins[b] = True
    shown = np.where(begins, mask, text)[begins | ~hidden]
    place = np.cumsum(begins | ~hidden) - 1  # in part A; that of its mask for a hidden token
    tokens, labels = [shown], [np.full(len(shown), IGNORE)]
    pos, block = [np.arange(len(shown))], [np.zeros(len(shown), dtype=np.int64)]
    for b, e in spans:
        tokens.append(np.concatenate([[marks.start], text[b:e]]))
        labels.append(np.concatenate([text[b:e], [marks.end]]))
        pos.append(np.full(e - b + 1, place[b]))
        block.append(np.arange(1, e - b + 2))
    part = np.repeat([0, 1], [len(shown), sum(map(len, tokens)) - len(shown)])
    columns = {"tokens": (np.concatenate(tokens), marks.pad), "labels": (np.concatenate(labels), IGNORE),
               "pos": (np.concatenate(pos), 0), "block_pos": (np.concatenate(block), 0), "part": (part, 1),
               "doc": (np.zeros(len(part), dtype=np.int64), -1)}  # fmt: skip
    return {name: np.append(c, np.full(seq_len - len(c), fill)) for name, (c, fill) in columns.items()}
