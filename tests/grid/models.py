"""Tiny models of the library, their inputs, and programs ready to be placed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from specc.compiler.elaborate import elaborate
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.program import Program
from specc.spec.spec import load


@dataclass(frozen=True)
class Tracer:
    """A model of the library in small: `dims` override its own, `sizes` are those of batch and sequences."""

    model: str
    dims: Mapping[str, int]
    sizes: Mapping[str, int]
    objective: str | None = None
    fused: bool = True
    is_deep: bool = False  # for pipelines alone
    also: tuple[str, ...] = field(default=())

    def program(self) -> Program:
        path = Path(str(files("specc.spec.models") / f"{self.model}.yaml"))
        overrides = [*(f"model.dims.{n}={v}" for n, v in self.dims.items()), *self.also]
        made = prune(elaborate(load(path, overrides), None, self.objective), [])
        return fuse_linear_cross_entropy(made) if self.fused else made


TRACERS: Mapping[str, Tracer] = {
    "llama": Tracer("llama", {"D": 32, "L": 2, "H": 8, "K": 4, "F": 64, "V": 64}, {"B": 8, "S": 32}, "causal_lm"),
    "llama_deep": Tracer(
        "llama", {"D": 32, "L": 6, "H": 8, "K": 4, "F": 64, "V": 64}, {"B": 8, "S": 32}, "causal_lm", is_deep=True
    ),
    "gpt2_deep": Tracer(
        "gpt2", {"D": 32, "L": 7, "H": 8, "F": 64, "V": 64, "CTX": 32}, {"B": 8, "S": 32}, "causal_lm", is_deep=True
    ),
    "deepseek_v2": Tracer(
        "deepseek_v2",
        {"D": 32, "L": 3, "H": 8, "QR": 16, "KR": 8, "N": 8, "R": 4, "E_V": 8, "F": 64, "E": 8, "K": 2, "FE": 16,
         "SHARED": 1, "G": 2, "TOP_G": 1, "V": 64},
        {"B": 8, "S": 32}, "causal_lm",
    ),
    "t5": Tracer(
        "t5", {"D": 32, "LE": 2, "LD": 2, "H": 8, "E": 8, "F": 64, "V": 64}, {"B": 8, "S": 32, "T": 32},
        "span_corruption",
    ),
    "cogvlm_expert": Tracer("cogvlm_expert", {"D": 32, "L": 2, "H": 8, "F": 64}, {"B": 8, "S": 32}),
    "sd3": Tracer(
        "sd3",
        {"C": 4, "Y": 8, "X": 8, "GRID": 8, "BASE": 4, "L": 2, "H": 8, "E": 4, "CT": 16, "CP": 16, "W": 16},
        {"B": 8, "T": 16},
    ),
}  # fmt: skip


def inputs_of(program: Program, sizes: Mapping[str, int], dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    """Drawn inputs: documents of several lengths, labels of which some do not count."""
    draw = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name, t in sorted(program.inputs.items()):
        shape = t.shape(sizes)
        if t.dtype == "float":
            made[name] = torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
        elif name.endswith("doc"):
            made[name] = torch.randint(0, 2, shape, generator=draw).cumsum(-1) // 8
        elif name.endswith("pos"):
            made[name] = torch.arange(shape[-1]).expand(shape).contiguous()
        elif name == "modality":
            made[name] = torch.randint(0, 2, shape, generator=draw)
        else:
            made[name] = torch.randint(0, 64, shape, generator=draw)
            if name == "labels":
                made[name] = torch.where(torch.rand(shape, generator=draw) < 0.2, -100, made[name])
    return made


def weights_of(program: Program, dtype: torch.dtype) -> dict[str, Tensor]:
    """Drawn parameters of a size that makes every gradient count."""
    found: dict[str, Tensor] = {}
    for i, (name, p) in enumerate(program.params.items()):
        shape = p.type.shape({})
        x = torch.randn(shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        scale = 0.5 * (shape[0] if len(shape) > 1 else 1) ** -0.5
        found[name] = (1 + 0.1 * x if p.init.kind == "ones" else scale * x).to(dtype)
    return found
