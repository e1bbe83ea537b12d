"""The batch of a step as a pure function of (seed, step): resuming is starting at a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data.mixture import place, rows_at
from specc.runtime.data.noise import Ints, uniforms
from specc.runtime.data.objectives import Rows
from specc.runtime.data.pack import Fields
from specc.spec.stage import StageSpec

Batch = dict[str, Tensor]
KEYS, NO_DROPOUT = 1 << 31, -1  # keys of dropout masks are below the first
COUNTED = 4096  # rows that the entropy is taken over


@dataclass(frozen=True)
class Mixture:
    """The rows of the sources, and how often each source comes."""

    parts: tuple[Rows, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def fields(self, samples: Ints, seed: int) -> Fields:
        """The fields [B, S] of the samples with these numbers, in the endless sequence of a stage."""
        sources, numbers = place(samples, self.weights, seed)
        rows = np.empty_like(samples)
        for s, part in enumerate(self.parts):
            here = sources == s
            if here.any():
                rows[here] = rows_at(len(part), numbers[here], seed, s)
        return gathered(self.parts, sources, rows, samples)


def joined(parts: Sequence[Rows], weights: Sequence[float]) -> Rows:
    """All rows of the sources once, in an order whose every beginning has the sources by their weights."""
    sources = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    rows = np.concatenate([np.arange(len(p)) for p in parts])
    order = np.argsort((rows + 0.5) / np.asarray(weights)[sources], kind="stable")

    def make(chosen: Ints, samples: Ints) -> Fields:
        at = order[chosen]
        return gathered(parts, sources[at], rows[at], samples)

    return Rows(len(order), make)


def gathered(parts: Sequence[Rows], sources: Ints, rows: Ints, samples: Ints) -> Fields:
    """Row rows[b] of the source sources[b] for each b."""
    made: Fields = {}
    for s in np.unique(sources):
        here = np.flatnonzero(sources == s)
        for name, values in parts[s].make(rows[here], samples[here]).items():
            made.setdefault(name, np.empty((len(rows), values.shape[1]), dtype=np.int64))[here] = values
    return made


def tensors(have: Fields, fields: set[str]) -> Batch:
    """The fields that the model takes, [B, S] and the samples' keys [B], of those that its objective gives."""
    have = {"part": np.ones_like(have["tokens"]), "segment": np.zeros_like(have["tokens"]), **have}
    return {name: torch.from_numpy(np.ascontiguousarray(have[name])) for name in sorted(fields)}


def batch(rows: Rows, chosen: Sequence[int], fields: set[str]) -> Batch:
    """Rows by their numbers, as validation reads them."""
    at = np.asarray(chosen, dtype=np.int64)
    return tensors({**rows.make(at, at), "key": np.full_like(at, NO_DROPOUT)}, fields)


def microbatches(data: Mixture, stage: StageSpec, step: int, fields: set[str]) -> tuple[list[Batch], list[float]]:
    """The microbatches of a step, and each one's share of the step's labels."""
    n, size = stage.batch.sequences, stage.batch.size
    samples = np.arange(step * n, (step + 1) * n)
    keys = (uniforms(stage.seed, "dropout", samples, (1,))[:, 0] * KEYS).astype(np.int64)
    made = {**data.fields(samples, stage.seed), "key": keys}
    parts = [{name: values[i : i + size] for name, values in made.items()} for i in range(0, n, size)]
    counts = [int((p["labels"] != IGNORE).sum()) for p in parts]
    total = max(1, sum(counts))
    return [tensors(p, fields) for p in parts], [c / total for c in counts]


def unigram_entropy(rows: Rows) -> float:
    """Entropy of the labels' frequencies in nats: the loss of a model that knows nothing but frequencies."""
    counts = np.zeros(0, dtype=np.int64)
    for begin in range(0, min(len(rows), COUNTED), 64):
        chosen = np.arange(begin, min(begin + 64, len(rows), COUNTED))
        labels = rows.make(chosen, chosen)["labels"]
        found = np.bincount(labels[labels != IGNORE], minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    p = counts[counts > 0] / max(1, counts.sum())
    return float(-(p * np.log(p)).sum())
