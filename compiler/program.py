"""The Program: unique blocks of typed equations, and the calls that tile them into a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from specc.compiler.types import Dim, TensorType


@dataclass(frozen=True)
class Init:
    """How a parameter starts: a kind and its numbers, e.g. ("normal", {"std": 0.02})."""

    kind: str
    args: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.kind + "".join(f" {k}={v:g}" for k, v in self.args.items())


@dataclass(frozen=True)
class Param:
    """A parameter of the model, by its path."""

    path: str
    type: TensorType
    init: Init
    trainable: bool = True


@dataclass(frozen=True)
class Adapter:
    """The factors beside a weight [in out], by their paths: A [in rank] and B [rank out] stand for W + scale A B.

    Weights of `groups` (0 or 1 first dims that all three have) are so group by group; `ins` dims are summed over."""

    weight: str
    a: str
    b: str
    scale: float
    ins: int = 1
    groups: int = 0


@dataclass(frozen=True)
class Var:
    """A named, typed operand of a body."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class BodyParam:
    """A parameter operand of a body: `local` is its path below the call's; `tied` is a path of the whole model."""

    name: str
    local: str
    type: TensorType
    init: Init
    tied: str = ""


@dataclass(frozen=True)
class Eqn:
    """`outs = op(ins)`; ins are values or parameters of the body, None is an operand left out."""

    op: str
    ins: tuple[str | None, ...]
    outs: tuple[str, ...]
    types: tuple[TensorType, ...]
    attrs: Mapping[str, Any]
    path: str  # of the step, for messages and reports
    place: str = field(default="", compare=False)  # file:line:column of the step

    @property
    def stands_at(self) -> str:
        """The step in short: its file without folders, and its path."""
        return f"{self.place.rpartition('/')[2]} {self.path}"

    def __str__(self) -> str:
        outs = ", ".join(f"%{o}: {t}" for o, t in zip(self.outs, self.types, strict=True))
        ins = [f"%{i}" if i else "-" for i in self.ins]
        attrs = [f"{k}={show_attr(v)}" for k, v in self.attrs.items()]
        return f"{outs} = {self.op}({', '.join(ins + attrs)})"


@dataclass(frozen=True)
class Body:
    """A unique block: what is lowered, compiled and solved once, however often it is called."""

    name: str
    ins: tuple[Var, ...]
    params: tuple[BodyParam, ...]
    eqns: tuple[Eqn, ...]
    outs: tuple[str, ...]

    def types(self) -> dict[str, TensorType]:
        """The type of every value and parameter."""
        known = {v.name: v.type for v in self.ins} | {p.name: p.type for p in self.params}
        for e in self.eqns:
            known |= zip(e.outs, e.types, strict=True)
        return known

    def __str__(self) -> str:
        ins = ", ".join(f"%{v.name}: {v.type}" for v in self.ins)
        lines = [f"block {self.name}({ins})"]
        for p in self.params:
            lines.append(f"  param %{p.name}: {p.type} = {'tied ' + p.tied if p.tied else p.local} ({p.init})")
        lines += [f"  {e}" for e in self.eqns]
        return "\n".join([*lines, f"  return {', '.join('%' + o for o in self.outs)}"])


@dataclass(frozen=True)
class Call:
    """One use of a body: values and parameter paths by position; `tile` counts the calls of a repeat."""

    body: str
    tile: int
    ins: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """A typed model: inputs, parameters, bodies, and the calls that connect them in order.

    `watched` are the outputs that a stage reads beside the loss: scalars that it logs, and what a reference says."""

    name: str
    inputs: Mapping[str, TensorType]
    params: Mapping[str, Param]
    bodies: Mapping[str, Body]
    calls: tuple[Call, ...]
    outputs: Mapping[str, str]
    loss: str | None
    adapters: tuple[Adapter, ...] = ()
    watched: tuple[str, ...] = ()

    @property
    def trainable(self) -> frozenset[str]:
        """The paths of the parameters that are trained."""
        return frozenset(n for n, p in self.params.items() if p.trainable)

    @property
    def narrow(self) -> frozenset[str]:
        """The parameters that runs keep in the dtype of compute: those that are frozen beside adapters."""
        return frozenset(n for n, p in self.params.items() if self.adapters and not p.trainable)

    def frozen_in(self) -> dict[str, frozenset[str]]:
        """For each body its parameters that no call trains, by their names in it."""
        found = {name: {p.name for p in body.params} for name, body in self.bodies.items()}
        for call in self.calls:
            pairs = zip(self.bodies[call.body].params, call.params, strict=True)
            found[call.body] -= {p.name for p, path in pairs if self.params[path].trainable}
        return {name: frozenset(names) for name, names in found.items()}

    def value_types(self) -> dict[str, TensorType]:
        """The type of every value between calls."""
        known = dict(self.inputs)
        for call in self.calls:
            body = self.bodies[call.body]
            types = body.types()
            known |= {out: types[o] for out, o in zip(call.outs, body.outs, strict=True)}
        return known

    def open_dims(self) -> list[str]:
        """Base dims without a size: the stage binds them."""
        dims = [d for t in self.inputs.values() for d in t.dims if d.size is None and not d.of]
        return list(dict.fromkeys(d.name for d in dims))

    def __str__(self) -> str:
        head = [f"program {self.name}"]
        head += [f"  input %{n}: {t}" for n, t in self.inputs.items()]
        tail = [f"  output {n} = %{v}" for n, v in self.outputs.items()]
        if self.loss:
            tail.append(f"  loss = %{self.loss}")
        return "\n".join([*head, *_call_lines(self), *tail, "", *(f"{b}\n" for b in self.bodies.values())])


def _call_lines(program: Program) -> Iterator[str]:
    """One line a call; a run of tiles of one body is one line."""
    runs: list[list[Call]] = []
    for call in program.calls:
        if runs and call.tile and runs[-1][0].body == call.body:
            runs[-1].append(call)
        else:
            runs.append([call])
    for run in runs:
        first, last = run[0], run[-1]
        times = f" x{len(run)}" if len(run) > 1 else ""
        outs = ", ".join(f"%{o}" for o in last.outs)
        yield f"  {outs} = {first.body}{times}({', '.join('%' + i for i in first.ins)})"


def show_attr(value: Any) -> str:
    if isinstance(value, Dim):
        return value.name
    if isinstance(value, list | tuple):
        return f"[{' '.join(show_attr(v) for v in value)}]"
    if isinstance(value, dict):
        return "{" + " ".join(f"{k}:{show_attr(v)}" for k, v in value.items()) + "}"
    return str(value)


def check(program: Program) -> Program:
    """Assert what every Program keeps: single assignment, operands defined and typed, calls that fit their body."""
    defined = set(program.inputs)
    for call in program.calls:
        body = program.bodies[call.body]
        assert len(call.ins) == len(body.ins), f"{call.body}: {len(call.ins)} ins for {len(body.ins)}"
        assert len(call.params) == len(body.params), f"{call.body}: parameters do not fit"
        assert len(call.outs) == len(body.outs), f"{call.body}: outs do not fit"
        assert all(i in defined for i in call.ins), f"{call.body} uses an undefined value: {call.ins}"
        assert all(p in program.params for p in call.params), f"{call.body}: unknown parameter in {call.params}"
        assert not defined & set(call.outs), f"{call.outs} are bound twice"
        defined |= set(call.outs)
    for body in program.bodies.values():
        _check_body(body)
    assert all(v in defined for v in program.outputs.values()), "an output is not defined"
    assert program.loss is None or program.loss in defined, "the loss is not defined"
    return program


def _check_body(body: Body) -> None:
    names = [*(v.name for v in body.ins), *(p.name for p in body.params)]
    assert len(set(names)) == len(names), f"{body.name}: an operand is named twice"
    defined = set(names)
    for e in body.eqns:
        assert all(i in defined for i in e.ins if i), f"{body.name}: {e} uses an undefined value"
        assert not defined & set(e.outs), f"{body.name}: {e} binds a name again"
        assert len(e.outs) == len(e.types), f"{body.name}: {e} has an untyped result"
        defined |= set(e.outs)
    assert all(o in defined for o in body.outs), f"{body.name}: an undefined result"
