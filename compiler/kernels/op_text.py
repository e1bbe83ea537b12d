"""The functions of a region's file for one of its passes: what launches the kernel, the same in torch, and the op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import indent

from torch import fx

from specc.compiler.kernels.kernel import Kernel, Output
from specc.compiler.kernels.spread import results
from specc.compiler.kernels.torch_text import axis_lines, shape_text, torch_lines

TENSOR = "torch.Tensor"


@dataclass(frozen=True)
class Pass:
    """A pass of a region: `ins` are the placeholders that its op takes, `outs` the nodes that it gives."""

    kind: str
    op: str
    gm: fx.GraphModule
    ins: tuple[fx.Node, ...]
    outs: tuple[fx.Node, ...]
    kernel: Kernel
    axes: Mapping[int, int]

    @property
    def names(self) -> str:
        return ", ".join(n.name for n in self.ins)


def op_text(p: Pass, reference: fx.GraphModule) -> list[str]:
    """The parts of the file; `reference` computes the same as the pass."""
    return [_launcher(p), _reference(p, reference), _op(p), _fake(p)]


def _launcher(p: Pass) -> str:
    """Allocates, launches, and finishes the sums."""
    k, found = p.kernel, p.kernel.spread
    rows = [a for g in found.groups[found.outer :] for a in g]
    lines = [f'config = CONFIGS["{p.kind}"][CHOSEN["{p.kind}"]]', *_sizes(p), *_checks(p)]
    lines += [
        f"n_outer, n_rows = {_product(p, [a for g in found.groups[: found.outer] for a in g])}, {_product(p, rows)}"
    ]
    sums = any(o.is_partial for o in k.outs)
    lines += [f"programs, rows = shares(n_rows, n_outer, config[0], {'SUM_PROGRAMS' if sums else 'PROGRAMS'})"]
    lines += [
        f"{o.name} = torch.empty({_out_shape(p, o)}, dtype={o.dtype}, device={p.ins[0].name}.device)" for o in k.outs
    ]
    numbers = {"n_rows": "n_rows", "rows_per_program": "rows", "programs": "programs"}
    numbers |= {f"n{i}": _product(p, g) for i, g in enumerate(found.groups)}
    operands = [*(n.name for n in k.ins), *(o.name for o in k.outs), *(numbers[n] for n in k.numbers)]
    lines += [
        f"{p.kind}_kernel[(n_outer * programs, {-(-k.width // k.block)})](",
        f"    {', '.join(operands)},",
        f"    BLOCK_R=config[0], BLOCK_D={k.block}, num_warps=config[1], enable_fp_fusion=False,",
        ")",
    ]
    names = {n: n.name for n in p.ins} | {o.node: o.name for o in k.outs}
    lines += [_finished(p, o) for o in k.outs if o.is_partial]
    lines += torch_lines(found.after, names, p.axes, p.ins[0].name, "t")
    lines += [f"return {', '.join(names[n] for n in p.outs)}"]
    return f"def {p.kind}({p.names}):\n" + indent("\n".join(lines), "    ")


def _sizes(p: Pass) -> list[str]:
    used = {n.name: tuple(n.meta["val"].shape) for n in p.ins}
    return axis_lines(used, p.axes)


def _checks(p: Pass) -> list[str]:
    """Shapes and types, which a kernel would not notice."""
    return [
        f"{n.name} = check({n.name}, {shape_text(n.meta['val'].shape, p.axes)}, {n.meta['val'].dtype})" for n in p.ins
    ]


def _product(p: Pass, axes: Sequence[int]) -> str:
    return " * ".join(f"s{a}" for a in axes) or "1"


def _out_shape(p: Pass, o: Output) -> str:
    width = o.layout.width
    return f"(n_outer * programs, {width})" if o.is_partial else shape_text(o.node.meta["val"].shape, p.axes)


def _finished(p: Pass, o: Output) -> str:
    """The sums of the programs as one, in the shape and type of the node."""
    val, keeps = o.node.meta["val"], sorted(p.kernel.spread.partial[o.node])
    summed = f"{o.name}.view({_product(p, keeps)}, -1, {o.layout.width}).sum(1)" if keeps else f"{o.name}.sum(0)"
    return f"{o.name} = {summed}.view({shape_text(val.shape, p.axes)}).to({val.dtype})"


def _reference(p: Pass, gm: fx.GraphModule) -> str:
    placeholders = gm.graph.find_nodes(op="placeholder")
    names = {n: n.name for n in placeholders}
    nodes = [n for n in gm.graph.nodes if n.op == "call_function"]
    lines = [*_sizes(p), *_checks(p), *torch_lines(nodes, names, p.axes, p.ins[0].name)]
    at = [results(p.gm).index(n) for n in p.outs]
    lines += [f"return {', '.join(f'{names[results(gm)[i]]}.contiguous()' for i in at)}"]
    return f"def {p.kind}_reference({p.names}):\n" + indent("\n".join(lines), "    ")


def _op(p: Pass) -> str:
    args = ", ".join(f"{n.name}: {TENSOR}" for n in p.ins)
    gives = TENSOR if len(p.outs) == 1 else f"tuple[{', '.join([TENSOR] * len(p.outs))}]"
    return (
        f'@torch.library.custom_op("specc::{p.op}", mutates_args=())\n'
        f"def {p.kind}_op({args}) -> {gives}:\n"
        f"    run = {p.kind} if {p.ins[0].name}.is_cuda or triton.knobs.runtime.interpret else {p.kind}_reference\n"
        f"    return run({p.names})"
    )


def _fake(p: Pass) -> str:
    first = p.ins[0].name
    outs = [
        f"{first}.new_empty({shape_text(n.meta['val'].shape, p.axes)}, dtype={n.meta['val'].dtype})" for n in p.outs
    ]
    lines = [*_sizes(p), f"return {', '.join(outs)}"]
    return f"@{p.kind}_op.register_fake\ndef {p.kind}_shapes({p.names}):\n" + indent("\n".join(lines), "    ")
