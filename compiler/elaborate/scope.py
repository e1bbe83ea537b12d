"""What a name means at a place in the spec: values, dims, block arguments, attributes and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from specc.compiler.elaborate.unit import Locate, Model, Unit, Value
from specc.compiler.ops.row import Op
from specc.compiler.types import Dim, TensorType, derived
from specc.spec.errors import MAX_MISTAKES, Diagnostic, Mark, SpecError, did_you_mean, in_order
from specc.spec.expr import Expr, ExprError, evaluate, parse
from specc.spec.model import Block, ModelSpec, Step

Path = tuple[str | int, ...]
MAX_WORK = 50_000
LIST_FUNCTIONS: Mapping[str, Callable[[list[int]], int]] = {
    "first": lambda x: x[0], "last": lambda x: x[-1], "len": len,
}  # fmt: skip


class StepFailed(Exception):
    """A step has mistakes; they are recorded, and what follows from them is left out."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__("\n".join(map(str, diagnostics)))
        self.diagnostics = diagnostics


class Poisoned(Exception):
    """A step uses the result of one that failed: nothing more to say."""


def gather(parts: Iterable[Callable[[], None]]) -> None:
    """Do all parts of one step; then fail with the mistakes of all."""
    found: list[Diagnostic] = []
    is_poisoned = False
    for part in parts:
        try:
            part()
        except Poisoned:
            is_poisoned = True
        except StepFailed as e:
            found += e.diagnostics
    if found:
        raise StepFailed(*found)
    if is_poisoned:
        raise Poisoned


@dataclass
class Context:
    """What is shared by all places of one model."""

    spec: ModelSpec
    model: Model
    ops: Mapping[str, Op]
    masks: Mapping[str, str]
    library: Callable[[str], tuple[Block, Locate] | None]
    library_names: Callable[[], list[str]]
    attributes: dict[str, list[tuple[str, TensorType]]] = field(default_factory=dict)
    made_masks: dict[str, Value] = field(default_factory=dict)
    model_dims: dict[str, Dim] = field(default_factory=dict)
    lists: dict[str, list[int]] = field(default_factory=dict)  # sizes of levels: {widths: [128, 256]}
    unknown: set[str] = field(default_factory=set)  # dims and attributes whose declaration has a mistake
    unknown_attributes: set[str] = field(default_factory=set)  # the same by role
    shared: set[str] = field(default_factory=set)  # parameters that a step takes from another one: `tie:`
    diagnostics: list[Diagnostic] = field(default_factory=list)
    instead: Mapping[str, Instead] = field(default_factory=dict)  # what a stage may put in place of steps, by op
    work: int = 0  # steps, block calls and parameters so far

    def count(self, n: int, mark: Mark | None) -> None:
        """Stop at a model that grows without end, such as blocks that call blocks twice, many deep."""
        self.work += n
        if len(self.diagnostics) > MAX_MISTAKES:
            raise SpecError(*in_order(self.diagnostics))
        if self.work > MAX_WORK:
            message = f"the model has more than {MAX_WORK} steps, block calls and parameters"
            raise SpecError(*in_order([*self.diagnostics, Diagnostic("S005", message, mark)]))


# The results that stand for a step's, or None for the step's own.
Instead = Callable[["Frame", Step, Path], "list[Value] | None"]


@dataclass(frozen=True)
class Tie:
    """Parameters below the path `own` are those below `source`, of the whole model or of the repeated block alone."""

    own: str
    source: str
    is_whole: bool
    mark: Mark | None  # of the call


@dataclass
class Frame:
    """The scope of one block (or of the model itself) while its steps are elaborated."""

    ctx: Context
    locate: Locate
    at: Path
    own_unit: Unit | None = None  # None: the open segment of the model
    prefix: str = ""  # of parameter paths
    tie: Tie | None = None  # in a call that has the parameters of an earlier one
    values: dict[str, Value | None] = field(default_factory=dict)
    dims: dict[str, Dim] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    local_blocks: bool = True  # whether `model.blocks` are seen from here (not from the library)
    stack: tuple[str, ...] = ()
    called_at: Mark | None = None  # in a block of the library: the line of the user's that calls it
    unknown: set[str] = field(default_factory=set)  # names whose declaration has a mistake

    @property
    def unit(self) -> Unit:
        return self.own_unit or self.ctx.model.segment

    def emit(
        self, op: str, ins: list[str | None], types: tuple[TensorType, ...], attrs: Mapping[str, Any], path: str,
        mark: Mark | None = None,
    ) -> list[Value]:  # fmt: skip
        names = self.unit.emit(op, ins, types, attrs, path, str(mark or ""))
        if self.own_unit is None:
            self.ctx.model.types |= zip(names, types, strict=True)
        return [Value(n, t, op, mark) for n, t in zip(names, types, strict=True)]

    def fail(
        self, code: str, message: str, at: Path, hint: str = "", related: tuple[tuple[Mark, str], ...] = ()
    ) -> NoReturn:
        mark = self.locate(at)
        if self.called_at and mark:  # the user's own line is what can be changed
            mark, related = self.called_at, (*related, (mark, "here in the library"))
        raise StepFailed(Diagnostic(code, message, mark, hint, related))

    def value(self, name: str, at: Path) -> Value:
        """The value of a name; attributes of the model are seen everywhere."""
        if name in self.values:
            found = self.values[name]
            if found is None:
                raise Poisoned
            return found
        for declared in self.ctx.attributes.values():
            for own, type_ in declared:
                if own == name:
                    return self.captured(own, type_)
        if name in self.unknown:
            raise Poisoned
        if name == "_":
            self.fail("S105", "there is no previous output here; say 'from:'", at)
        known = [*self.values, *(n for d in self.ctx.attributes.values() for n, _ in d)]
        self.fail("S105", f"no value is called '{name}' here", at, did_you_mean(name, known))

    def captured(self, name: str, type_: TensorType) -> Value:
        """A value of the whole model, as seen in this frame's unit."""
        if self.own_unit is None:
            return Value(name, type_, "input")
        return Value(self.own_unit.capture(name, type_), type_, "input")

    def attribute(self, name: str, dims: tuple[Dim, ...]) -> Value | None:
        """The attribute of the tokens along one of the dims, or None if the model declares none."""
        if name in self.ctx.unknown_attributes:
            raise Poisoned
        for own, type_ in self.ctx.attributes.get(name, []):
            if type_.dims[-1] in dims:
                return self.captured(own, type_)
        return None

    def numbers(self) -> dict[str, int | float | bool]:
        """Names that stand for numbers: sized dims and numeric block arguments."""
        sizes: dict[str, int | float | bool] = {n: d.size for n, d in self.dims.items() if d.size is not None}
        return sizes | {n: v for n, v in self.args.items() if isinstance(v, bool | int | float)}

    def expr(self, text: Any, at: Path) -> Expr:
        if isinstance(text, Expr):
            return text
        if not isinstance(text, str | int | float):
            self.fail("S103", f"an expression is a text or a number, got {text!r}", at)
        try:
            return self.counted(parse(text))
        except ExprError as e:
            self.fail("S104", str(e), at)

    def counted(self, e: Expr) -> Expr:
        """`first(widths)`, `last(widths)` and `len(widths)` as numbers."""
        if e.op == "call" and e.value in LIST_FUNCTIONS and len(e.args) == 1 and e.args[0].value in self.ctx.lists:
            return Expr("num", LIST_FUNCTIONS[str(e.value)](self.ctx.lists[str(e.args[0].value)]))
        return Expr(e.op, e.value, tuple(self.counted(a) for a in e.args)) if e.args else e

    def entries(self, raw: Any, at: Path) -> list[Any]:
        """A list of `dims:` by its name, or one written here."""
        if isinstance(raw, list):
            return raw
        if not isinstance(raw, str) or raw not in self.ctx.lists:
            hint = did_you_mean(str(raw), self.ctx.lists)
            self.fail("S103", f"expected a list or the name of one under 'dims:', got {raw!r}", at, hint)
        return list(self.ctx.lists[raw])

    def number(self, raw: Any, at: Path) -> int | float | bool:
        e = self.expr(raw, at)
        try:
            return evaluate(e, self.numbers())
        except ExprError as error:
            unknown = [n for n in e.names() if n not in self.numbers()]
            self.stop_at_unknown(unknown)
            hint = did_you_mean(unknown[0], self.numbers()) if unknown else ""
            self.fail("S111" if unknown else "S104", str(error), at, hint)

    def stop_at_unknown(self, names: list[str]) -> None:
        """A name whose own declaration has a mistake is not reported again."""
        if self.unknown & set(names):
            raise Poisoned

    def dim(self, raw: Any, at: Path) -> Dim:
        if isinstance(raw, Dim):
            return raw
        if isinstance(raw, bool) or not isinstance(raw, str | int):
            self.fail("S103", f"a dim is a name, a whole number or an expression over dims, got {raw!r}", at)
        e = self.expr(raw, at)
        names = self.dims | {
            n: Dim(str(v), v) for n, v in self.args.items() if isinstance(v, int) and not isinstance(v, bool)
        }
        unknown = [n for n in e.names() if n not in names]
        self.stop_at_unknown(unknown)
        if unknown:
            self.fail("S111", f"no dim is called '{unknown[0]}' here", at, did_you_mean(unknown[0], names))
        try:
            dim = derived(e, names)
        except (ValueError, ExprError) as error:
            self.fail("S104", str(error), at)
        if dim.size is not None and not 0 < dim.size < 1 << 48:
            self.fail("S103", f"a dim is at least 1 and below 2^48, got {dim.size}", at)
        return dim

    def dim_list(self, raw: Any, at: Path) -> tuple[Dim, ...]:
        """`D`, `[H, E]` or `[H E]`."""
        if isinstance(raw, tuple) and all(isinstance(d, Dim) for d in raw):
            return raw
        items = raw if isinstance(raw, list | tuple) else [raw]
        out: list[Dim] = []
        for item in items:
            words = item.split() if isinstance(item, str) and _is_words(item) else [item]
            out += [self.dim(w, at) for w in words]
        return tuple(out)


def _is_words(text: str) -> bool:
    """`H E` is two dims; `2 * H` is one."""
    return all(w.isidentifier() or w.isdigit() for w in text.split())
