"""FLOPs of a training step as papers count them: forward and twice that backward (once where the weight is frozen),
nothing done again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specc.compiler.cost import eqn_cost
from specc.compiler.ops import OPS
from specc.compiler.program import Program


@dataclass(frozen=True)
class Flops:
    """With attention on all pairs of tokens (as PaLM counts), and on those alone that a causal mask lets see."""

    full: float
    causal: float


def step_flops(program: Program, sizes: Mapping[str, int]) -> Flops:
    """Of products in all calls on one microbatch of these sizes."""
    full = causal = 0.0
    frozen = program.frozen_in()
    for name, body in program.bodies.items():
        types, times = body.types(), sum(c.body == name for c in program.calls)
        for e in (e for e in body.eqns if e.op in OPS and OPS[e.op].flops == "contract"):
            passes = 3 if frozen[name].isdisjoint(e.ins) else 2
            flops = passes * times * eqn_cost(e, [types[i] if i else None for i in e.ins], sizes, 2).flops
            full += flops
            causal += flops / 2 if e.op == "attend" and e.attrs.get("causal") else flops
    return Flops(full, causal)
