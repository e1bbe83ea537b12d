"""Random numbers that are a function of (seed, site, sample) alone, so a resumed run draws what it would have drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Numbers never change: they are in the random numbers.
SITES = {"train": 1, "validation": 2, "order": 3, "mixture": 4, "dropout": 5}


def generator(seed: int, site: str, sample: int, part: int = 0) -> np.random.Generator:
    """A stream of its own: Philox keyed by (seed, site), its counter starting at (sample, part) in the high words."""
    key = np.array([seed, SITES[site]], dtype=np.uint64)
    counter = np.array([0, 0, part, sample], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def uniforms(seed: int, site: str, samples: Ints, shape: tuple[int, ...]) -> Floats:
    """Numbers in [0, 1), [B, *shape]; row b depends on samples[b] alone."""
    made = np.empty((len(samples), *shape))
    for row, sample in zip(made, samples, strict=True):
        generator(seed, site, int(sample)).random(out=row)
    return made
