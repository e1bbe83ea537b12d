"""Makes masks in the bodies that use them, so that attributes of tokens go from call to call and not a dense mask.

before: stem(%doc) -> %m = mask(%doc, %doc);  layer(%x, %m): attend(.., %m)
after:  layer(%x, %doc): %m = mask(%doc, %doc); attend(.., %m)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from specc.compiler.passes.prune import prune
from specc.compiler.program import Body, Call, Eqn, Program, Var


@dataclass(frozen=True)
class _Mask:
    """A mask between calls: its equation, and the inputs of the program that it is made of."""

    eqn: Eqn
    sources: tuple[str, ...]


def sink_masks(program: Program) -> Program:
    """The program with every mask of its inputs made where it is used."""
    masks = _masks(program)
    wanted = {name: _operands(program, name, masks) for name in program.bodies}
    if not any(wanted.values()):
        return program
    bodies = {n: _sunk(program, b, wanted[n]) if wanted[n] else b for n, b in program.bodies.items()}
    calls = tuple(_refit(c, program.bodies[c.body], wanted[c.body]) for c in program.calls)
    return prune(replace(program, bodies=bodies, calls=calls), list(program.outputs), program.loss is not None)


def _masks(program: Program) -> dict[str, _Mask]:
    found: dict[str, _Mask] = {}
    for call in program.calls:
        body = program.bodies[call.body]
        given = dict(zip((v.name for v in body.ins), call.ins, strict=True))
        for e in body.eqns:
            sources = tuple(given.get(i or "", "") for i in e.ins)
            if e.op == "mask" and e.outs[0] in body.outs and all(s in program.inputs for s in sources):
                found[call.outs[body.outs.index(e.outs[0])]] = _Mask(e, sources)
    return found


def _operands(program: Program, name: str, masks: Mapping[str, _Mask]) -> dict[str, _Mask]:
    """Operands of a body that are one such mask in all its calls."""
    found: dict[str, _Mask] = {}
    for i, v in enumerate(program.bodies[name].ins):
        values = {c.ins[i] for c in program.calls if c.body == name}
        if len(values) == 1 and (value := values.pop()) in masks:
            found[v.name] = masks[value]
    return found


def _sources(masks: Mapping[str, _Mask]) -> list[str]:
    return list(dict.fromkeys(s for m in masks.values() for s in m.sources))


def _sunk(program: Program, body: Body, masks: Mapping[str, _Mask]) -> Body:
    new = [Var(f"mask_{s}", program.inputs[s]) for s in _sources(masks)]
    made = [replace(m.eqn, ins=tuple(f"mask_{s}" for s in m.sources), outs=(o,)) for o, m in masks.items()]
    ins = (*(v for v in body.ins if v.name not in masks), *new)
    return replace(body, ins=ins, eqns=(*made, *body.eqns))


def _refit(call: Call, body: Body, masks: Mapping[str, _Mask]) -> Call:
    kept = [i for i, v in zip(call.ins, body.ins, strict=True) if v.name not in masks]
    return replace(call, ins=(*kept, *_sources(masks)))
