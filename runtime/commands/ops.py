"""`specc ops`: the op table as a list, or one row in full."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from specc.compiler.ops import OPS, Op
from specc.compiler.ops.pointwise import FUNCTIONS, MEANINGS, OPERATORS
from specc.spec.errors import Diagnostic, SpecError, did_you_mean


def run(args: argparse.Namespace) -> int:
    rows = {name: op for name, op in sorted(OPS.items()) if not op.internal}
    if args.name is not None:
        if args.name not in rows:
            raise SpecError(Diagnostic("S101", f"no op '{args.name}'", hint=did_you_mean(args.name, rows)))
        rows = {args.name: rows[args.name]}
    if args.markdown:
        print(as_markdown(rows), end="")
    elif args.json:
        print(json.dumps({name: as_data(op) for name, op in rows.items()}, indent=1))
    elif args.name is not None:
        print(describe(rows[args.name]))
    else:
        width = max(map(len, rows))
        print("\n".join(f"{name:{width}}  {op.doc}" for name, op in rows.items()))
    return 0


def describe(op: Op) -> str:
    """A row as a page: rule, operands, weights, arguments."""
    lines = [f"{op.name}: {op.doc}", ""]
    if op.rule.strip() != "->":
        lines.append(f"  rule     {op.rule}")
    lines.append(f"  inputs   {', '.join(op.inputs)}")
    if op.weights:
        lines.append(f"  weights  {', '.join(w.name + (f' (when {w.when})' if w.when else '') for w in op.weights)}")
    if op.args:
        width = max(map(len, op.args))
        lines += ["", "  arguments"]
        lines += [f"    {name:{width}}  {_kind(data)}  {data['doc']}".rstrip() for name, data in _args(op).items()]
    if op.name == "expr":
        lines += ["", f"  operators  {OPERATORS}", "  functions"]
        lines += [f"    {name}  {meaning}".rstrip() for name, meaning in _functions().items()]
    return "\n".join(lines)


def _functions() -> dict[str, str]:
    """The functions of formulas, and what they are where the name does not say it."""
    return {name: MEANINGS.get(name, "") for name in sorted(FUNCTIONS)}


MARKDOWN = """\
# Ops

Made by `specc ops --markdown`; `specc ops NAME` shows one of them. In a rule `x` is one dim, `x*` any number of
dims, `...` the batch dims that all operands share, `!x` a dim that may not be split. Weights are the operands behind
the inputs. An op without a rule says its result's shape itself.
"""


def as_markdown(rows: Mapping[str, Op]) -> str:
    """The table as the page docs/ops.md."""
    lines = [MARKDOWN]
    for name, op in rows.items():
        lines += [f"## {name}", op.doc, ""]
        if op.rule.strip() != "->":
            lines.append(f"- rule: `{op.rule}`")
        lines.append(f"- inputs: {', '.join(f'`{i}`' for i in op.inputs) or 'none'}")
        if op.weights:
            lines.append(f"- weights: {', '.join(f'`{w.name}`' if w.name else 'itself' for w in op.weights)}")
        for arg, data in _args(op).items():
            lines.append(f"- `{arg}`: {_kind(data)}{': ' if data['doc'] else ''}{data['doc']}")
        if name == "expr":
            lines += [f"- operators: `{OPERATORS}`", "- functions:"]
            lines += [f"    - `{f}`{': ' if meaning else ''}{meaning}" for f, meaning in _functions().items()]
        lines.append("")
    return "\n".join(lines)


def as_data(op: Op) -> dict[str, Any]:
    """A row as JSON."""
    return {
        "doc": op.doc,
        "rule": op.rule,
        "inputs": list(op.inputs),
        "weights": [w.name for w in op.weights],
        "args": _args(op),
    }


def _args(op: Op) -> dict[str, dict[str, Any]]:
    rows = {}
    for name, arg in op.args.items():
        row: dict[str, Any] = {"kind": arg.kind, "required": arg.is_required, "doc": arg.doc}
        if not arg.is_required:
            row["default"] = arg.default
        if arg.choices:
            row["choices"] = list(arg.choices)
        if arg.within:
            row["within"] = arg.within
        rows[name] = row
    return rows


def _kind(row: dict[str, Any]) -> str:
    kind = "|".join(row["choices"]) if "choices" in row else row["kind"]
    kind += f" in {row['within']}" if "within" in row else ""
    return f"{kind}, required" if row["required"] else f"{kind} = {json.dumps(row['default'])}"
