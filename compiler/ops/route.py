"""Rows: routing of tokens to experts, learned (`topk`, `dispatch`, `combine`) or by an attribute (`routed_linear`)."""

from __future__ import annotations

from specc.compiler.ops.row import Applied, Arg, Op, OpError
from specc.compiler.types import TensorType, prod_size

MOVES_ROWS = ("dispatch", "row_gates", "combine")  # where experts are on other ranks, to them or back


def _topk(a: Applied) -> tuple[TensorType, ...]:
    x, k = a.type(0), a.args["k"]
    n = x.dims[-1]
    if n.size is not None and k.size is not None and k.size > n.size:
        raise OpError("S203", f"{k.shown()} of {n.shown()} entries")
    dims = (*x.dims[:-1], k)
    return (TensorType(dims), TensorType(dims, "int"))


def _dispatch(a: Applied) -> tuple[TensorType, ...]:
    x, index = a.type(0), a.type(1)
    if index.dims[:-1] != x.dims[: len(index.dims) - 1]:
        raise OpError("S201", f"the index {index} must have the token dims of {x} and one more", operand=1)
    rows = prod_size(index.dims)
    width = x.dims[len(index.dims) - 1 :]
    return (TensorType((rows, *width)), TensorType((rows,), "int"), TensorType((a.args["experts"],), "int"))


def _row_gates(a: Applied) -> tuple[TensorType, ...]:
    return (TensorType((prod_size(a.type(0).dims),)),)


def _combine(a: Applied) -> tuple[TensorType, ...]:
    rows, index = a.type(0), a.type(2)
    return (TensorType((*index.dims[:-1], *rows.dims[1:])),)


ROWS = (
    Op("topk", "-> ", "The k largest entries of the last dim and their indices.", args={"k": Arg("dim")},
       gives=("float", "int"), infer=_topk, flops="none", mixes="last"),
    Op("dispatch", "-> ", "Copies of the tokens sorted by expert: rows, their order, and each expert's end.",
       inputs=("x", "index"), takes=("float", "int"), args={"experts": Arg("dim")}, gives=("float", "int", "int"),
       infer=_dispatch, flops="none"),
    Op("row_gates", "-> ", "The gate of each row, to scale it before the experts' last product or behind it.",
       inputs=("gates", "order"), takes=("float", "int"), infer=_row_gates, flops="none"),
    Op("combine", "-> ", "Rows back in token order; the copies of a token are summed.",
       inputs=("rows", "order", "index"), takes=("float", "int", "int"), infer=_combine),
    Op("routed_linear", "... i*, ... , p i* o*, p o* -> ... o*", "Linear whose weight each token picks by number.",
       inputs=("x", "index", "weight", "bias?"), takes=("float", "int", "float", "float"), flops="contract",
       args={"out": Arg("dims"), "over": Arg("dims", None)}, binds={"i": "over", "o": "out"}, internal=True),
    Op("stack", "-> ", "Values of one type stacked along a new first dim.", inputs=("*xs",),
       args={"dim": Arg("dim")}, infer=lambda a: (TensorType((a.args["dim"], *a.type(0).dims)),), flops="none",
       internal=True),
)  # fmt: skip
