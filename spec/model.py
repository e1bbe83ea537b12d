"""The `model:` section: dims, inputs, blocks and steps, as written; what they mean is the compiler's affair."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, StrictInt, model_serializer, model_validator

from specc.spec.node import Node

Wiring = str | list[str] | dict[str, str]
WIRING_KEYS = ("from", "as", "name", "when")


class Step(Node):
    """One op or block call: `- linear: {out: D}`, with its wiring beside the op or among its parameters."""

    op: str
    args: dict[str, Any] | str | list[Any] | int | float | None = None
    from_: Wiring | None = Field(None, alias="from")
    as_: str | list[str] | None = Field(None, alias="as")
    name: str | None = None
    when: str | bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _unfold(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"op": data}
        if not isinstance(data, dict) or "op" in data:
            return data
        ops = [k for k in data if k not in WIRING_KEYS]
        if len(ops) == 2 and "tie" in ops:
            data = _with_tie(data, ops)
            ops = [k for k in ops if k != "tie"]
        if len(ops) != 1:
            found = ", ".join(map(str, ops)) or "none"
            raise ValueError(f"a step names exactly one op or block (found: {found})")
        args = data[ops[0]]
        wiring = {k: v for k, v in data.items() if k in WIRING_KEYS}
        if isinstance(args, dict):
            wiring = {k: v for k, v in args.items() if k in WIRING_KEYS} | wiring
            args = {k: v for k, v in args.items() if k not in WIRING_KEYS}
        return {"op": ops[0], "args": args, **wiring}

    @model_serializer
    def _fold(self) -> str | dict[str, Any]:
        wiring = {"from": self.from_, "as": self.as_, "name": self.name, "when": self.when}
        given = {key: value for key, value in wiring.items() if value is not None}
        return {self.op: self.args, **given} if given or self.args is not None else self.op


def _with_tie(data: dict[str, Any], ops: list[str]) -> dict[str, Any]:
    """A step whose `tie:` stands beside its op: among its parameters."""
    op = next(k for k in ops if k != "tie")
    args = data[op]
    if args is not None and not isinstance(args, dict):
        raise ValueError(f"'tie' stands among parameters that have names: {op}: {{..., tie: {data['tie']}}}")
    return {k: v for k, v in data.items() if k != "tie"} | {op: {**(args or {}), "tie": data["tie"]}}


def step(
    op: str, *value: Any, from_: Wiring | None = None, as_: str | list[str] | None = None, name: str | None = None,
    when: str | bool | None = None, **args: Any,
) -> Step:  # fmt: skip
    """A step in Python: `step("linear", out="V", from_="x", as_="logits")`, `step("expr", "x + _")`."""
    if len(value) > 1 or (value and args):
        raise ValueError(f"a step of '{op}' has one plain value or named parameters")
    return Step(op=op, args=value[0] if value else args or None, from_=from_, as_=as_, name=name, when=when)


class Block(Node):
    """A named list of steps with typed inputs. `args` are declared as `dim`, `bool = false`, `mask = none`, ..."""

    doc: str = ""
    args: dict[str, str] = {}
    in_: dict[str, str | list[str | int]] = Field({}, alias="in")
    steps: list[Step]
    out: str | list[str] = "_"


class Attribute(Node):
    """An integer that belongs to each token of a sequence: a document number, a position, a modality."""

    type: str
    as_: str | None = Field(None, alias="as")


class NameRule(Node):
    """How tensors of a published checkpoint map to parameters: `theirs` = the `ours` joined along `concat`."""

    theirs: str
    ours: str | list[str]
    pattern: str | None = None
    concat: int = 0
    index: int | None = None


class Lora(Node):
    """Low-rank adapters beside the linear weights that match, y = x W + scale (x A) B (arXiv:2106.09685); all other
    parameters are frozen, but for those that `train:` names."""

    rank: StrictInt = Field(ge=1, lt=1 << 20)
    alpha: float = Field(gt=0)
    match: list[str] = Field(min_length=1, max_length=100)
    rslora: bool = False  # divide alpha by the root of the rank (arXiv:2312.03732)
    dropout: float = Field(0.0, ge=0, lt=1)

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class ModelSpec(Node):
    """An architecture: typed inputs, blocks, and the steps from the inputs to the outputs and the loss."""

    doc: str = ""
    dims: dict[str, StrictInt | str | list[StrictInt | str]] = {}
    numbers: dict[str, bool | StrictInt | float] = {}  # named constants of the architecture that are not sizes
    inputs: dict[str, str]
    attributes: dict[str, str | Attribute] = {}
    masks: dict[str, str] = Field({}, max_length=100)
    blocks: dict[str, Block] = {}
    steps: list[Step]
    outputs: dict[str, str] | Literal["_"] = "_"
    loss: str | None = None
    freeze: list[str] = []
    train: list[str] = []
    lora: Lora | None = None
    names: list[NameRule] = []
