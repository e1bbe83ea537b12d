"""What one row of the op table holds: rule, operands, parameters, types and cost of an op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specc.compiler.rules import Binding, Rule, parse_rule
from specc.compiler.types import Dim, DType, TensorType

ArgKind = Literal[
    "dim", "dims", "int", "float", "bool", "str", "choice", "expr", "mask", "value", "pattern", "renames",
    "init", "per", "positions",
]  # fmt: skip
REQUIRED: Any = object()
# Initialisers and their numbers.
INIT_KINDS: dict[str, tuple[str, ...]] = {
    "normal": ("std",), "truncated_normal": ("std",), "uniform": ("low", "high"), "constant": ("value",),
    "zeros": (), "ones": (), "xavier_uniform": (), "kaiming_normal": (), "sincos": ("extent",),
}  # fmt: skip


@dataclass(frozen=True)
class Arg:
    """A parameter that a step may set. `dim` and `dims` are expressions over dim names; `within` is the interval of a
    number, such as '[0, 1)'."""

    kind: ArgKind
    default: Any = REQUIRED
    doc: str = ""
    choices: tuple[str, ...] = ()
    within: str = ""

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED

    def holds(self, n: float) -> bool:
        """Whether a number lies in the interval."""
        if not self.within:
            return True
        low, high = map(float, self.within[1:-1].split(","))
        return (low < n or (low == n and self.within[0] == "[")) and (
            n < high or (n == high and self.within[-1] == "]")
        )


@dataclass(frozen=True)
class Weight:
    """A parameter tensor of an op; `when` names the bool argument that switches it on."""

    name: str
    init: tuple[str, tuple[tuple[str, float], ...]] = ("normal", (("std", 0.02),))
    when: str = ""


@dataclass(frozen=True)
class Applied:
    """An op applied to typed operands: what inference and cost rules see."""

    ins: tuple[TensorType | None, ...]
    args: Mapping[str, Any]
    binding: Binding

    def type(self, i: int) -> TensorType:
        t = self.ins[i]
        assert t is not None
        return t


class OpError(Exception):
    """The op does not accept its operands or parameters; `code` is the diagnostic's."""

    def __init__(self, code: str, message: str, hint: str = "", operand: int | None = None) -> None:
        super().__init__(message)
        self.code, self.hint, self.operand = code, hint, operand


Infer = Callable[[Applied], tuple[TensorType, ...]]
Flops = Literal["contract", "pointwise", "none"]
# The dims that `over` names, those that the result lacks, the last one, all but the batch, or those of keys.
Mixes = Literal["", "over", "summed", "last", "space", "keys"]


@dataclass(frozen=True)
class Op:
    """One row. `inputs` name the value operands (a `?` marks an optional one); weights follow them in the rule.

    `binds` says which argument gives a letter its dims. `infer` overrides the rule for what a rule cannot say.
    `mixes` says along which dims entries see each other, for incremental decoding."""

    name: str
    rule: str
    doc: str
    inputs: tuple[str, ...] = ("x",)
    weights: tuple[Weight, ...] = ()
    args: Mapping[str, Arg] = field(default_factory=dict)
    binds: Mapping[str, str] = field(default_factory=dict)
    takes: tuple[DType | Literal["any"], ...] = ()
    gives: tuple[DType, ...] = ("float",)
    infer: Infer | None = None
    check: Callable[[Applied], None] | None = None
    flops: Flops = "pointwise"
    mixes: Mixes = ""
    internal: bool = False
    source: str = ""  # the file of an op of the user's own

    @property
    def parsed(self) -> Rule:
        return parse_rule(self.rule)

    def takes_of(self, i: int) -> str:
        return self.takes[i] if i < len(self.takes) else "float"


def dims_named(t: TensorType) -> dict[str, Dim]:
    return {d.name: d for d in t.dims}


INIT = Arg("init", None, "initialiser of the weight: {normal: 0.02}, zeros, ones, ...")
PER = Arg("per", None, "{by: ATTRIBUTE, of: [a, b]}: own weights for each value of a token attribute")
