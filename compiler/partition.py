"""A body as forward and backward graphs: one joint trace under fake tensors, then cut where least is kept."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx
from torch._functorch import config as functorch_config
from torch._functorch.partitioners import _extract_graph_with_inputs_outputs as extract
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module as lazy_code
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.graphs import Graphs, verify
from specc.compiler.lower.collectives import WAIT
from specc.compiler.passes.functional import functional
from specc.compiler.passes.merge_equal import merge_equal
from specc.compiler.passes.norm_again import fold, spread
from specc.compiler.passes.save_operands import save_operands
from specc.compiler.work import fresh_bytes

Body = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
aten = torch.ops.aten
# Equal nodes are merged after the cut: what a backward computes anew on purpose is not to be kept instead. And what a
# chain of pointwise ops makes is computed anew, even if a product of the backward reads it, or if the forward read it
# early and again late.
CUT = {"cse": False, "ban_recompute_materialized_backward": False, "ban_recompute_used_far_apart": False}
VIEWS = (
    aten.view.default, aten.t.default, aten.permute.default, aten.transpose.int, aten.expand.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims,
)  # fmt: skip
LIGHT = (
    *VIEWS, aten.sum.dim_IntList, aten.mean.dim, aten._to_copy.default, aten.clone.default, aten.slice.Tensor,
    aten.select.int,
)  # fmt: skip
COPIES = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)


def build_graphs(
    fn: Body, ins: Sequence[Tensor], params: Sequence[Tensor], in_grads: Sequence[bool], param_grads: Sequence[bool],
    mode: FakeTensorMode, share: float = 1.0, comes_again: bool = False,
) -> Graphs:  # fmt: skip
    """Lower `fn(ins, params) -> outs` for fake operands; gradients are of the flagged ones.

    What is cheap is computed anew in the backward. A `share` below 1 is that of the bytes which would then be saved:
    the rest is computed anew too, what takes least for its bytes first. With `comes_again` parameters are saved
    themselves and not as views, so that they need not stay between forward and backward."""
    primals, flags = [*ins, *params], [*in_grads, *param_grads]
    n = len(ins)
    with mode, lazy_code(True):  # what is only cut further never runs, so it needs no Python code
        outs = run_traced(fn, primals, flags, n)[0]
        out_grads = tuple(o.requires_grad for o in outs)
        cotangents = [torch.empty_like(o.detach()) for o, g in zip(outs, out_grads, strict=True) if g]
        if not any(out_grads):
            gm = clean(make_fx(lambda *p: [o.contiguous() for o in fn(p[:n], p[n:])])(*primals))
            return Graphs(verify(gm), None, None, None, len(outs), tuple(in_grads), tuple(param_grads), out_grads)

        def joint(primals: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
            outs, xs = run_traced(fn, primals, flags, n)
            ends = [o for o in outs if o.requires_grad]
            wanted = [x for x, g in zip(xs, flags, strict=True) if g]
            grads = torch.autograd.grad(ends, wanted, tangents, allow_unused=True)
            filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, wanted, strict=True)]
            between = sum(in_grads)
            return [*outs, *(g.contiguous() for g in filled[:between]), *filled[between:]]

        traced = clean(make_fx(joint)(primals, cotangents))
        fwd, bwd = cut(traced, len(outs), share)
        if comes_again:
            fwd, bwd = save_operands(fwd, bwd, len(outs), range(n, len(primals)))
    bwd_input, bwd_weight = split_backward(bwd, sum(in_grads))
    kept = list(fwd.graph.output_node().args[0])[len(outs) :]  # type: ignore[arg-type]
    graphs = Graphs(
        fwd, bwd, bwd_input, bwd_weight, len(outs), tuple(in_grads), tuple(param_grads), out_grads,
        saved_operands(fwd, len(outs)), fresh_bytes(kept, fwd.graph.find_nodes(op="placeholder")),
    )  # fmt: skip
    for gm in graphs.parts().values():
        verify(gm)
    return graphs


def run_traced(fn: Body, primals: Sequence[Tensor], flags: Sequence[bool], n: int) -> tuple[list[Tensor], list[Tensor]]:
    """The outs with gradients on, and the leaves they come from. What goes between calls is contiguous: graphs are
    compiled for operands that are."""
    with torch.enable_grad():
        xs = [p.detach().requires_grad_() if g else p for p, g in zip(primals, flags, strict=True)]
        return [o.contiguous() for o in fn(xs[:n], xs[n:])], xs


def clean(gm: fx.GraphModule) -> fx.GraphModule:
    """Drop copies that only autograd's bookkeeping wants, what it writes in place, and dead nodes."""
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node.target in COPIES:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
    functional(gm)
    drop_unused(gm)
    gm.graph.set_codegen(fx.graph.CodeGen())
    gm.recompile()
    return gm


def drop_unused(gm: fx.GraphModule) -> None:
    """Drop what nothing reads; waits for collectives too, which torch would keep."""
    gm.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


def cut(joint: fx.GraphModule, n_outs: int, share: float) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Forward and backward halves of a joint graph."""
    for i, node in enumerate(joint.graph.find_nodes(op="placeholder")):
        assert str(node.target).startswith(("primals", "tangents")), f"operand {i} is {node.target}"
    spread(joint)
    with warnings.catch_warnings(), functorch_config.patch({**CUT, "activation_memory_budget": share}):
        warnings.simplefilter("ignore")
        fwd, bwd = min_cut_rematerialization_partition(joint, None, num_fwd_outputs=n_outs)
    for half in (fwd, bwd):
        fold(half)
        drop_unused(half)
    return merge_equal(fwd), merge_equal(bwd)


def split_at_waits(gm: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """gm(*xs) -> ys   becomes   start(*xs) -> pending   and   finish(*pending) -> ys.

    The first collectives begin in `start`; those that need another's result are part of `finish`. What waits beside
    them are operands that `finish` reads."""
    placeholders = gm.graph.find_nodes(op="placeholder")
    waits = gm.graph.find_nodes(op="call_function", target=WAIT)
    begun = [w.args[0] for w in waits if not ancestors([w.args[0]], set()) & set(waits)]
    outputs: Any = gm.graph.output_node().args[0]
    read = ancestors(outputs, set(begun))
    pending = [*begun, *(x for x in placeholders if x in read)]
    return cut_out(gm, placeholders, pending), cut_out(gm, pending, list(outputs))


def cut_out(gm: fx.GraphModule, operands: Sequence[fx.Node], results: Sequence[Any]) -> fx.GraphModule:
    """What makes some nodes of a graph from others, and nothing else: torch keeps collectives that nobody uses."""
    undescribed: list[Any] = [None] * len(results)
    part = fx.GraphModule(gm, extract(gm.graph, list(operands), list(results), undescribed))
    drop_unused(part)
    part.recompile()
    return part


def saved_operands(fwd: fx.GraphModule, n_outs: int) -> tuple[int, ...]:
    """For each saved value the index of the operand that it is, or -1."""
    operands = {node: i for i, node in enumerate(fwd.graph.find_nodes(op="placeholder"))}
    outputs: Any = fwd.graph.output_node().args[0]
    return tuple(operands.get(node, -1) for node in outputs[n_outs:])


def split_backward(bwd: fx.GraphModule, n_in_grads: int) -> tuple[fx.GraphModule, fx.GraphModule | None]:
    """bwd -> (d_ins, d_params)   becomes   bwd_input -> (d_ins, live)   and   bwd_weight(live) -> d_params.

    Where nothing trains, bwd_input is all of it."""
    placeholders = bwd.graph.find_nodes(op="placeholder")
    outputs: Any = bwd.graph.output_node().args[0]
    d_ins, d_params = list(outputs[:n_in_grads]), list(outputs[n_in_grads:])
    if not d_params:
        return bwd, None
    needed = ancestors(d_ins, set())
    needed |= {user for node in needed for user in node.users if user.target is operator.getitem}  # tensors, no tuples
    known = needed | set(placeholders)
    live = handed_over(bwd, known, ancestors(d_params, known), d_params)
    return cut_out(bwd, placeholders, [*d_ins, *live]), cut_out(bwd, live, d_params)


def handed_over(
    bwd: fx.GraphModule, known: set[fx.Node], reached: set[fx.Node], d_params: Sequence[fx.Node]
) -> list[fx.Node]:  # fmt: skip
    """What the input half gives to the weight half, as few bytes as can be: a minimum cut between what is known there
    and the first products of the weight half, with row-wise ops and sums on either side of it."""
    late: set[fx.Node] = set()
    for node in bwd.graph.nodes:
        if node in reached and node not in known and (late & set(node.all_input_nodes) or not is_light(node)):
            late.add(node)
    g: nx.DiGraph[Any] = nx.DiGraph()
    for node in bwd.graph.nodes:
        if node not in reached or node in late:
            continue
        val = node.meta.get("val")
        is_view = node.target in VIEWS and node not in known  # what it is a view of has no more bytes, in order
        cost = {"capacity": val.nbytes} if isinstance(val, Tensor) and not is_view else {}
        g.add_edge((node.name, "in"), (node.name, "out"), **cost)
        if node in known:
            g.add_edge("known", (node.name, "in"))
        after = [u for u in node.users if u in reached and u not in known]
        g.add_edges_from(((node.name, "out"), "late" if u in late else (u.name, "in")) for u in after)
        if node in d_params:
            g.add_edge((node.name, "out"), "late")
    here = nx.minimum_cut(g, "known", "late")[1][0]
    return [n for n in bwd.graph.nodes if (n.name, "in") in here and (n.name, "out") not in here]


def is_light(node: fx.Node) -> bool:
    """Whether an op is row-wise, a sum or a view."""
    if not node.all_input_nodes:  # a constant
        return True
    return node.target in LIGHT or torch.Tag.pointwise in getattr(node.target, "tags", ())


def ancestors(nodes: Sequence[fx.Node | None], stop: set[fx.Node]) -> set[fx.Node]:
    """The nodes and all that they need, not going past `stop`."""
    seen: set[fx.Node] = set()
    todo = [n for n in nodes if n is not None]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        if node not in stop:
            todo += node.all_input_nodes
    return seen
