"""Span corruption (T5, arXiv:1910.10683 sec. 3.1.4): spans of the text become sentinels, the decoder writes the spans.

Text `a b c d e` with spans `b c` and `e`: encoder `a <0> d <1> </s>`, decoder `<0> b c <1> e </s>`."""

from __future__ import annotations

import numpy as np

from specc.runtime.data.noise import Floats, Ints


def corrupt(text: Ints, noise: int, sentinels: Ints, end: int, drawn: Floats) -> tuple[Ints, Ints]:
    """What encoder and decoder say of text [B, n]: [B, n - noise + spans + 1] and [B, noise + spans + 1].

    There is a span for each of the `sentinels`, together `noise` tokens; a row starts with a kept token. `drawn` is
    [B, n] in [0, 1)."""
    rows, n = text.shape
    spans = len(sentinels)
    inside = pieces(noise, spans, drawn[:, :noise])
    kept = pieces(n - noise, spans, drawn[:, noise:])
    lengths = np.stack([kept, inside], axis=2).reshape(-1)
    part = np.repeat(np.tile(np.arange(2 * spans), rows), lengths).reshape(rows, n)
    hidden, span = part % 2 == 1, part // 2
    first = hidden.copy()
    first[:, 1:] &= ~hidden[:, :-1]
    seen = np.where(first, sentinels[span], text)[first | ~hidden].reshape(rows, -1)
    asked = np.empty((rows, noise + spans), dtype=np.int64)
    at = hidden.cumsum(1) - 1 + span  # where the sentinel of a hidden token's span would push it, less one
    row = np.broadcast_to(np.arange(rows)[:, None], text.shape)
    asked[row[hidden], at[hidden] + 1] = text[hidden]
    asked[row[first], at[first]] = sentinels[span[first]]
    ends = np.full((rows, 1), end, dtype=np.int64)
    return np.concatenate([seen, ends], 1), np.concatenate([asked, ends], 1)


def pieces(total: int, parts: int, drawn: Floats) -> Ints:
    """Cut `total` into `parts` lengths of at least 1, all ways equally likely: [B, parts] from drawn [B, total]."""
    cuts = np.sort(drawn[:, 1:].argsort(1, kind="stable")[:, : parts - 1], axis=1) + 1
    edges = np.full((len(drawn), parts + 1), 0, dtype=np.int64)
    edges[:, 1:-1] = cuts
    edges[:, -1] = total
    return np.diff(edges, axis=1)
