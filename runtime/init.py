"""Counter-based initialisation: element i of a parameter depends on (seed, path, i) alone, whatever the mesh."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

CUT = 2.0  # standard deviations that a truncated normal keeps


def initial(
    path: str, shape: tuple[int, ...], kind: str, args: Mapping[str, float], seed: int, fan_in: int = 1
) -> Tensor:
    """A parameter's first value in fp32."""
    n = math.prod(shape)
    if kind in ("zeros", "ones", "constant"):
        value = {"zeros": 0.0, "ones": 1.0}.get(kind, args.get("value", 0.0))
        return torch.full(shape, value)
    if kind == "sincos":
        return torch.from_numpy(sincos(shape, args["extent"])).float()
    if kind == "uniform":
        u = uniform(path, n, seed)
        return torch.from_numpy(args["low"] + (args["high"] - args["low"]) * u).float().reshape(shape)
    std = args["std"] if "std" in args else math.sqrt((2.0 if kind.startswith("kaiming") else 1.0) / fan_in)
    z = normal(path, n, seed)
    if kind == "truncated_normal":
        z = np.clip(z, -CUT, CUT)
    return torch.from_numpy(std * z).float().reshape(shape)


def uniform(path: str, n: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """n numbers in [0, 1): the i-th from the i-th 64-bit word of a Philox stream keyed by (seed, path)."""
    key = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    words = np.random.Philox(key=int.from_bytes(key[:16], "little")).random_raw(n)
    return (np.atleast_1d(words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(path: str, n: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """n standard normals by Box and Muller; elements 2i and 2i+1 come from words 2i and 2i+1."""
    u = uniform(path, n + n % 2, seed)
    radius, angle = np.sqrt(-2.0 * np.log1p(-u[0::2])), 2.0 * np.pi * u[1::2]
    out = np.empty(n + n % 2)
    out[0::2], out[1::2] = radius * np.cos(angle), radius * np.sin(angle)
    return out[:n]


def sincos(shape: tuple[int, ...], extent: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Table [height, width, D] of sines and cosines of the column, then of the row (arXiv:2212.09748).

    Coordinates run from 0 to `extent` over the table, so that a larger table is a finer one."""
    height, width, size = shape
    frequency = 10000.0 ** (-np.arange(size // 4) / (size // 4))
    rows, columns = np.meshgrid(np.arange(height) * extent / height, np.arange(width) * extent / width, indexing="ij")
    angles = [place[..., None] * frequency for place in (columns, rows)]
    return np.concatenate([wave(a) for a in angles for wave in (np.sin, np.cos)], axis=-1)
