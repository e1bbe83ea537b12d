"""Keep only what the wanted values need.

before: head(%x, %labels) -> %logits, %loss      wanted: loss
after:  head(%x, %labels) -> %loss               with the equations that only %logits needed gone"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specc.compiler.program import Body, Call, Program


def prune(program: Program, outputs: Sequence[str], loss: bool = True) -> Program:
    """The program with the named outputs (and the loss), and nothing that they do not use."""
    kept = {n: program.outputs[n] for n in outputs}
    wanted = set(kept.values()) | ({program.loss} if loss and program.loss else set())
    used, calls = _used_outs(program, wanted)
    bodies = {name: _trim(body, used[name]) for name, body in program.bodies.items() if used.get(name)}
    calls = [_refit(c, program.bodies[c.body], bodies[c.body]) for c in calls]
    params = {p: program.params[p] for p in program.params if any(p in c.params for c in calls)}
    inputs = {n: t for n, t in program.inputs.items() if any(n in c.ins for c in calls) or n in wanted}
    return replace(
        program, inputs=inputs, params=params, bodies=bodies, calls=tuple(calls), outputs=kept,
        loss=program.loss if loss else None, watched=tuple(n for n in program.watched if n in kept),
    )  # fmt: skip


def _used_outs(program: Program, wanted: set[str]) -> tuple[dict[str, list[str]], list[Call]]:
    """Outs of each body that some call needs, and the calls that are needed.

    A tile's unused input keeps the chain alive: bodies are trimmed for all their calls alike."""
    needs, used, calls = set(wanted), dict[str, list[str]](), list[Call]()
    for call in reversed(program.calls):
        body = program.bodies[call.body]
        hit = [b for o, b in zip(call.outs, body.outs, strict=True) if o in needs]
        if not hit:
            continue
        known = used.setdefault(call.body, [])
        known += [o for o in hit if o not in known]
        calls.insert(0, call)
        live = _live(body, known)
        needs |= {i for i, v in zip(call.ins, body.ins, strict=True) if v.name in live}
    return used, calls


def _live(body: Body, outs: Sequence[str]) -> set[str]:
    live = set(outs)
    for e in reversed(body.eqns):
        if live & set(e.outs):
            live |= {i for i in e.ins if i}
    return live


def _trim(body: Body, outs: Sequence[str]) -> Body:
    live = _live(body, outs)
    return Body(
        body.name,
        tuple(v for v in body.ins if v.name in live),
        tuple(p for p in body.params if p.name in live),
        tuple(e for e in body.eqns if live & set(e.outs)),
        tuple(o for o in body.outs if o in outs),
    )


def _refit(call: Call, before: Body, after: Body) -> Call:
    ins = {v.name: i for v, i in zip(before.ins, call.ins, strict=True)}
    params = {p.name: i for p, i in zip(before.params, call.params, strict=True)}
    outs = dict(zip(before.outs, call.outs, strict=True))
    return replace(
        call, ins=tuple(ins[v.name] for v in after.ins), params=tuple(params[p.name] for p in after.params),
        outs=tuple(outs[o] for o in after.outs),
    )  # fmt: skip
