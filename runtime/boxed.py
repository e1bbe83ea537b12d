"""Graphs that take their operands in a list and empty it, so that an operand nobody else holds goes at its last use."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.graph import CodeGen

Function = Callable[[list[Tensor]], Sequence[Tensor]]


class _Boxed(CodeGen):
    """Code of `forward(self, box)`; operands that nothing reads go at once."""

    def __init__(self, unread: Container[str]) -> None:
        super().__init__()
        self.unread = unread

    def gen_fn_def(self, free_vars: list[str], *_: Any, **__: Any) -> str:
        names = [v.split(":")[0].split("=")[0].strip() for v in free_vars if v != "self"]  # without types
        lines = [f"def {self._func_name}(self, box):"]
        if names:
            lines += [f"{', '.join(names)}, = box", "box.clear()", *(f"del {n}" for n in names if n in self.unread)]
        return "\n    ".join(lines)


def boxed(gm: fx.GraphModule) -> Function:
    """The graph as it is; it is taken over."""
    gm.graph.set_codegen(_Boxed({x.name for x in gm.graph.find_nodes(op="placeholder") if not x.users}))
    gm.recompile()
    return gm
