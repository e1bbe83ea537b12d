"""Masked language modelling (BERT, arXiv:1810.04805 sec. 3.1): hide some ordinary tokens, and ask for them."""

from __future__ import annotations

import numpy as np

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data.noise import Floats, Ints
from specc.spec.objective import MaskedLM


def hide(text: Ints, spec: MaskedLM, words: Ints, mask: int, drawn: Floats) -> tuple[Ints, Ints]:
    """Tokens and labels [B, S] of text [B, S]; `words` are the ids of ordinary tokens, `drawn` is [B, 3, S] in [0, 1).

    Of a row's n ordinary tokens exactly max(1, round(rate n)) get a label: others are never hidden. What becomes of
    each of these is drawn by itself."""
    which, fate, other = drawn[:, 0], drawn[:, 1], drawn[:, 2]
    is_word = np.isin(text, words)
    n = is_word.sum(1)
    asked = np.minimum(np.maximum(np.rint(spec.rate * n).astype(np.int64), 1), n)
    rank = np.where(is_word, which, 2.0).argsort(1, kind="stable").argsort(1, kind="stable")
    chosen = is_word & (rank < asked[:, None])
    labels = np.where(chosen, text, IGNORE)
    random = words[(other * len(words)).astype(np.int64)]
    tokens = np.where(chosen & (fate < spec.masked), mask, text)
    changed = chosen & (fate >= spec.masked) & (fate < spec.masked + spec.random)
    return np.where(changed, random, tokens), labels
