"""Tensors in safetensors files: hashed while written, read into memory of their own, and only where they are wanted."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from specc.runtime.pieces import Piece, Region, extent, overlap

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
ALIGNMENT = 8


class NotATensorFile(ValueError):
    """The file does not parse as safetensors."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[str, int]:  # fmt: skip
    """Write and fsync; the SHA-256 of what was meant to be written, and its bytes. Equal tensors give equal files."""
    names = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n))  # wide first: all stay aligned
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
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


def bytes_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the values."""
    return sum(math.prod(t.shape) * t.element_size() for t in tensors.values())


class Reader:
    """Reads regions of tensors that lie in pieces in the files of a folder; each file is opened once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open: dict[str, Any] = {}
        self.stack = ExitStack()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def read(self, name: str, dtype: torch.dtype, region: Region, pieces: Sequence[Piece]) -> Tensor:
        """A region of a tensor, in an allocation of torch's; the pieces tile the whole."""
        met = [(p, both) for p in pieces if (both := overlap(region, p))]
        if len(met) == 1 and extent(met[0][1][0]) == extent(region):
            return self._values(name, dtype, met[0][0], met[0][1][1]).clone(memory_format=torch.contiguous_format)
        found = torch.empty(extent(region), dtype=dtype)
        for piece, (there, here) in met:
            found[there] = self._values(name, dtype, piece, here)
        return found

    def _values(self, name: str, dtype: torch.dtype, piece: Piece, here: Region) -> Tensor:
        """Of a piece, where it is wanted; raises NotATensorFile if the file has something else."""
        try:
            if piece.file not in self.open:
                self.open[piece.file] = self.stack.enter_context(safe_open(self.folder / piece.file, framework="pt"))
            file = self.open[piece.file]
            stored = file.get_slice(name)
            if tuple(stored.get_shape()) != piece.size or stored.get_dtype() != CODES[dtype]:
                raise NotATensorFile(f"{piece.file} has {name} as {stored.get_dtype()} {stored.get_shape()}")
            found: Tensor = stored[here] if here else file.get_tensor(name)
        except SafetensorError as e:
            raise NotATensorFile(f"{piece.file} is not a safetensors file with {name}: {e}") from None
        return found
