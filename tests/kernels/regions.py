"""The regions that are cut out of the models of tests/grid, at odd sizes, and operands for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from specc.compiler.kernels.attention import attentions, make_attention, with_attention
from specc.compiler.kernels.cut import Cut, cut
from specc.compiler.kernels.load import load_kernel
from specc.compiler.kernels.made import Made
from specc.compiler.kernels.region import Region, sub_body, trace
from specc.compiler.kernels.source import make
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.program import Body, Eqn, Program
from specc.compiler.types import Dim, TensorType
from specc.spec.expr import parse
from tests.grid.models import TRACERS, Tracer

# Rows are odd in number, and rows of 40, 72 or 12 numbers fill no block.
ODD: Mapping[str, Tracer] = {
    "llama": replace(TRACERS["llama"], dims={"D": 40, "L": 1, "H": 4, "K": 2, "F": 72, "V": 64}),
    "deepseek_v2": replace(
        TRACERS["deepseek_v2"], dims={**TRACERS["deepseek_v2"].dims, "D": 40, "H": 2, "KR": 12, "L": 2}
    ),
    "t5": replace(TRACERS["t5"], dims={**TRACERS["t5"].dims, "D": 40, "H": 2, "F": 72}),
    "cogvlm_expert": replace(TRACERS["cogvlm_expert"], dims={"D": 24, "L": 1, "H": 4, "F": 56}),
    "sd3": replace(TRACERS["sd3"], dims={**TRACERS["sd3"].dims, "H": 2, "E": 16}),
    "gpt2": Tracer("gpt2", {"D": 40, "L": 1, "H": 4, "V": 64, "P": 64}, {}, "causal_lm"),
    "normed queries": replace(
        TRACERS["llama"],
        dims={"D": 48, "L": 1, "H": 4, "K": 2, "F": 64, "V": 64},
        also=("model.blocks.decoder_layer.steps.1.attention.qk_norm={eps: 1.0e-6}",),
    ),
    "bert": Tracer("bert", {"D": 40, "L": 1, "H": 4, "F": 72, "V": 64, "P": 64}, {}, "masked_lm"),
    "glm": Tracer("glm", {"D": 40, "L": 1, "H": 4, "V": 64, "P": 64}, {}, "blank_infilling"),
}
SIZES = {"B": 3, "S": 5, "T": 7, "H": 2}
# Attention has more tokens, so that there are several tiles.
TOKENS = {"B": 2, "S": 21, "T": 18}
# Causal in documents with shared heads; across two sequences; full; with a prefix that is seen by all.
ATTENTIONS = ("llama", "t5", "sd3", "glm")


@dataclass(frozen=True)
class Case:
    """Equations of a model, and their file in one type. The op takes the body's ins in this order."""

    model: str
    body: Body
    made: Made
    dtype: torch.dtype
    order: tuple[int, ...]


def cuts(program: Program, sizes: Mapping[str, int], dtype: torch.dtype) -> dict[str, Cut]:
    """Each body of a program with its regions."""
    return {name: cut(body, sizes, dtype) for name, body in program.bodies.items()}


def cases(dtype: torch.dtype, models: Mapping[str, Tracer] = ODD) -> Iterator[Case]:
    """Each kernel once, whatever models have it."""
    seen: set[str] = set()
    for model, tracer in models.items():
        program = sink_masks(tracer.program())
        for found in cuts(program, SIZES, dtype).values():
            for name, made in found.made.items():
                if name not in seen:
                    body = found.regions[name].body
                    yield Case(model, body, made, dtype, tuple(range(len(body.ins))))
            seen |= set(found.made)
        for body in program.bodies.values() if model in ATTENTIONS else ():
            for out, a in attentions(body).items():
                made = make_attention(a, dtype)
                if made.name not in seen:
                    yield attention_case(model, body, out, made, dtype)
                seen.add(made.name)


def broadcasts(dtype: torch.dtype) -> Iterator[Case]:
    """A factor along every choice of dims: its gradient sums over the others, in programs or behind them. One number
    for all is not among them: its gradient nearly cancels, so an error as a share of it says little."""
    dims = (Dim("B"), Dim("S"), Dim("H"), Dim("D", 1100))
    x = TensorType(dims)
    for n in range(1, len(dims)):
        for chosen in combinations(dims, n):
            types = {"x": x, "g": TensorType(chosen), "y": x}
            scaled = Eqn("expr", ("x", "g"), ("y",), (x,), {"formula": parse("silu(x) * g + g")}, "scaled")
            region = Region(sub_body([scaled], types, ["y"]), dims[:-1], dims[-1])
            yield Case("broadcasts", region.body, make(region, trace(region, dtype), dtype), dtype, (0, 1))


def attention_case(model: str, body: Body, out: str, made: Made, dtype: torch.dtype) -> Case:
    """An attention with the mask that it reads."""
    attend = next(e for e in body.eqns if out in e.outs)
    masks = [e for e in body.eqns if e.op == "mask" and e.outs[0] in attend.ins]
    own = sub_body([*masks, attend], body.types(), [out])
    read = list(dict.fromkeys(i for e in (*masks, attend) for i in e.ins if i and i not in [m.outs[0] for m in masks]))
    kernel = next(e for e in with_attention(body, {out: made.name}).eqns if out in e.outs)
    return Case(model, own, made, dtype, tuple(read.index(i or "") for i in kernel.ins))


def loaded(made: Made, folder: Path) -> ModuleType:
    """The module of a file, written below `folder`."""
    file = folder / f"{made.name}.py"
    file.write_text(made.source, encoding="utf-8")
    return load_kernel(file)


def sizes_of(case: Case) -> dict[str, int]:
    return TOKENS if case.made.name.startswith("attention") else SIZES


def operands(case: Case) -> list[Tensor]:
    """Drawn operands of the body; documents, parts and places are small, and may be -1."""
    draw = torch.Generator().manual_seed(0)
    ins: list[Tensor] = []
    for v in case.body.ins:
        shape = v.type.shape(sizes_of(case))
        if v.type.dtype == "float":
            ins.append(torch.randn(shape, generator=draw, dtype=torch.float64).to(case.dtype))
        else:
            drawn = torch.randint(-1, 4, shape, generator=draw)
            ins.append(drawn if v.type.dtype == "int" else drawn > 1)
    return ins
