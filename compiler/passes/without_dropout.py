"""Takes dropout out of a program, as decoding has it.

before: %a = linear(%x); %b = dropout(%a, %key); %c = expr(%x + %b)
after:  %a = linear(%x); %c = expr(%x + %a)"""

from __future__ import annotations

from dataclasses import replace

from specc.compiler.program import Body, Program


def without_dropout(program: Program) -> Program:
    """The program with the operands of its dropouts in their place."""
    return replace(program, bodies={name: _without(body) for name, body in program.bodies.items()})


def _without(body: Body) -> Body:
    same: dict[str, str] = {}
    eqns = []
    for e in body.eqns:
        ins = tuple(same.get(i, i) if i else i for i in e.ins)
        if e.op == "dropout" and ins[0]:
            same[e.outs[0]] = ins[0]
        else:
            eqns.append(replace(e, ins=ins))
    return replace(body, eqns=tuple(eqns), outs=tuple(same.get(o, o) for o in body.outs))
