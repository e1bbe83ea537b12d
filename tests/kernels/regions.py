"""The regions that are cut out of the models of tests/grid, at odd sizes, and operands for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specc.compiler.kernels.cut import Cut, cut
from specc.compiler.kernels.region import Region
from specc.compiler.kernels.source import Made
from specc.compiler.program import Program
from tests.grid.models import TRACERS, Tracer

# Rows are odd in number, and rows of 40, 72 or 12 numbers fill no block.
ODD: Mapping[str, Tracer] = {
    "llama": replace(TRACERS["llama"], dims={"D": 40, "L": 1, "H": 4, "K": 2, "F": 72, "V": 64}),
    "deepseek_v2": replace(TRACERS["deepseek_v2"], dims={**TRACERS["deepseek_v2"].dims, "D": 40, "KR": 12, "L": 2}),
    "t5": replace(TRACERS["t5"], dims={**TRACERS["t5"].dims, "D": 40, "F": 72}),
    "cogvlm_expert": replace(TRACERS["cogvlm_expert"], dims={"D": 24, "L": 1, "H": 4, "F": 56}),
    "sd3": TRACERS["sd3"],
    "gpt2": Tracer("gpt2", {"D": 40, "L": 1, "H": 4, "V": 64, "P": 64}, {}, "causal_lm"),
    "bert": Tracer("bert", {"D": 40, "L": 1, "H": 4, "F": 72, "V": 64, "P": 64}, {}, "masked_lm"),
    "glm": Tracer("glm", {"D": 40, "L": 1, "H": 4, "V": 64, "P": 64}, {}, "blank_infilling"),
}
SIZES = {"B": 3, "S": 5, "T": 7}


@dataclass(frozen=True)
class Case:
    """A region of a model, and its file in one type."""

    model: str
    region: Region
    made: Made
    dtype: torch.dtype


def cuts(program: Program, sizes: Mapping[str, int], dtype: torch.dtype) -> dict[str, Cut]:
    """Each body of a program with its regions."""
    return {name: cut(body, sizes, dtype) for name, body in program.bodies.items()}


def cases(dtype: torch.dtype, models: Mapping[str, Tracer] = ODD) -> Iterator[Case]:
    """Each region once, whatever models have it."""
    seen: set[str] = set()
    for model, tracer in models.items():
        for found in cuts(tracer.program(), SIZES, dtype).values():
            for name, made in found.made.items():
                if name not in seen:
                    seen.add(name)
                    yield Case(model, found.regions[name], made, dtype)


def operands(case: Case) -> list[Tensor]:
    """Drawn operands; numbers of experts, tokens and places are small."""
    draw = torch.Generator().manual_seed(0)
    ins: list[Tensor] = []
    for v in case.region.body.ins:
        shape = v.type.shape(SIZES)
        if v.type.dtype == "float":
            ins.append(torch.randn(shape, generator=draw, dtype=torch.float64).to(case.dtype))
        else:
            drawn = torch.randint(0, 9, shape, generator=draw)
            ins.append(drawn if v.type.dtype == "int" else drawn > 4)
    return ins
