"""The file of a region: its kernels, what launches them, the same in torch, and the op that graphs call."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import torch
from torch import fx

from specc.compiler.kernels.kernel import Kernel, kernel_of
from specc.compiler.kernels.made import Entry, Made, Setting
from specc.compiler.kernels.op_text import Pass, op_text
from specc.compiler.kernels.region import Region, Traced
from specc.compiler.kernels.spread import results
from specc.compiler.lower.run import IMPLS

STEP = 2048  # numbers that a program holds of an operand, if a row has fewer
PROGRAMS = (4096, 256)  # that share rows: of kernels that sum over rows fewer, for each writes its own sums
ROWS = (1, 2, 4, 8, 16, 32, 64)
HEAD = '''\
# {name}: made by specc, never changed by hand. Build again after a change of the spec.
#
{places}
#
# rows {rows}, columns {column}; floats are {dtype} in memory and fp32 in the kernel.
# sha256 of kernels, types, shapes and graphs: {digest}

import torch
import triton
import triton.language as tl

aten, prims = torch.ops.aten, torch.ops.prims
CONFIGS = {{  # rows of a step, and warps
{configs}
}}
CHOSEN = dict.fromkeys(CONFIGS, 0)
PROGRAMS, SUM_PROGRAMS = {programs}  # that share the rows; each program that sums over rows writes sums of its own


def shares(n_rows, n_outer, step, programs):
    """How many programs share the rows of each outer place, and how many rows each has: the same on every device."""
    steps = -(-n_rows // step)
    each = max(1, -(-steps // max(1, programs // max(1, n_outer))))
    return max(1, -(-steps // each)), each * step


def check(x, shape, dtype):
    assert x.shape == shape and x.dtype == dtype, f"{{x.dtype}}{{list(x.shape)}} is not {{dtype}}{{list(shape)}}"
    return x.contiguous()
'''


def make(region: Region, traced: Traced, dtype: torch.dtype) -> Made:
    """The file of a region; raises NotRowWise if it is no function of rows."""
    kernels = _kernels(region, traced)
    graphs = [traced.whole.code, traced.backward.code if traced.backward else ""]
    # Kernels of rows in one dim and in several read the same, but their files do not.
    shapes = [str(tuple(n.meta["val"].shape)) for n in traced.whole.graph.find_nodes(op="placeholder")]
    said = [*(f"{k.source}{k.signature()}" for k in kernels), *graphs, *shapes]
    digest = hashlib.sha256("\n".join(said).encode()).hexdigest()
    ops = [e.op if e.op in IMPLS else "own" for e in region.body.eqns]
    name = f"{'_'.join(dict.fromkeys(ops))}_{digest[:10]}"
    entries = tuple(Entry(k.name, k.signature(), settings_of(k), k.narrow()) for k in kernels)
    parts = [_head(region, name, digest, entries, dtype), *(k.source for k in kernels)]
    parts += op_text(_forward(name, traced, kernels[0]), traced.whole)
    if traced.backward is not None:
        backward = _backward(name, traced, kernels[-1])
        parts += op_text(backward, traced.backward) if backward.outs else []
        parts += [_autograd(traced, backward)]
    return Made(name, "\n\n".join(p.strip("\n") + "\n" for p in parts), entries)


def _kernels(region: Region, traced: Traced) -> list[Kernel]:
    """One for each pass; a backward that gives nothing but cotangents needs none."""
    xs, ys = [f"x{i}" for i in range(len(region.body.ins))], [f"y{i}" for i in range(len(region.body.outs))]
    _name(traced.forward, xs)
    _name(traced.whole, xs)
    kernels = [kernel_of(traced.forward, traced.axes, "forward_kernel", ys)]
    if traced.backward is not None:
        _name(traced.backward, [*xs, *(f"dy{i}" for i in traced.given)])
        if any(n.op != "placeholder" for n in results(traced.backward)):
            dxs = [f"dx{i}" for i in traced.wanted]
            kernels.append(kernel_of(traced.backward, traced.axes, "backward_kernel", dxs))
    return kernels


def _head(region: Region, name: str, digest: str, entries: Sequence[Entry], dtype: torch.dtype) -> str:
    return HEAD.format(
        name=name,
        digest=digest,
        places="\n".join(f"#   {plain(p)}" for p in region.places),
        rows=plain(" ".join(d.name for d in region.rows)) or "(one)",
        column=plain(f"{region.column.name} = {region.column.size}"),
        dtype=str(dtype).removeprefix("torch."),
        configs="\n".join(
            f'    "{e.kind}": {tuple((s.constants["BLOCK_R"], s.warps) for s in e.settings)},' for e in entries
        ),
        programs=", ".join(map(str, PROGRAMS)),
    )


def plain(text: str) -> str:
    """Text of a spec as it may stand in a comment."""
    return re.sub(r"[^A-Za-z0-9_ .,:=/*+()<>!&|%-]", "?", text)[:160]


def settings_of(k: Kernel) -> tuple[Setting, ...]:
    """Rows of a step and warps, the likeliest first."""
    rows = max(r for r in ROWS if r == 1 or r * k.block <= STEP)
    warps = min(16, max(1, rows * k.block // 512))
    pairs = dict.fromkeys([(rows, warps), (max(1, rows // 2), warps), (rows, min(16, 2 * warps))])
    return tuple(Setting({"BLOCK_R": r, "BLOCK_D": k.block}, w) for r, w in pairs)


def _name(gm: fx.GraphModule, names: Sequence[str]) -> None:
    for node, name in zip(gm.graph.find_nodes(op="placeholder"), names, strict=True):
        node.name = name


def _forward(name: str, traced: Traced, kernel: Kernel) -> Pass:
    gm = traced.forward
    return Pass("forward", name, gm, tuple(gm.graph.find_nodes(op="placeholder")), results(gm), kernel, traced.axes)


def _backward(name: str, traced: Traced, kernel: Kernel) -> Pass:
    """The op of the backward pass takes what it reads alone, and gives each gradient once."""
    gm = traced.backward
    assert gm is not None
    ins = tuple(n for n in gm.graph.find_nodes(op="placeholder") if n.users)
    outs = tuple(n for n in dict.fromkeys(results(gm)) if n.op != "placeholder")
    return Pass("backward", f"{name}_backward", gm, ins, outs, kernel, traced.axes)


def _autograd(traced: Traced, p: Pass) -> str:
    """How the two ops are one differentiable one."""
    gm = p.gm
    n_ins = len(traced.whole.graph.find_nodes(op="placeholder"))
    saved = [n.name for n in p.ins if not n.name.startswith("dy")]
    cotangents = [f"dy{i}" for i in range(len(results(traced.whole)))]
    of_in = {i: node for i, node in zip(traced.wanted, results(gm), strict=True)}
    names = [f"d{i}" for i in range(len(p.outs))]
    gradient = {node: name for node, name in zip(p.outs, names, strict=True)}
    grads = [gradient.get(of_in[i], of_in[i].name) if i in of_in else "None" for i in range(n_ins)]
    call = f"    {', '.join(names)} = torch.ops.specc.{p.op}({p.names})\n" if p.outs else ""
    unpack = f"    {', '.join(saved)}, = ctx.saved_tensors\n" if saved else ""
    return (
        "def save(ctx, inputs, output):\n"
        f"    ctx.save_for_backward({', '.join(f'inputs[{n[1:]}]' for n in saved)})\n\n\n"
        f"def gradients(ctx, {', '.join(cotangents)}):\n{unpack}{call}"
        f"    return {', '.join(grads)}\n\n\n"
        "forward_op.register_autograd(gradients, setup_context=save)"
    )
