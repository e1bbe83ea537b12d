"""Parameters of ops and arguments of blocks: from what was written to typed values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import yaml

from specc.compiler.elaborate.ambient import with_numbers
from specc.compiler.elaborate.scope import Frame, Path, gather
from specc.compiler.ops import OPS
from specc.compiler.ops.row import INIT_KINDS, Arg, Op
from specc.compiler.program import Init
from specc.compiler.types import Dim
from specc.spec.errors import did_you_mean
from specc.spec.expr import Expr, ExprError, evaluate, parse

WEIGHTS = {w.name or "weight" for op in OPS.values() for w in op.weights}
BLOCK_KINDS = ("dim", "dims", "int", "float", "bool", "str", "mask", "map", "init", "value")


def op_args(frame: Frame, op: Op, raw: Any, at: Path) -> dict[str, Any]:
    """The op's parameters, resolved and with defaults; unknown names come before missing ones."""
    given = named_args(frame, raw, list(op.args), f"`{op.name}`", at)
    out: dict[str, Any] = {}

    def one(name: str, arg: Arg) -> None:
        if arg.is_required and name not in given:
            frame.fail("S107", f"`{op.name}` needs '{name}'", at, arg.doc)
        out[name] = resolve(frame, arg, given[name], (*at, name)) if name in given else arg.default

    gather(partial(one, *row) for row in op.args.items())
    return out


def named_args(frame: Frame, raw: Any, names: list[str], what: str, at: Path) -> dict[str, Any]:
    """A mapping of parameters; anything else stands for the first parameter. Block arguments are put in."""
    raw = substitute(frame, raw)
    if raw is None:
        return {}
    if not isinstance(raw, Mapping):
        if not names:
            frame.fail("S102", f"{what} has no parameters", at)
        return {names[0]: raw}

    def known(key: str) -> None:
        if key not in names:
            frame.fail("S102", f"{what} has no parameter '{key}'", (*at, key), did_you_mean(key, names))

    gather(partial(known, str(key)) for key in raw)
    return {k: substitute(frame, v) for k, v in raw.items()}


def substitute(frame: Frame, raw: Any) -> Any:
    """A text that is exactly the name of an argument of the block stands for the argument's value."""
    if isinstance(raw, str) and raw in frame.args and raw not in frame.dims:
        return frame.args[raw]
    return raw


def resolve(frame: Frame, arg: Arg, raw: Any, at: Path) -> Any:
    """One parameter's value by its kind."""
    if raw is None and arg.default is None:
        return None
    match arg.kind:
        case "dim":
            return frame.dim(raw, at)
        case "dims":
            return frame.dim_list(raw, at)
        case "int" | "float" | "bool":
            number = _number(frame, arg.kind, raw, at)
            if not arg.holds(number):
                frame.fail("S103", f"'{at[-1]}' must lie in {arg.within}, got {number}", at)
            return number
        case "str" | "choice":
            return _text(frame, arg, raw, at)
        case "expr":
            return frame.expr(raw, at)
        case "renames":
            return {k: frame.dim(v, (*at, k)) for k, v in _mapping(frame, raw, at).items()}
        case "pattern":
            return raw if isinstance(raw, str) else {k: str(v) for k, v in _mapping(frame, raw, at).items()}
    return raw  # mask, value, init, per, positions: resolved where they are used


def _text(frame: Frame, arg: Arg, raw: Any, at: Path) -> str:
    if not isinstance(raw, str):
        frame.fail("S103", f"expected a text, got {raw!r}", at)
    if arg.choices and raw not in arg.choices:
        frame.fail("S103", f"'{raw}' is not one of {', '.join(arg.choices)}", at, did_you_mean(raw, arg.choices))
    return raw


def _mapping(frame: Frame, raw: Any, at: Path) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        frame.fail("S103", f"expected a mapping, got {raw!r}", at)
    return {str(k): v for k, v in raw.items()}


def _number(frame: Frame, kind: str, raw: Any, at: Path) -> int | float | bool:
    if isinstance(raw, list | dict | Expr) or (kind != "bool" and isinstance(raw, bool)):
        frame.fail("S103", f"expected {'a whole number' if kind == 'int' else kind}, got {raw!r}", at)
    number = frame.number(raw, at)
    if kind == "bool":
        return bool(number)
    if kind == "int":
        if int(number) != number:
            frame.fail("S103", f"expected a whole number, got {number}", at)
        return int(number)
    return float(number)


def declared(frame: Frame, text: str, at: Path) -> tuple[str, bool, Any]:
    """`dim = heads` as (kind, has a default, default)."""
    kind, eq, default = (part.strip() for part in text.partition("="))
    if kind not in BLOCK_KINDS:
        frame.fail("S110", f"'{kind}' is not a kind of argument", at, did_you_mean(kind, BLOCK_KINDS))
    if not eq:
        return kind, False, None
    try:
        value = yaml.safe_load(default)
    except (yaml.YAMLError, ValueError, AttributeError):
        frame.fail("S110", f"'{default}' is not a default value", at)
    return kind, True, None if value == "none" else value


def block_value(frame: Frame, kind: str, raw: Any, at: Path) -> Any:
    """The value of a block's argument, seen from the caller."""
    raw = substitute(frame, raw)
    if raw is None:
        return None
    if kind == "dim":
        return frame.dim(raw, at)
    if kind == "dims":
        return frame.dim_list(raw, at)
    if kind in ("int", "float", "bool"):
        return _number(frame, kind, raw, at)
    if kind == "map" and not isinstance(raw, Mapping):
        frame.fail("S103", f"expected a mapping, got {raw!r}", at)
    if kind in ("str", "mask", "value") and not isinstance(raw, str):
        frame.fail("S103", f"expected a text, got {raw!r}", at)
    if kind == "mask":
        return with_numbers(frame, raw, at)
    return settled(frame, raw) if kind in ("map", "init") else raw


def settled(frame: Frame, raw: Any) -> Any:
    """A mapping handed to a block, with the numbers that its texts stand for in the caller's scope."""
    if isinstance(raw, Mapping):
        return {k: settled(frame, v) for k, v in raw.items()}
    if isinstance(raw, list):
        return [settled(frame, v) for v in raw]
    if not isinstance(raw, str):
        return raw
    try:
        return evaluate(parse(raw), frame.numbers())
    except ExprError:
        return raw


def init_of(frame: Frame, raw: Any, weight: str, default: tuple[str, tuple[tuple[str, float], ...]], at: Path) -> Init:
    """`zeros`, `{normal: 0.02}`, `{uniform: [0, 1]}`, or one of these for each weight by name."""
    if isinstance(raw, Mapping) and not set(raw) <= set(INIT_KINDS):
        strange = [str(k) for k in raw if k not in WEIGHTS]
        if strange:
            known = [*INIT_KINDS, *WEIGHTS]
            frame.fail("S103", f"'{strange[0]}' is no initialiser and no weight", at, did_you_mean(strange[0], known))
        raw = raw.get(weight)
    elif weight == "bias":
        raw = None  # a plain initialiser is the weight's
    if raw is None:
        return Init(default[0], dict(default[1]))
    if not (isinstance(raw, str) or (isinstance(raw, Mapping) and len(raw) == 1)):
        frame.fail("S103", f"an initialiser is a name or {{name: numbers}}, got {raw!r:.60}", at)
    kind, numbers = (raw, []) if isinstance(raw, str) else next(iter(raw.items()))
    if kind not in INIT_KINDS:
        frame.fail("S103", f"'{kind}' is not an initialiser", at, did_you_mean(str(kind), INIT_KINDS))
    names = INIT_KINDS[kind]
    if isinstance(numbers, Mapping):
        given = dict(numbers)
    else:
        given = dict(zip(names, numbers if isinstance(numbers, list) else [numbers], strict=False))
    if set(given) != set(names):
        frame.fail("S103", f"'{kind}' takes {', '.join(names) or 'no numbers'}", at)
    read = {n: float(frame.number(v, at)) for n, v in given.items()}
    if read.get("std", 0.0) < 0 or read.get("low", 0.0) > read.get("high", math.inf):
        frame.fail("S103", f"'{kind}' takes {'a std of at least 0' if 'std' in read else 'low before high'}", at)
    return Init(kind, read)


def plain_attrs(op: Op, args: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that the lowering reads: not those that only shaped operands."""
    if op.source:
        return {k: v for k, v in args.items() if k != "init" and v is not None}
    hidden = {"init", "per", "tie", "positions", "bias" if op.name == "attend" else "", "mask"}
    used = {"out", "over", "rows", "shape", "bias", "scale"} if op.weights else set()
    return {
        k: list(v) if isinstance(v, tuple) and not isinstance(v, Dim) else v
        for k, v in args.items()
        if k not in hidden | used and v is not None
    }
