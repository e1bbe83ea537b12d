"""Graphs that take their operands in a list and empty it, so that an operand nobody else holds goes at its last use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, fx
from torch.fx.graph import CodeGen

Function = Callable[[list[Tensor]], Sequence[Tensor]]


class _Boxed(CodeGen):
    """Code of `forward(self, box)`."""

    def gen_fn_def(self, free_vars: list[str], *_: Any, **__: Any) -> str:
        names = [v.split(":")[0].split("=")[0].strip() for v in free_vars if v != "self"]  # without types
        unpack = f"\n    {', '.join(names)}, = box\n    box.clear()" if names else ""
        return f"def {self._func_name}(self, box):{unpack}"


def boxed(gm: fx.GraphModule) -> Function:
    """The graph as it is; it is taken over."""
    gm.graph.set_codegen(_Boxed())
    gm.recompile()
    return gm
