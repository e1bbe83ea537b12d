"""Which row of which source the sample with a given number is: pure functions, so that a run can start anywhere."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from specc.runtime.data.noise import Ints, generator

BLOCK = 4096  # samples in which the shares of the sources are exact, to 1/4096


def quotas(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Samples of each source in a block: nearest to the weights, at least one."""
    share = np.asarray(weights) / sum(weights) * (BLOCK - len(weights))
    whole = np.floor(share).astype(np.int64)
    most = np.argsort(-(share - whole), kind="stable")[: BLOCK - len(weights) - int(whole.sum())]
    whole[most] += 1
    return tuple(int(n) + 1 for n in whole)


def place(samples: Ints, weights: tuple[float, ...], seed: int) -> tuple[Ints, Ints]:
    """The source of each sample, and how many samples of that source come before it."""
    if len(weights) == 1:
        return np.zeros_like(samples), samples
    each = quotas(weights)
    sources, numbers = np.empty_like(samples), np.empty_like(samples)
    for block in np.unique(samples // BLOCK):
        here = samples // BLOCK == block
        source, before = _block(each, seed, int(block))
        at = samples[here] % BLOCK
        sources[here] = source[at]
        numbers[here] = before[at] + block * np.asarray(each)[source[at]]
    return sources, numbers


@lru_cache(8)
def _block(each: tuple[int, ...], seed: int, block: int) -> tuple[Ints, Ints]:
    source = generator(seed, "mixture", block).permutation(np.repeat(np.arange(len(each)), each))
    before = np.empty(BLOCK, dtype=np.int64)
    for i in range(len(each)):
        before[source == i] = np.arange(each[i])
    return source, before


def rows_at(n: int, numbers: Ints, seed: int, source: int) -> Ints:
    """Rows of a source of n rows: each epoch has all rows, in an order of its own."""
    epochs, at = np.divmod(numbers, n)
    chosen = np.empty_like(numbers)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        chosen[here] = _order(n, int(epoch), seed, source)[at[here]]
    return chosen


@lru_cache(8)
def _order(n: int, epoch: int, seed: int, source: int) -> Ints:
    return generator(seed, "order", epoch, source).permutation(n)
