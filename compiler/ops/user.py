"""Ops of the user's own: functions marked `@specc.op(rule)` in the Python files that a spec names under `ops:`.

The files are read as text and their rows taken from the syntax tree, so that checking a spec runs no code of it. A
build imports them (compiler/lower/user.py), and only when it is told that they are trusted."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from specc.compiler.ops.declare import Declared, declared_row, rule_problem
from specc.compiler.ops.row import Op
from specc.spec.errors import Diagnostic, Mark, SpecError
from specc.spec.spec import Spec

MAX_BYTES = 1 << 18
DECORATORS = ("specc.op", "op")
Function = TypeVar("Function", bound=Callable[..., Any])


def op(
    rule: str,
    *,
    weights: Sequence[str] | Mapping[str, Any] = (),
    takes: Mapping[str, str] | None = None,
    gives: str | Sequence[str] = "float",
    flops: str = "",
) -> Callable[[Function], Function]:
    """Mark a function as an op of specs. It is the rule that specs are checked with: `b s d, d -> b s d`.

    The function's positional parameters are the rule's operands in order, of which the last ones may be `weights`
    (names, or names with their initialiser: {"scale": "ones"}). Parameters behind `*` are what a step may set, and so
    are letters that no input has. `takes` and `gives` name numbers that are not float. A letter is independent along
    its dim; `!s` mixes along it. `flops` is contract, pointwise or none; by default the rule says.
    All of this is written in literals: specc reads it from the file's text."""
    problem = rule_problem(rule)
    if problem:
        raise ValueError(f"the rule '{rule}': {problem}")
    return lambda function: function


@dataclass(frozen=True)
class OpFile:
    """A file of ops: its name in the spec, its exact bytes, and the rows that its text declares."""

    name: str
    path: Path
    source: bytes
    rows: dict[str, Op]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source).hexdigest()


def user_ops(spec: Spec, ops: Iterable[str], library: Iterable[str]) -> dict[str, Op]:
    """The rows of all ops that a spec brings; none of their code is run. `ops` and `library` are names taken."""
    taken = {**dict.fromkeys(ops, "an op of specc"), **dict.fromkeys(library, "a block of the library")}
    taken["repeat"] = "a word of the language"
    for model in [*spec.models.values(), *([spec.model] if spec.model else [])]:
        taken |= dict.fromkeys(model.blocks, "a block of the spec")
    rows: dict[str, Op] = {}
    for i, file in enumerate(op_files(spec)):
        for name, row in file.rows.items():
            if name in taken:
                message = f"'{file.name}' declares an op '{name}', which is {taken[name]}"
                raise SpecError(Diagnostic("S402", message, spec.mark(("ops", i)), "give the function another name"))
            taken[name] = f"an op of '{file.name}'"
            rows[name] = row
    return rows


def op_files(spec: Spec) -> list[OpFile]:
    """The files under `ops:`, read and parsed."""
    return [_read(name, spec.folder, spec.mark(("ops", i))) for i, name in enumerate(spec.ops)]


def _read(name: str, folder: Path, mark: Mark | None) -> OpFile:
    shown = ascii(name[:100])
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            raise SpecError(Diagnostic("S401", f"{shown} lies outside the folder of the spec", mark))
        if path.suffix != ".py" or not path.is_file():
            raise SpecError(Diagnostic("S401", f"there is no Python file {shown} beside the spec", mark))
        with path.open("rb") as file:
            source = file.read(MAX_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as e:  # no right to read, a NUL in the name, a circle of links
        raise SpecError(Diagnostic("S401", f"cannot read {shown}: {e}", mark)) from None
    if len(source) > MAX_BYTES:
        raise SpecError(Diagnostic("S401", f"{shown} has more than {MAX_BYTES} bytes", mark))
    return OpFile(name, path, source, _rows(name, source, mark))


def _rows(name: str, source: bytes, mark: Mark | None) -> dict[str, Op]:
    try:
        tree = ast.parse(source, filename=name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        line = f", line {e.lineno}" if isinstance(e, SyntaxError) and e.lineno else ""
        raise SpecError(Diagnostic("S401", f"'{name}' is not Python{line}", mark)) from None
    lines = source.decode("utf-8", errors="replace").splitlines()
    rows: dict[str, Op] = {}
    for node in tree.body:
        call = _decorator(node)
        if call is None:
            continue
        assert isinstance(node, ast.FunctionDef)
        place = Mark(name, node.lineno, node.col_offset + 1, 3, lines[node.lineno - 1])
        declared = _declared(node, call, place)
        row = declared_row(declared, name)
        if isinstance(row, str):
            raise SpecError(Diagnostic("S402", f"`{node.name}`: {row}", place))
        rows[node.name] = row
    if not rows:
        raise SpecError(Diagnostic("S402", f"'{name}' has no function marked '@specc.op(...)'", mark))
    return rows


def _decorator(node: ast.stmt) -> ast.Call | None:
    """The call of `@specc.op(...)` above a function."""
    for d in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
        if isinstance(d, ast.Call) and ast.unparse(d.func) in DECORATORS:
            return d
    return None


def _declared(node: ast.FunctionDef, call: ast.Call, place: Mark) -> Declared:
    """What the text of a function and of its decorator says."""

    def fail(message: str) -> SpecError:
        return SpecError(Diagnostic("S402", f"`{node.name}`: {message}", place))

    if len(node.decorator_list) > 1:
        raise fail("no other decorator may stand beside '@specc.op'")
    given = {str(k.arg): _literal(k.value, fail) for k in call.keywords}
    if len(call.args) == 1 and "rule" not in given:
        given["rule"] = _literal(call.args[0], fail)
    strange = set(given) - {"rule", "weights", "takes", "gives", "flops"}
    if len(call.args) > 1 or strange or not isinstance(given.get("rule"), str):
        raise fail(f"'@specc.op' takes a rule, weights, takes, gives and flops{_named(strange)}")
    a = node.args
    if a.vararg or a.kwarg or a.defaults:
        raise fail("operands are plain parameters; what a step may set stands behind '*' with a type and a default")
    keywords: dict[str, tuple[str, tuple[Any, ...]]] = {}
    for p, default in zip(a.kwonlyargs, a.kw_defaults, strict=True):
        kind = ast.unparse(p.annotation) if p.annotation else ""
        keywords[p.arg] = (kind, () if default is None else (_literal(default, fail),))
    operands = tuple(p.arg for p in (*a.posonlyargs, *a.args))
    doc = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
    return Declared(node.name, doc, operands, keywords, **given)


def _named(strange: set[str]) -> str:
    return f", not {', '.join(sorted(strange))}" if strange else ""


def _literal(node: ast.expr, fail: Callable[[str], SpecError]) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise fail(
            f"'{ast.unparse(node)}' is not a literal; the file is read, not run, when a spec is checked"
        ) from None
