"""The lines of a kernel: each value of a graph over rows as a function of the row and of the place along it.

Slices, joins and pairs along a row cost nothing: their operands are read at another place."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from specc.compiler.kernels.formulas import CASTS, FILLS, FORMULAS, POWERS, VIEWS, aten, cast, literal, power
from specc.compiler.kernels.spread import Axes, Layout, NotRowWise, Spread, args_of, reduced_dims


@dataclass(frozen=True)
class Place:
    """A place along the row: `base * step + start`."""

    base: str = "cols"
    step: int = 1
    start: int = 0

    def __str__(self) -> str:
        text = self.base if self.step == 1 else f"{self.base} * {self.step}"
        return text + (f" + {self.start}" if self.start > 0 else f" - {-self.start}" if self.start else "")

    def moved(self, step: int, start: int) -> Place:
        """That place times a step plus a start."""
        return Place(self.base, self.step * step, self.start * step + start)

    def halved(self, k: int) -> Place:
        """That place divided by k, rounded down."""
        return Place(f"({self} // {k})") if str(self).isidentifier() else Place(f"(({self}) // {k})")


HERE = Place()
ONE = "tl.zeros([1, 1], dtype=tl.int64)"  # the place of a number that is alone, as a block


@dataclass(frozen=True)
class Value:
    """An expression in the kernel; `held` are the axes along which it varies, and it may vary along the row."""

    text: str
    held: Axes
    wide: bool


Rule = Callable[["Lines", fx.Node, Place], Value]


@dataclass
class Lines:
    """The lines before the loop over rows, in it and behind it; `block` is how many columns a program holds."""

    spread: Spread
    block: int
    rules: Mapping[Any, Rule]
    before: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)
    behind: list[str] = field(default_factory=list)
    loaded: dict[fx.Node, None] = field(default_factory=dict)
    reads_pairs: bool = False
    sizes: set[int] = field(default_factory=set)  # groups whose sizes the lines use
    known: dict[tuple[fx.Node, Place], Value] = field(default_factory=dict)
    written: dict[str, Value] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def store(self, node: fx.Node, name: str) -> None:
        """Write a value whole."""
        at, value = self.spread.layouts[node], self.value(node, HERE)
        place, mask = self._place(at, HERE) if at.axes or at.width > 1 else (ONE, "")
        self.inside.append(f"tl.store({name}_ptr + {place}, {value.text}{mask})")

    def add_sums(self, node: fx.Node, name: str) -> None:
        """Sum a value over the rows of the program, and write the sums."""
        at, (x, *_) = self.spread.layouts[node], node.all_input_nodes
        last = x.meta["val"].ndim - 1
        value = self.value(x, HERE)
        if self.spread.layouts[x].width > 1 and last in reduced_dims(node):
            value = Value(self.total(x, value), value.held, False)
        width = "BLOCK_D" if value.wide else "1"
        self.before.append(f"{name} = tl.zeros([BLOCK_R, {width}], dtype=tl.float32)")
        self.inside.append(f"{name} += tl.where(live, {value.text}, 0.0)")
        place = f"program * {at.width} + {HERE}" if at.width > 1 else f"program + {ONE}"
        mask = f", mask={self._inside(at.width)}" if at.width > 1 and self._inside(at.width) else ""
        self.behind.append(f"tl.store({name}_ptr + {place}, tl.sum({name}, axis=0, keep_dims=True){mask})")

    def value(self, node: fx.Node, col: Place) -> Value:
        """The value of a node at a place along the row; one number a row is the same everywhere."""
        col = HERE if node in self.spread.layouts and self.spread.layouts[node].width == 1 else col
        if (node, col) not in self.known:
            self.known[node, col] = self._made(node, col)
        return self.known[node, col]

    def _made(self, node: fx.Node, col: Place) -> Value:
        if node.op == "placeholder":
            return self._load(node, col)
        if node.target in FILLS:
            place, constant = FILLS[node.target]
            return Value(literal(constant if place is None else args_of(node)[place]), frozenset(), False)
        if node.target in VIEWS:
            return self._view(node, col)
        rule = self.rules.get(rule_key(node))
        if rule is not None:
            return rule(self, node, col)
        return self._pointwise(node, col)

    def _load(self, node: fx.Node, col: Place) -> Value:
        at, val = self.spread.layouts[node], node.meta["val"]
        self.loaded[node] = None
        self.reads_pairs |= at.width > 1 and (col.step != 1 or col.base != HERE.base)
        place, mask = self._place(at, col)
        text = f"tl.load({node.name}_ptr + {place}{mask}{', other=0' if mask else ''})"
        held, wide = frozenset(at.axes), at.width > 1
        return self.line(node.name, f"{text}.to(tl.float32)" if val.is_floating_point() else text, held, wide)

    def _view(self, node: fx.Node, col: Place) -> Value:
        x = node.all_input_nodes[0]
        old, new = self.spread.layouts[x], self.spread.layouts[node]
        spreads = node.target is aten.expand.default
        if not (set(old.axes) <= set(new.axes) if spreads else old.axes == new.axes) or old.width not in (new.width, 1):
            raise NotRowWise("it moves numbers between rows")
        return self.value(x, col)

    def _pointwise(self, node: fx.Node, col: Place) -> Value:
        """An op of a formula; each operand is as wide as the result, or is one number a row."""
        operands = [self._operand(a, col, node) for a in node.args]
        texts = [o.text for o in operands]
        if node.target in CASTS:
            src, dst = node.all_input_nodes[0].meta["val"].dtype, node.meta["val"].dtype
            text = cast(texts[0], src, dst)
        elif node.target is aten.pow.Tensor_Scalar and float(args_of(node)[1]) in POWERS:
            text = POWERS[float(args_of(node)[1])].format(texts[0])
        elif node.target is aten.pow.Scalar:
            text = power(float(args_of(node)[0]))(texts[1])
        elif node.target in FORMULAS and node.kwargs.get("alpha", 1) == 1:
            text = FORMULAS[node.target].format(*texts)
        else:
            raise NotRowWise(f"{node.target} is no op of rows")
        held = frozenset[int]().union(*(o.held for o in operands))
        return self.line("v", text, held, any(o.wide for o in operands))

    def _operand(self, a: Any, col: Place, user: fx.Node) -> Value:
        if not isinstance(a, fx.Node):
            return Value(literal(a) if isinstance(a, int | float) else "", frozenset(), False)
        if self.spread.layouts[a].width not in (self.spread.layouts[user].width, 1):
            raise NotRowWise("an operand is neither as wide as a row nor one number")
        return self.value(a, col)

    def total(self, x: fx.Node, value: Value) -> str:
        """The sum along a row."""
        width = self.spread.layouts[x].width
        if not value.wide:
            return f"{value.text} * {float(width)}"
        return f"tl.sum({self.padded(value.text, width, '0.0')}, axis=1, keep_dims=True)"

    def padded(self, text: str, width: int, fill: str) -> str:
        inside = self._inside(width)
        return f"tl.where({inside}, {text}, {fill})" if inside else text

    def line(self, name: str, text: str, held: Axes, wide: bool) -> Value:
        """A variable of the kernel; what no row of the loop changes is computed before it."""
        if text.isidentifier():
            return Value(text, held, wide)
        if text in self.written:
            return self.written[text]
        n = self.names[name] = self.names.get(name, -1) + 1
        own = f"{name}{n}" if name == "v" else f"{name}_{n}" if n else name
        (self.before if held <= self._fixed() else self.inside).append(f"{own} = {text}")
        self.written[text] = Value(own, held, wide)
        return self.written[text]

    def _fixed(self) -> Axes:
        """Axes that a program does not go along."""
        return frozenset(a for g in self.spread.groups[: self.spread.outer] for a in g)

    def _inside(self, width: int, col: Place = HERE) -> str:
        """Whether a place lies in a row of this width; empty if all do."""
        if col == HERE:
            if width % self.block == 0:
                return ""
            line = f"in_{width} = cols < {width}"
            if line not in self.before:
                self.before.insert(0, line)
            return f"in_{width}"
        last = (self.block - 1) * col.step + col.start if col.base == HERE.base else width
        tests = [f"({col} >= 0)"] if " - " in str(col) else []
        tests += [f"({col} < {width})"] if last >= width else []
        return " & ".join(tests)

    def _place(self, at: Layout, col: Place) -> tuple[str, str]:
        """The offset of a value, and the mask as an argument."""
        row = self._row(frozenset(at.axes))
        tests = [] if frozenset(at.axes) <= self._fixed() else ["live"]
        if at.width > 1:
            tests += [t for t in [self._inside(at.width, col)] if t]
            row = f"{row} * {at.width} + {col}" if row else str(col)
        return row or "0", f", mask={' & '.join(tests)}" if tests else ""

    def _row(self, held: Axes) -> str:
        """The number of a value's row, from the number of the kernel's."""
        groups = self.spread.groups
        held_groups = [i for i, g in enumerate(groups) if set(g) <= held]
        if not held_groups:
            return ""
        if len(held_groups) == len(groups):
            return "row"
        text = ""
        for i in held_groups:
            self.sizes |= {i} if text else set()
            text = f"({text}) * n{i} + {self._index(i)}" if text else self._index(i)
        return f"({text})" if " " in text else text

    def _index(self, i: int) -> str:
        """The place along a group of axes."""
        outer, n = self.spread.outer, len(self.spread.groups)
        of, last = ("outer", outer) if i < outer else ("row", n)
        inner = " * ".join(f"n{k}" for k in range(i + 1, last))
        text = f"{of} // ({inner})" if " " in inner else f"{of} // {inner}" if inner else of
        self.sizes |= {*range(i + 1, last), *([i] if i else [])}
        return f"{text} % n{i}" if i else text


def rule_key(node: fx.Node) -> Any:
    """What tells how a node is computed: its op, or that whose results it picks from."""
    return args_of(node)[0].target if node.target is operator.getitem else node.target
