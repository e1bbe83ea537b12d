"""Times and noise for models that learn to take noise away: what `denoising` says, as numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from specc.spec.image import Denoising

T = 1000  # of times: 0 to T, or T steps
Floats = NDArray[np.float32]


def noised(
    x: Floats, noise: Floats, spec: Denoising, draw: np.random.Generator, compute: torch.dtype
) -> dict[str, Floats]:  # fmt: skip
    """`x_t`, `t` and `target` of an image x and noise of its shape (see Denoising).

    The time is one that the format of `compute` has, so that the model is told the one that x_t is of."""
    t = _rounded(time(spec, draw), compute)
    if spec.path == "flow":
        data, share = 1 - t / T, t / T
        target = noise - x
    else:
        kept = float(products(spec.betas)[min(round(t), T - 1)])
        data, share = math.sqrt(kept), math.sqrt(1 - kept)
        target = np.float32(data) * noise - np.float32(share) * x
    x_t = np.float32(data) * x + np.float32(share) * noise
    return {"x_t": x_t, "t": np.asarray(t, dtype=np.float32), "target": target}


def time(spec: Denoising, draw: np.random.Generator) -> float:
    """A time: of a flow from 0 to T, of a ddpm a step below T."""
    if spec.path == "ddpm":
        return float(draw.integers(T))
    if spec.times == "uniform":
        u = float(draw.random())
    else:
        u = (1 + math.tanh((spec.mean + spec.std * float(draw.standard_normal())) / 2)) / 2  # the logistic function
    return T * spec.shift * u / (1 + (spec.shift - 1) * u)


def products(betas: str) -> NDArray[np.float64]:
    """The products of 1 - beta up to each of T steps."""
    if betas == "cosine":
        s = 0.008
        wave = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
        steps = np.minimum(1 - wave[1:] / wave[:-1], 0.999)
    elif betas == "scaled_linear":
        steps = np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2
    else:
        steps = np.linspace(1e-4, 0.02, T)
    return np.asarray(np.cumprod(1 - steps))


def _rounded(t: float, compute: torch.dtype) -> float:
    """The nearest number of a format that fp32 has too."""
    return float(torch.tensor(t, dtype=torch.float32).to(compute))
