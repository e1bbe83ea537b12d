"""From what a user declares about an op (a rule, operands, weights, parameters) to its row in the op table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from specc.compiler.ops.row import INIT, INIT_KINDS, REQUIRED, Arg, ArgKind, Flops, Op, Weight
from specc.compiler.rules import ELLIPSIS, Rule, parse_rule
from specc.compiler.types import DType

TOKEN = re.compile(r"!?[A-Za-z][A-Za-z0-9_]{0,30}|\.\.\.")
MAX_RULE = 400
KINDS: Mapping[str, tuple[ArgKind, type]] = {
    "int": ("int", int), "float": ("float", float), "bool": ("bool", bool), "str": ("str", str),
}  # fmt: skip
RESERVED = {"from", "as", "name", "when", "init", "per", "tie", "positions", "mask", "flops"}
DTYPES = get_args(DType)


@dataclass(frozen=True)
class Declared:
    """A function of the user's as its text declares it; `keywords` hold a type's name and a default or nothing."""

    name: str
    doc: str
    operands: tuple[str, ...]
    keywords: Mapping[str, tuple[str, tuple[Any, ...]]]
    rule: str
    weights: Any = ()
    takes: Any = None
    gives: Any = "float"
    flops: Any = ""


def rule_problem(text: str) -> str:
    """What is wrong with a rule of the user's, or nothing."""
    if len(text) > MAX_RULE or text.count("->") != 1:
        return "a rule reads 'operand, operand -> result' and is short"
    for word in text.replace("->", " ").replace(",", " ").split():
        if not TOKEN.fullmatch(word):
            return f"'{word}' is neither a letter, '!letter' nor '...'"
    rule = parse_rule(text)
    for pattern in (*rule.ins, *rule.outs):
        letters = [t.letter for t in pattern]
        if len(set(letters)) < len(letters):
            return "an operand or result has a letter twice"
    if ELLIPSIS in _letters(rule.outs) and ELLIPSIS not in _letters(rule.ins):
        return "the result has '...', which no operand has"
    return ""


def _letters(patterns: Sequence[Sequence[Any]]) -> list[str]:
    return list(dict.fromkeys(t.letter for p in patterns for t in p))


def declared_row(d: Declared, source: str) -> Op | str:
    """The row, or what is wrong."""
    problem = rule_problem(d.rule) or _operand_problem(d, parse_rule(d.rule))
    if problem:
        return problem
    rule = parse_rule(d.rule)
    weights = _weights(d)
    n = len(d.operands) - len(weights)
    inputs = d.operands[:n]
    known = _letters(rule.ins[:n])
    sizes = [x for x in _letters((*rule.ins[n:], *rule.outs)) if x not in known and x != ELLIPSIS]
    args: dict[str, Arg] = {x: Arg("dim", doc=f"the dim '{x}' of the rule") for x in sizes}
    for x in sizes:
        if x not in d.keywords and x not in _letters(rule.ins):
            return f"no operand has the result's letter '{x}', so the function takes its size: '*, {x}: int'"
    for name, (kind, default) in d.keywords.items():
        if name in sizes:
            if kind != "int" or default:
                return f"the parameter '{name}' is the size of the rule's letter '{name}': '{name}: int'"
            continue
        if name in RESERVED:
            return f"the parameter '{name}' has the name of a word of the language"
        args[name] = Arg(KINDS[kind][0], default[0] if default else REQUIRED)
    if weights:
        args["init"] = INIT
    takes: dict[str, DType | Literal["any"]] = dict(d.takes or {})
    gives: Any = [d.gives] if isinstance(d.gives, str) else d.gives
    contracted = [x for x in rule.contracted if x != ELLIPSIS]
    flops: Flops = d.flops or ("contract" if contracted else "pointwise")
    return Op(
        d.name, d.rule, d.doc, inputs, tuple(weights), args, {x: x for x in sizes},
        tuple(takes.get(x, "float") for x in inputs), tuple(gives), flops=flops, source=source,
    )  # fmt: skip


def _operand_problem(d: Declared, rule: Rule) -> str:
    """What does not fit between the function, the rule and the decorator's words."""
    if not d.operands or len(d.operands) != len(rule.ins):
        return f"the rule has {len(rule.ins)} operands, the function {len(d.operands)}"
    names = list(d.weights) if isinstance(d.weights, list | tuple | dict) else None
    if names is None or not all(isinstance(n, str) for n in names):
        return "'weights' is a list of names, or a mapping from names to initialisers"
    if names and (tuple(names) != d.operands[-len(names) :] or len(names) == len(d.operands)):
        return "the weights are the last operands, in order, behind one input or more"
    takes, n = d.takes or {}, len(d.operands) - len(names)
    if (
        not isinstance(takes, dict)
        or not set(takes) <= set(d.operands[:n])
        or not set(takes.values()) <= {*DTYPES, "any"}
    ):
        return f"'takes' maps inputs to {', '.join(DTYPES)} or any"
    gives = [d.gives] if isinstance(d.gives, str) else d.gives
    if not isinstance(gives, list | tuple) or not set(gives) <= set(DTYPES) or len(gives) not in (1, len(rule.outs)):
        return f"'gives' is {', '.join(DTYPES)}, or one of them for each result"
    if d.flops not in ("", *get_args(Flops)):
        return f"'flops' is one of {', '.join(get_args(Flops))}"
    return _weight_problem(d) or _keyword_problem(d)


def _weight_problem(d: Declared) -> str:
    for name, init in d.weights.items() if isinstance(d.weights, dict) else ():
        kind, numbers = _init(init)
        if kind not in INIT_KINDS or len(numbers) != len(INIT_KINDS[kind]):
            return f"the initialiser of '{name}' is one of {', '.join(INIT_KINDS)}, with its numbers"
        if not all(isinstance(v, int | float) for v in numbers):
            return f"the initialiser of '{name}' has numbers, not {numbers}"
    return ""


def _keyword_problem(d: Declared) -> str:
    for name, (kind, default) in d.keywords.items():
        if kind not in KINDS:
            return f"the parameter '{name}' needs a type: {', '.join(KINDS)}"
        allowed = (int, float) if kind == "float" else KINDS[kind][1]
        if default and (not isinstance(default[0], allowed) or (kind != "bool" and isinstance(default[0], bool))):
            return f"the default of '{name}' is not a {kind}"
    return ""


def _init(raw: Any) -> tuple[str, list[Any]]:
    """`ones`, or {normal: 0.02}, or {uniform: [0, 1]}."""
    if isinstance(raw, dict) and len(raw) == 1:
        ((kind, numbers),) = raw.items()
        return str(kind), list(numbers) if isinstance(numbers, list | tuple) else [numbers]
    return str(raw), []


def _weights(d: Declared) -> list[Weight]:
    if not isinstance(d.weights, dict):
        return [Weight(name) for name in d.weights]
    made = []
    for name, raw in d.weights.items():
        kind, numbers = _init(raw)
        made.append(Weight(name, (kind, tuple((n, float(v)) for n, v in zip(INIT_KINDS[kind], numbers, strict=True)))))
    return made


def mixed_letters(row: Op) -> set[str]:
    """Letters along which an op of the user's mixes: fixed ones, summed ones, and those that results make."""
    rule = row.parsed
    ins, outs = set(_letters(rule.ins)), set(_letters(rule.outs))
    fixed = {t.letter for p in (*rule.ins, *rule.outs) for t in p if t.fixed}
    return fixed | (ins ^ outs)
