"""Rows: products with weights (linear, embedding, einsum, convolution)."""

from __future__ import annotations

from specc.compiler.ops.row import INIT, PER, Applied, Arg, Op, OpError, Weight
from specc.compiler.rules import Mismatch, build, match, parse_rule
from specc.compiler.types import Dim, TensorType, derived, number_dim
from specc.spec.expr import parse

ZEROS: tuple[str, tuple[tuple[str, float], ...]] = ("zeros", ())


def _einsum(a: Applied) -> tuple[TensorType, ...]:
    rule = parse_rule(a.args["rule"])
    if len(rule.ins) != len(a.ins) or len(rule.outs) != 1:
        raise OpError("S201", f"the rule has {len(rule.ins)} operands, got {len(a.ins)} inputs")
    binding = dict(a.binding)
    for pattern, t in zip(rule.ins, a.ins, strict=True):
        assert t is not None
        match(pattern, t.dims, binding)
    try:
        return (TensorType(build(rule.outs[0], binding)),)
    except KeyError as e:
        raise OpError("S201", f"the rule's result has a letter {e} that no operand has") from None


def _shrink(d: Dim, kernel: int, stride: int, pads: int) -> Dim:
    """Size of a convolved dim: (n + pads - kernel) // stride + 1."""
    if stride == 1 and pads == kernel - 1:
        return d
    if d.size is not None:
        return number_dim((d.size + pads - kernel) // stride + 1)
    return derived(parse(f"(n + {pads} - {kernel}) // {stride} + 1"), {"n": d})


def _conv(a: Applied) -> tuple[TensorType, ...]:
    x = a.type(0)
    kernel, stride, pad = a.args["kernel"], a.args["stride"], a.args["pad"]
    _pads(a)
    spatial = len(x.dims) - 2
    if spatial not in (1, 2, 3):
        raise OpError("S201", f"needs [batch channels *space] with 1 to 3 space dims, got {x}")
    before, after = (pad, pad) if isinstance(pad, int) else pad
    small = next((d for d in x.dims[2:] if d.size is not None and d.size + before + after < kernel), None)
    if small is not None:
        raise OpError("S203", f"a kernel of {kernel} is larger than {small.shown()} with its zeros")
    out = tuple(_shrink(d, kernel, stride, before + after) for d in x.dims[2:])
    return (TensorType((x.dims[0], *a.binding["o"], *out)),)


def _pads(a: Applied) -> None:
    pad = a.args["pad"]
    sides = [pad] if not isinstance(pad, list | tuple) else list(pad)
    if (sides != [pad] and len(sides) != 2) or not all(type(n) is int for n in sides):
        raise OpError("S103", f"'pad' is a number or [before, after], got {pad!r}")
    if min(sides) < 0:
        raise OpError("S103", f"'pad' is at least 0, got {pad!r}")


def _grouped_dims(a: Applied) -> None:
    if len(a.type(0).dims) < 2:
        raise Mismatch(f"needs rows sorted by group, got {a.type(0)}")


ROWS = (
    Op("linear", "... i*, i* o*, o* -> ... o*", "Product with a weight over the last dim (or over `over`).",
       weights=(Weight("weight"), Weight("bias", ZEROS, "bias")),
       args={"out": Arg("dims", doc="result dims, one or several"),
             "over": Arg("dims", None, "contracted dims; default: the last one"),
             "bias": Arg("bool", False), "init": INIT, "per": PER,
             "tie": Arg("str", None, "path of a weight to share, its dims in any order")},
       binds={"i": "over", "o": "out"}, flops="contract", mixes="over"),
    Op("embedding", "..., v d* -> ... d*", "Rows of a table by number.", inputs=("index",),
       weights=(Weight("weight"),), takes=("int",),
       args={"rows": Arg("dim", doc="how many rows"), "out": Arg("dims", doc="dims of a row"), "init": INIT,
             "tie": Arg("str", None, "path of a table to share")},
       binds={"v": "rows", "d": "out"}, flops="none"),
    Op("einsum", "-> ", "A sum of products by a rule over dim names: {rule: 'i d, j d -> i j'}.",
       inputs=("*xs",), args={"rule": Arg("str")}, infer=_einsum, flops="contract", mixes="summed"),
    Op("conv", "b i *, o i k*, o -> b o *", "Convolution over 1 to 3 space dims of [batch channels *space].",
       weights=(Weight("weight"), Weight("bias", ZEROS, "bias")),
       args={"out": Arg("dim"), "kernel": Arg("int", 3, within="[1, inf)"), "stride": Arg("int", 1, within="[1, inf)"),
             "pad": Arg("value", 1, "zeros on both sides, or [before, after]"), "bias": Arg("bool", True),
             "init": INIT},
       binds={"o": "out"}, infer=_conv, flops="contract", mixes="space"),
    Op("grouped_linear", "m i, n, n i o* -> m o*", "Each row times its group's weight; rows are sorted by group.",
       inputs=("rows", "offsets"), takes=("float", "int"), weights=(Weight("weight"),),
       args={"out": Arg("dims"), "init": INIT}, binds={"o": "out"}, check=_grouped_dims, flops="contract"),
)  # fmt: skip
