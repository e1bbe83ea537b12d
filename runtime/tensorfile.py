"""Tensors in one safetensors file: hashed while written, and read into memory of their own."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
ALIGNMENT = 8


class NotATensorFile(ValueError):
    """The file does not parse as safetensors."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """Write and fsync; the SHA-256 of what was meant to be written, and its bytes. Equal tensors give equal files."""
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))  # wide first: all stay aligned
    header: dict[str, object] = {}
    at = 0
    for name in names:
        t = tensors[name]
        size = t.numel() * t.element_size()
        header[name] = {"dtype": CODES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    sha = hashlib.sha256()
    with path.open("wb") as f:
        for part in (len(text).to_bytes(8, "little"), text):
            f.write(part)
            sha.update(part)
        for name in names:
            values = raw(tensors[name])
            f.write(values)
            sha.update(values)
        f.flush()
        os.fsync(f.fileno())
    return sha.hexdigest(), 8 + len(text) + at


def raw(t: Tensor) -> memoryview:
    """The tensor's bytes, row after row."""
    if t.numel() == 0:
        return memoryview(b"")
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, each in an allocation of torch's: products on CPUs may depend on how memory is aligned."""
    try:
        with safe_open(path, framework="pt") as f:
            return {name: f.get_tensor(name).clone() for name in sorted(f.keys())}
    except SafetensorError as e:
        raise NotATensorFile(f"{path.name} is not a safetensors file: {e}") from None


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the values."""
    return sum(math.prod(t.shape) * t.element_size() for t in tensors.values())
