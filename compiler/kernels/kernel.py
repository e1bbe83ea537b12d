"""From a graph of simple ops over rows to the text of one Triton kernel."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from specc.compiler.kernels.along import ALONG, RULES
from specc.compiler.kernels.lines import Lines, rule_key
from specc.compiler.kernels.spread import Layout, NotRowWise, Spread, results, spread

MAX_ROW = 16384  # numbers of a row that a program can hold
MAX_BLOCK = 1024  # columns of a program where nothing goes along a row
POINTERS = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32", torch.bool: "*i1",
}  # fmt: skip


@dataclass(frozen=True)
class Output:
    """A tensor that a kernel writes: a node's value, or its sums over the rows of each program."""

    node: fx.Node
    name: str
    dtype: torch.dtype
    layout: Layout
    is_partial: bool


@dataclass(frozen=True)
class Kernel:
    """A kernel and how it is called. `numbers` are its integer operands behind the tensors."""

    name: str
    source: str
    ins: tuple[fx.Node, ...]
    outs: tuple[Output, ...]
    numbers: tuple[str, ...]
    spread: Spread
    block: int
    width: int
    is_along_rows: bool  # it reads or sums along a row, so that a program holds whole rows
    reads_pairs: bool

    def signature(self) -> dict[str, str]:
        """Triton's types of the operands."""
        tensors = {f"{n.name}_ptr": POINTERS[n.meta["val"].dtype] for n in self.ins}
        tensors |= {f"{o.name}_ptr": POINTERS[o.dtype] for o in self.outs}
        return tensors | dict.fromkeys(self.numbers, "i32")

    def narrow(self) -> str:
        """Why loads may have fewer than 128 bits, or nothing."""
        rows = [n.meta["val"] for n in self.ins if self.spread.layouts[n].width > 1]
        if not rows:
            return "it reads one number a row"
        if all(x.itemsize * self.spread.layouts[n].width % 16 for n in self.ins for x in [n.meta["val"]]):
            return "no row is a multiple of 16 bytes"
        return "it reads pairs of a row apart" if self.reads_pairs else ""


def kernel_of(gm: fx.GraphModule, axes: Mapping[int, int], name: str, outs: Sequence[str]) -> Kernel:
    """The kernel of a graph. Its placeholders have the names that the kernel is to use, `outs` are those of outputs.

    Raises NotRowWise for a graph that is no function of rows."""
    found = spread(gm, axes)
    named = dict(zip(results(gm), outs, strict=True))
    width = max((at.width for n, at in found.layouts.items() if n in found.held), default=1)
    is_along = any(goes_along(n, found) for n in found.held if n.op == "call_function")
    if is_along and width > MAX_ROW:
        raise NotRowWise(f"a row of {width} numbers is more than a program holds")
    lines = Lines(found, min(1 << (width - 1).bit_length(), MAX_ROW if is_along else MAX_BLOCK), RULES)
    outputs = tuple(_output(found, node, named, k) for k, node in enumerate([*found.stored, *found.partial]))
    for o in outputs:
        lines.add_sums(o.node, o.name) if o.is_partial else lines.store(o.node, o.name)
    ins = tuple(n for n in gm.graph.find_nodes(op="placeholder") if n in lines.loaded)
    numbers = (
        "n_rows",
        "rows_per_program",
        *(["programs"] if found.outer else []),
        *(f"n{i}" for i in sorted(lines.sizes)),
    )
    operands = [*(f"{n.name}_ptr" for n in ins), *(f"{o.name}_ptr" for o in outputs), *numbers]
    head = (
        f"@triton.jit\ndef {name}(\n    {', '.join(operands)},\n    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,\n):\n"
    )
    source = head + textwrap.indent("\n".join(_body(found, lines, width)), "    ") + "\n"
    return Kernel(name, source, ins, outputs, numbers, found, lines.block, width, is_along, lines.reads_pairs)


def goes_along(node: fx.Node, found: Spread) -> bool:
    """Whether a node needs more of a row than one place; a sum over rows does if it sums the columns too."""
    if node in found.partial:
        return found.layouts[node.all_input_nodes[0]].width > found.layouts[node].width
    return rule_key(node) in ALONG


def _output(found: Spread, node: fx.Node, named: Mapping[fx.Node, str], k: int) -> Output:
    name = named.get(node, f"t{k}")
    is_partial = node in found.partial
    dtype = torch.float32 if is_partial else node.meta["val"].dtype
    if dtype not in POINTERS:
        raise NotRowWise(f"kernels do not compute in {dtype}")
    return Output(node, f"{name}_sums" if is_partial else name, dtype, found.layouts[node], is_partial)


def _body(found: Spread, lines: Lines, width: int) -> list[str]:
    """The kernel's lines: which rows are this program's, what is the same for all of them, and the loop."""
    of = "program % programs" if found.outer else "program"
    head = ["program = tl.program_id(0).to(tl.int64)"]
    head += ["outer = program // programs"] if found.outer else []
    head += [f"first = ({of}) * rows_per_program" if found.outer else "first = program * rows_per_program"]
    head += ["end = tl.minimum(first + rows_per_program, n_rows)"]
    columns = "tl.arange(0, BLOCK_D)[None, :]"
    head += [f"cols = tl.program_id(1) * BLOCK_D + {columns}" if width > lines.block else f"cols = {columns}"]
    place = ["inner = start + tl.arange(0, BLOCK_R)[:, None]", "live = inner < end", "row = outer * n_rows + inner"]
    place = place if found.outer else ["row = start + tl.arange(0, BLOCK_R)[:, None]", "live = row < end"]
    loop = [f"    {line}" for line in [*place, *lines.inside]]
    return [*head, *lines.before, "for start in range(first, end, BLOCK_R):", *loop, *lines.behind]
