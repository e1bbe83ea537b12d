"""A graph over rows as lines of torch: sizes of rows are names, so that the lines hold for any number of rows."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

DROPPED = {"device", "pin_memory", "layout"}


def size_text(n: int, axes: Mapping[int, int]) -> str:
    """A size as a product of the sizes of axes and a number."""
    names = []
    for size, axis in axes.items():
        while n and n % size == 0:
            n //= size
            names.append(f"s{axis}")
    return " * ".join([*names, *([str(n)] if n != 1 or not names else [])])


def shape_text(shape: Sequence[int], axes: Mapping[int, int]) -> str:
    return "(" + "".join(f"{size_text(n, axes)}, " for n in shape).rstrip(" " if len(shape) == 1 else ", ") + ")"


def torch_lines(
    nodes: Iterable[fx.Node], names: dict[fx.Node, str], axes: Mapping[int, int], first: str, prefix: str = "v"
) -> list[str]:
    """One line a node; `names` are those of operands, and get those of results. `first` is a tensor on the device."""
    lines = []
    for node in nodes:
        names[node] = f"{prefix}{len(names)}"
        if node.target is operator.getitem:
            lines.append(f"{names[node]} = {names[node.args[0]]}[{node.args[1]}]")  # type: ignore[index]
            continue
        args = [_text(a, names, axes) for a in node.args]
        args += [f"{k}={_text(v, names, axes)}" for k, v in node.kwargs.items() if k not in DROPPED and v is not None]
        args += [f"device={first}.device"] if "device" in node.kwargs else []
        lines.append(f"{names[node]} = {node.target}({', '.join(args)})")
    return lines


def _text(a: Any, names: Mapping[fx.Node, str], axes: Mapping[int, int]) -> str:
    if isinstance(a, fx.Node):
        return names[a]
    if isinstance(a, list | tuple):
        return "[" + ", ".join(_text(x, names, axes) for x in a) + "]"
    if isinstance(a, int) and not isinstance(a, bool) and a > 1:
        return size_text(a, axes)
    if isinstance(a, float) and a in (float("inf"), float("-inf")):
        return f'float("{a}")'
    # A text is an option of an op, from torch itself.
    assert a is None or isinstance(a, bool | int | float | str | torch.dtype | torch.memory_format), (
        f"{a!r} in a region"
    )
    return repr(a)


def axis_lines(ins: Mapping[str, Sequence[int]], axes: Mapping[int, int]) -> list[str]:
    """The sizes of axes, read off operands."""
    lines = []
    for size, axis in axes.items():
        name, dim = next((name, list(shape).index(size)) for name, shape in ins.items() if size in shape)
        lines.append(f"s{axis} = {name}.shape[{dim}]")
    return lines
