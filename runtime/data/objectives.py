"""A stage's rows from its tokens: what each objective makes of a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from tokenizers import Tokenizer

from specc.compiler.ops.loss import IGNORE
from specc.compiler.pictures import fields_of
from specc.runtime.data.blanks import Marks, blank
from specc.runtime.data.masked import hide
from specc.runtime.data.noise import Ints, generator, uniforms
from specc.runtime.data.pack import Fields, fit, packed, restarts, shares, stream
from specc.runtime.data.spans import corrupt
from specc.runtime.data.store import Store
from specc.runtime.data.tokenizer import (
    LONG_MASK,
    MASK,
    PAD,
    PIECE,
    PIECE_END,
    end_id,
    padding,
    sentinels,
    special,
    words,
)  # fmt: skip
from specc.spec.objective import REFERENCE
from specc.spec.stage import StageSpec

# What every objective gives, and some more.
GIVEN = ("tokens", "labels", "doc", "pos", "part", "segment", "key")
MORE = {"span_corruption": ("enc_tokens", "enc_doc", "enc_pos"), "blank_infilling": ("block_pos",)}


def fields_given(stage: StageSpec) -> set[str]:
    """The inputs that a model may have for the stage's rows."""
    if stage.of_images:
        return fields_of(stage)
    reference = [REFERENCE] if stage.asked and stage.asked.has_reference else []
    return {*GIVEN, *MORE.get(stage.objective, ()), *reference}


@dataclass(frozen=True)
class Rows:
    """Rows made when they are asked for: `make(rows [B], samples [B])` gives fields [B, ...].

    What is random in a row is a function of the stage's seed and the sample's number. `answers` are what of the rows
    the model tells, where that is known without making them."""

    n: int
    make: Callable[[Ints, Ints], Fields]
    notes: tuple[str, ...] = ()
    answers: Callable[[Ints], Ints] | None = None

    def __len__(self) -> int:
        return self.n


def rows_of(stage: StageSpec, store: Store, tokenizer: Tokenizer, site: str) -> Rows:
    """The rows of the stage's objective; `site` tells the random numbers of training and validation apart."""
    if stage.kind == "sft":
        return _answers(stage, store, tokenizer)
    if stage.kind == "preference":
        return _pairs(stage, store, tokenizer)
    n = stage.data.seq_len
    if stage.objective == "span_corruption":
        n = stage.span_corruption.piece(n)
        make = _spans(stage, store, tokenizer, site)
    elif stage.objective == "blank_infilling":
        n = stage.blank_infilling.piece(n)
        make = _blanks(stage, store, tokenizer, site)
    elif stage.objective == "masked_lm":
        make = _masked(stage, store, tokenizer, site)
    else:
        make = lambda rows, samples: stream(store, rows, stage.data.seq_len)  # noqa: E731
    return Rows(len(store.tokens) // n, make)


def _answers(stage: StageSpec, store: Store, tokenizer: Tokenizer) -> Rows:
    """Whole conversations; those with no answer in their first seq_len tokens are left out, or all that are longer."""
    seq_len, lengths = stage.data.seq_len, np.diff(store.starts)
    before = np.concatenate([[0], np.cumsum(store.answers, dtype=np.int64)])
    begin, end = store.starts[:-1], np.minimum(store.starts[1:], store.starts[:-1] + seq_len)
    asked = before[end] - before[np.minimum(begin + 1, end)]  # the first token has nobody to ask for it
    long, drops = lengths > seq_len, stage.sft.long == "drop"
    good = np.flatnonzero((asked > 0) & ~(long & drops))
    counts = {
        f"longer than {seq_len} tokens and are {'left out' if drops else 'cut'}": long if drops else long & (asked > 0),
        f"without an answer in their first {seq_len} tokens and are left out": (asked == 0) & ~(long & drops),
    }
    notes = [f"{n} of {len(store)} samples are {what}" for what, those in counts.items() if (n := int(those.sum()))]
    members = [[int(good[i]) for i in row] for row in fit(lengths[good].tolist(), seq_len)]
    pad = padding(tokenizer)

    def make(rows: Ints, samples: Ints) -> Fields:
        return packed(store, [members[r] for r in rows], seq_len, pad)

    return Rows(len(members), make, tuple(notes))


def _pairs(stage: StageSpec, store: Store, tokenizer: Tokenizer) -> Rows:
    """Rows of whole pairs, both answers of each one after the other: document 2i is preferred to document 2i + 1."""
    seq_len, drops, pad = stage.data.seq_len, stage.preference.long == "drop", padding(tokenizer)
    lengths, begin = np.diff(store.starts).reshape(-1, 2), store.starts[:-1].reshape(-1, 2)
    kept = shares(lengths, seq_len)
    before = np.concatenate([[0], np.cumsum(store.answers, dtype=np.int64)])
    asked = before[begin + kept] - before[np.minimum(begin + 1, begin + kept)]
    long = lengths.sum(1) > seq_len
    left = ~(long & drops)
    same = np.asarray([_alike(store, b, k) for b, k in zip(begin, kept, strict=True)], dtype=bool) & left
    same &= (asked > 0).all(1) | (kept == lengths).all(1)  # else cut within the prompt that they share
    empty = (asked == 0).any(1) & left & ~same
    good = np.flatnonzero(left & ~empty & ~same)
    counts = {
        f"longer than {seq_len} tokens and are {'left out' if drops else 'cut'}": long,
        "without an answer on one side and are left out": empty,
        "the same answer twice and are left out": same,
    }
    notes = [f"{n} of {len(lengths)} pairs are {what}" for what, those in counts.items() if (n := int(those.sum()))]
    rows = fit(kept[good].sum(1).tolist(), seq_len, stage.preference.pairs)
    members = [[2 * int(good[i]) + side for i in row for side in (0, 1)] for row in rows]

    def make(rows: Ints, samples: Ints) -> Fields:
        return packed(store, [members[r] for r in rows], seq_len, pad, kept.reshape(-1))

    return Rows(len(members), make, tuple(notes))


def _alike(store: Store, begin: Ints, kept: Ints) -> bool:
    """Whether the two answers of a pair are the same."""
    first, second = (store.tokens[b : b + n] for b, n in zip(begin, kept, strict=True))
    return bool(np.array_equal(first, second))


def _masked(stage: StageSpec, store: Store, tokenizer: Tokenizer, site: str) -> Callable[[Ints, Ints], Fields]:
    ordinary, mask = np.asarray(words(tokenizer)), special(tokenizer, MASK)

    def make(rows: Ints, samples: Ints) -> Fields:
        fields = stream(store, rows, stage.data.seq_len)
        drawn = uniforms(stage.seed, site, samples, (3, stage.data.seq_len))
        fields["tokens"], fields["labels"] = hide(fields["tokens"], stage.masked_lm, ordinary, mask, drawn)
        return fields

    return make


def _spans(stage: StageSpec, store: Store, tokenizer: Tokenizer, site: str) -> Callable[[Ints, Ints], Fields]:
    spec, seq_len = stage.span_corruption, stage.data.seq_len
    n, target = spec.piece(seq_len), spec.decoder_len(seq_len)
    noise, spans = spec.spans(n)
    marks = np.asarray([special(tokenizer, t) for t in sentinels(spans)])
    pad, end = special(tokenizer, PAD), end_id(tokenizer)

    def make(rows: Ints, samples: Ints) -> Fields:
        drawn = uniforms(stage.seed, site, samples, (n,))
        seen, asked = corrupt(_text(store, rows, n), noise, marks, end, drawn)
        labels = _padded(asked, target, IGNORE)
        said = np.concatenate([np.full((len(rows), 1), pad), asked[:, :-1]], axis=1)  # pad starts, as in T5
        enc_doc, doc = _padded(np.zeros_like(seen), seq_len, -1), _padded(np.zeros_like(asked), target, -1)
        return {"enc_tokens": _padded(seen, seq_len, pad), "enc_doc": enc_doc, "enc_pos": restarts(enc_doc),
                "tokens": _padded(said, target, pad), "labels": labels, "doc": doc, "pos": restarts(doc)}  # fmt: skip

    return make


def _blanks(stage: StageSpec, store: Store, tokenizer: Tokenizer, site: str) -> Callable[[Ints, Ints], Fields]:
    spec, seq_len = stage.blank_infilling, stage.data.seq_len
    n = spec.piece(seq_len)
    marks = Marks(*(special(tokenizer, t) for t in (MASK, LONG_MASK, PIECE, PIECE_END, PAD)))

    def make(rows: Ints, samples: Ints) -> Fields:
        draws = map(partial(generator, stage.seed, site), samples.tolist())
        made = [blank(t, spec, marks, seq_len, d) for t, d in zip(_text(store, rows, n), draws, strict=True)]
        return {name: np.stack([m[name] for m in made]) for name in made[0]}

    return make


def _text(store: Store, rows: Ints, n: int) -> Ints:
    """Pieces [B, n] of the documents laid one after the other, end tokens between them."""
    text: Ints = store.tokens[rows[:, None] * n + np.arange(n)].astype(np.int64)
    return text


def _padded(a: Ints, width: int, fill: int) -> Ints:
    return np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=fill)
