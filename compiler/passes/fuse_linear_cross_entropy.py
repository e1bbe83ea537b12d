"""A linear head whose only use is a loss of its classes becomes one op that never holds all logits.

before: %l = linear(%x, %w, %b); %loss = cross_entropy(%l, %labels)
after:  %loss = linear_cross_entropy(%x, %w, %labels, %b)

`log_prob` becomes `linear_log_prob` likewise."""

from __future__ import annotations

from dataclasses import replace

from specc.compiler.program import Body, Eqn, Program

FUSED = {"cross_entropy": "linear_cross_entropy", "log_prob": "linear_log_prob"}


def fuse_linear_cross_entropy(program: Program) -> Program:
    bodies = {name: _fuse(body) for name, body in program.bodies.items()}
    return program if bodies == program.bodies else replace(program, bodies=bodies)


def _fuse(body: Body) -> Body:
    uses: dict[str, int] = {}
    for name in [i for e in body.eqns for i in e.ins if i] + list(body.outs):
        uses[name] = uses.get(name, 0) + 1
    made = {e.outs[0]: e for e in body.eqns if e.op == "linear" and uses.get(e.outs[0]) == 1}
    types = body.types()
    eqns: list[Eqn] = []
    gone: set[str] = set()
    for e in body.eqns:
        head = made.get(e.ins[0] or "") if e.op in FUSED else None
        plain = head is not None and not any(e.attrs.get(a) for a in ("z_loss", "label_smoothing", "softmax"))
        if head is None or not plain or len(types[head.ins[0] or ""].dims) != len(head.types[0].dims):
            eqns.append(e)
            continue
        gone.add(head.outs[0])
        x, weight, *bias = head.ins
        eqns.append(replace(e, op=FUSED[e.op], ins=(x, weight, e.ins[1], *bias)))
    return replace(body, eqns=tuple(e for e in eqns if e.outs[0] not in gone)) if gone else body
