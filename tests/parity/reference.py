"""A reference case on disk: weights, inputs, outputs and gradients of a small model of another library."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Reference:
    """A model, its inputs, and how to call it; one of the outputs is the `loss`."""

    module: nn.Module
    config: Mapping[str, Any]
    inputs: Mapping[str, Tensor]
    call: Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Tensor]]


def write_case(folder: Path, made: Reference, dtype: torch.dtype, seed: int) -> None:
    """Draw all weights anew, run the model, and write all gradients."""
    module = made.module.eval().to(dtype)
    redraw(module, seed)
    inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in made.inputs.items()}
    outputs = made.call(module, inputs)
    outputs["loss"].backward()
    grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    io = {f"{kind}.{n}": t for kind, ts in (("in", inputs), ("out", outputs), ("grad", grads)) for n, t in ts.items()}
    folder.mkdir(parents=True)
    for name, tensors in (("io", io), ("weights", module.state_dict())):
        copies = {n: t.detach().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
        save_file(copies, folder / f"{name}.safetensors")
    meta = {"case": folder.name, "config": made.config, "dtype": str(dtype).removeprefix("torch.")}
    (folder / "meta.json").write_text(json.dumps(meta, default=str), encoding="utf-8")


def redraw(module: nn.Module, seed: int) -> None:
    """Weights away from zeros and ones, so that a missing term shows; scales stay what they are."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not p.ndim:
                continue
            z = torch.randn(p.shape, generator=draw, dtype=torch.float64)
            std = 0.1 if p.ndim == 1 else 0.9 / math.sqrt(p[0].numel())
            is_scale = p.ndim == 1 and name.endswith("weight") and ("norm" in name.lower() or "ln_" in name)
            p.copy_(std * z + (1.0 if is_scale else 0.0))


def floats(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(rows: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(0, rows, shape, generator=torch.Generator().manual_seed(seed))
