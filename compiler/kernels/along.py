"""What goes along a row: sums, slices, joins and pairs of its numbers, as rules for the lines of a kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from specc.compiler.kernels.formulas import aten, literal
from specc.compiler.kernels.lines import HERE, Lines, Place, Rule, Value
from specc.compiler.kernels.spread import NotRowWise, args_of, reduced_dims


def _reduced(lines: Lines, node: fx.Node, col: Place) -> Value:
    """A sum, mean or maximum along a row."""
    x = node.all_input_nodes[0]
    value, width = _whole_row(lines, node), lines.spread.layouts[x].width
    if node.target is aten.amax.default:
        padded = lines.padded(value.text, width, 'float("-inf")')
        text = f"tl.max({padded}, axis=1, keep_dims=True)"
    else:
        text = lines.total(x, value) + (f" / {float(width)}" if node.target is aten.mean.dim else "")
    return lines.line("v", text, value.held, False)


def _whole_row(lines: Lines, node: fx.Node) -> Value:
    """The operand of a reduction, which must be one along the row and nothing else."""
    x = node.all_input_nodes[0]
    shape, width = x.meta["val"].shape, lines.spread.layouts[x].width
    if width == 1 or [shape[d] for d in reduced_dims(node) if shape[d] != 1] != [width]:
        raise NotRowWise("it sums over rows")
    return lines.value(x, HERE)


def _var_mean(lines: Lines, node: fx.Node, col: Place) -> Value:
    """The variance or the mean of a row."""
    both, which = args_of(node)
    x = both.all_input_nodes[0]
    value, width = _whole_row(lines, both), lines.spread.layouts[x].width
    mean = lines.line("v", f"{lines.total(x, value)} / {float(width)}", value.held, False)
    if which == 1:
        return mean
    off = lines.line("v", f"{value.text} - {mean.text}", value.held, value.wide)
    square = lines.line("v", f"{off.text} * {off.text}", value.held, value.wide)
    freedom = float(width) - float(both.kwargs.get("correction", 1))
    return lines.line("v", f"{lines.total(x, square)} / {freedom}", value.held, False)


def _slice(lines: Lines, node: fx.Node, col: Place) -> Value:
    defaults: list[Any] = [None, 0, 0, None, 1]
    x, dim, start, _, step = [*args_of(node), *defaults[len(node.args) :]]
    _check_column(lines, x, dim)
    return lines.value(x, col.moved(step, _from_front(start, lines.spread.layouts[x].width)))


def _split(lines: Lines, node: fx.Node, col: Place) -> Value:
    parts, i = args_of(node)
    x, sizes, dim = [*args_of(parts), 0][:3]
    _check_column(lines, x, dim)
    return lines.value(x, col.moved(1, i * sizes if isinstance(sizes, int) else sum(sizes[:i])))


def _entry(lines: Lines, node: fx.Node, col: Place) -> Value:
    """One of the last dim's entries, by select or unbind: every k-th number of the row."""
    x, dim, *_ = [*args_of(node if node.target is aten.select.int else args_of(node)[0]), 0]
    i = args_of(node)[-1]
    shape = x.meta["val"].shape
    if dim not in (-1, len(shape) - 1) or lines.spread.layouts[node].width * shape[-1] != lines.spread.layouts[x].width:
        raise NotRowWise("it picks rows")
    return lines.value(x, col.moved(shape[-1], _from_front(i, shape[-1])))


def _stack(lines: Lines, node: fx.Node, col: Place) -> Value:
    parts, dim = [*args_of(node), 0][:2]
    if dim not in (-1, node.meta["val"].ndim - 1):
        raise NotRowWise("it stacks rows")
    k = len(parts)
    values = [lines.value(p, col.halved(k)) for p in parts]
    return _chosen(lines, values, [f"({col}) % {k} == {i}" for i in range(k - 1)])


def _cat(lines: Lines, node: fx.Node, col: Place) -> Value:
    parts, dim = [*args_of(node), 0][:2]
    values, ends, start = [], [], 0
    for p in parts:
        _check_column(lines, p, dim)
        values.append(lines.value(p, col.moved(1, -start)))
        start += p.meta["val"].shape[-1]
        ends.append(f"{col} < {start}")
    return _chosen(lines, values, ends[:-1])


def _slice_backward(lines: Lines, node: fx.Node, col: Place) -> Value:
    """The gradient of a slice: zeros beside it."""
    g, sizes, dim, start, end, step = args_of(node)
    _check_column(lines, node, dim)
    width = sizes[-1]
    first, last = _from_front(start, width), min(_from_front(end, width), width)
    local = col.moved(1, -first)
    value = lines.value(g, local if step == 1 else local.halved(step))
    tests = [f"({col} >= {first})"] if first else []
    tests += [f"({col} < {last})"] if last < width else []
    tests += [f"(({local}) % {step} == 0)"] if step != 1 else []
    return _chosen(lines, [value, Value("0.0", frozenset(), False)], [" & ".join(tests)] if tests else [])


def _select_backward(lines: Lines, node: fx.Node, col: Place) -> Value:
    g, sizes, dim, i = args_of(node)
    k = sizes[-1]
    if dim not in (-1, len(sizes) - 1):
        raise NotRowWise("it picks rows")
    value = lines.value(g, col.halved(k))
    return _chosen(lines, [value, Value("0.0", frozenset(), False)], [f"({col}) % {k} == {_from_front(i, k)}"])


def _arange(lines: Lines, node: fx.Node, col: Place) -> Value:
    if lines.spread.layouts[node].axes:
        raise NotRowWise("it counts rows")
    args = args_of(node)
    start, _, step = [0, args[0], 1] if len(args) == 1 else [*args, 1][:3]
    text = col.moved(step, start)
    kind = "tl.float32" if node.meta["val"].is_floating_point() else "tl.int64"
    return lines.line("v", f"({text}).to({kind})", frozenset(), True)


def _clamp(lines: Lines, node: fx.Node, col: Place) -> Value:
    x, low, high = [*args_of(node), None][:3]
    value = lines.value(x, col)
    text = value.text if low is None else f"tl.maximum({value.text}, {literal(low)})"
    text = text if high is None else f"tl.minimum({text}, {literal(high)})"
    return lines.line("v", text, value.held, value.wide)


def _chosen(lines: Lines, values: list[Value], tests: list[str]) -> Value:
    """The first value whose test holds, else the last."""
    text = values[-1].text if tests else values[0].text
    for test, value in reversed(list(zip(tests, values, strict=False))):
        text = f"tl.where({test}, {value.text}, {text})"
    held = frozenset[int]().union(*(v.held for v in values))
    return lines.line("v", text, held, True)


def _check_column(lines: Lines, x: fx.Node, dim: Any) -> None:
    """That a dim is the one along which a row lies."""
    shape = x.meta["val"].shape
    if dim not in (-1, len(shape) - 1) or lines.spread.layouts[x].width != shape[-1]:
        raise NotRowWise("it moves rows")


def _from_front(i: Any, n: int) -> int:
    return n if i is None else i + n if i < 0 else i


ALONG: Mapping[Any, Rule] = {
    aten.sum.dim_IntList: _reduced, aten.mean.dim: _reduced, aten.amax.default: _reduced,
    aten.var_mean.correction: _var_mean, aten.slice.Tensor: _slice, aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split, aten.unbind.int: _entry, aten.select.int: _entry,
    aten.stack.default: _stack, aten.cat.default: _cat, aten.slice_backward.default: _slice_backward,
    aten.select_backward.default: _select_backward, aten.arange.start_step: _arange, aten.arange.default: _arange,
    aten.arange.start: _arange,
}  # fmt: skip
RULES: Mapping[Any, Rule] = {**ALONG, aten.clamp.default: _clamp}
