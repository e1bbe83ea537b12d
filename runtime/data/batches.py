"""The batch of a step as a pure function of (seed, step): resuming is starting at a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data.mixture import place, rows_at
from specc.runtime.data.noise import Ints, uniforms
from specc.runtime.data.objectives import Rows
from specc.runtime.data.pack import Fields
from specc.spec.stage import StageSpec

Batch = dict[str, Tensor]
Kept = NDArray[np.bool_]
UNREAD = -1  # the number of a row that nobody reads
KEYS, NO_DROPOUT = 1 << 31, -1  # keys of dropout masks are below the first
COUNTED = 4096  # rows that the entropy is taken over


@dataclass(frozen=True)
class Mixture:
    """The rows of the sources, and how often each source comes."""

    parts: tuple[Rows, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def fields(self, samples: Ints, seed: int, kept: Kept | None = None) -> Fields:
        """The fields [B, ...] of the samples with these numbers, in the endless sequence of a stage; zeros for those
        that are not `kept` [B]."""
        sources, rows = self.find(samples, seed)
        if kept is not None:
            rows[~kept] = UNREAD
        return gathered(self.parts, sources, rows, samples)

    def find(self, samples: Ints, seed: int) -> tuple[Ints, Ints]:
        """The source and the row of each sample."""
        sources, numbers = place(samples, self.weights, seed)
        rows = np.empty_like(samples)
        for s, part in enumerate(self.parts):
            here = sources == s
            if here.any():
                rows[here] = rows_at(len(part), numbers[here], seed, s)
        return sources, rows


def joined(parts: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """All rows of the sources once, in an order whose every beginning has the sources by their weights."""
    sources = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    rows = np.concatenate([np.arange(len(p)) for p in parts])
    order = np.argsort((rows + 0.5) / np.asarray(weights)[sources], kind="stable")

    def make(chosen: Ints, samples: Ints) -> Fields:
        at = order[chosen]
        return gathered(parts, sources[at], np.where(chosen == UNREAD, UNREAD, rows[at]), samples)

    def answers(chosen: Ints) -> Ints:
        at = order[chosen]
        told = [(sources[at] == s, part.answers) for s, part in enumerate(parts)]
        return np.concatenate([answer(rows[at[here]]) for here, answer in told if answer is not None])

    return Rows(len(order), make, answers=answers if all(p.answers for p in parts) else None)


def gathered(parts: Sequence[Rows], sources: Ints, rows: Ints, samples: Ints) -> Fields:
    """Row rows[b] of the source sources[b] for each b; zeros where that is UNREAD."""
    made: Fields = {}
    for s in np.unique(sources[rows != UNREAD]):
        here = np.flatnonzero((sources == s) & (rows != UNREAD))
        for name, values in parts[s].make(rows[here], samples[here]).items():
            made.setdefault(name, np.zeros((len(rows), *values.shape[1:]), dtype=values.dtype))[here] = values
    return made


def tensors(have: Fields, fields: set[str], compute: torch.dtype = torch.float32) -> Batch:
    """The fields that the model takes, [B, ...] and the samples' keys [B], of those that its objective gives; floats as
    the model computes."""
    if "tokens" in have:
        have = {"part": np.ones_like(have["tokens"]), "segment": np.zeros_like(have["tokens"]), **have}
    made = {name: torch.from_numpy(np.ascontiguousarray(have[name])) for name in sorted(fields)}
    return {name: x.to(compute) if x.is_floating_point() else x for name, x in made.items()}


def batch(
    rows: Rows, chosen: Sequence[int], fields: set[str], compute: torch.dtype = torch.float32, kept: Kept | None = None
) -> Batch:  # fmt: skip
    """Rows by their numbers, as validation reads them; zeros for those that are not `kept`."""
    at = np.asarray(chosen, dtype=np.int64)
    read = at if kept is None else np.where(kept, at, UNREAD)
    return tensors({**rows.make(read, at), "key": np.full_like(at, NO_DROPOUT)}, fields, compute)


def sampled(data: Mixture, samples: Ints, seed: int, fields: set[str]) -> Batch:
    """Samples by their numbers, without dropout."""
    return tensors({**data.fields(samples, seed), "key": np.full_like(samples, NO_DROPOUT)}, fields)


def microbatches(
    data: Mixture, stage: StageSpec, step: int, fields: set[str], compute: torch.dtype = torch.float32,
    kept: Kept | None = None,
) -> tuple[list[Batch], list[float]]:  # fmt: skip
    """The microbatches of a step, and each one's share of the step's labels (of its samples where the model takes no
    labels). `kept` says which samples of a microbatch are read."""
    n, size = stage.batch.sequences, stage.batch.size
    samples = np.arange(step * n, (step + 1) * n)
    keys = (uniforms(stage.seed, "dropout", samples, (1,))[:, 0] * KEYS).astype(np.int64)
    read = None if kept is None else np.tile(kept, n // size)
    made = {**data.fields(samples, stage.seed, read), "key": keys}
    parts = [{name: values[i : i + size] for name, values in made.items()} for i in range(0, n, size)]
    counts = [counted(p, stage) for p in parts]
    total = max(1, sum(counts))
    return [tensors(p, fields, compute) for p in parts], [c / total for c in counts]


def counted(made: Fields, stage: StageSpec) -> int:
    """What the loss of some rows is the mean of: labels, pairs of answers, or samples where there are no labels."""
    if "labels" not in made:
        return len(made["key"])
    has = made["labels"] != IGNORE
    if stage.asked is None:
        return int(has.sum())
    last = np.where(has, made["doc"], -1).max(1)  # answers are numbered, and all of them have labels
    return int(((last + 2) // 2).sum())


def unigram_entropy(rows: Rows) -> float | None:
    """Entropy of the labels' frequencies in nats: the loss of a model that knows nothing but frequencies. None if there
    are none."""
    counts = np.zeros(0, dtype=np.int64)
    for begin in range(0, min(len(rows), COUNTED), 64):
        chosen = np.arange(begin, min(begin + 64, len(rows), COUNTED))
        labels = rows.answers(chosen) if rows.answers else rows.make(chosen, chosen)["labels"]
        found = np.bincount(labels[labels != IGNORE], minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    if rows.answers and not counts.sum():
        return None
    p = counts[counts > 0] / max(1, counts.sum())
    return float((p * -np.log(p)).sum()) + 0.0  # not -0
