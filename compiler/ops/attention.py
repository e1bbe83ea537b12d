"""Rows: attention, masks, rotary and relative positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specc.compiler.ops.row import Applied, Arg, Op, OpError
from specc.compiler.types import Dim, TensorType


def _attend(a: Applied) -> None:
    if a.args["scale"] == 0:
        raise OpError("S103", "'scale' is 0: all scores would be alike")
    heads, kv_heads = a.binding["h"][0], a.binding["k"][0]
    if heads.size is not None and kv_heads.size is not None and heads.size % kv_heads.size:
        raise OpError("S203", f"{heads.shown()} query heads do not share {kv_heads.shown()} key-value heads evenly")
    known = {d.name for letters in ("...", "s", "t", "h") for d in a.binding[letters]} | {"keys"}
    for i, what in ((3, "mask"), (4, "bias")):
        t = a.ins[i] if i < len(a.ins) else None
        strange = [d.name for d in t.dims if d.name not in known] if t else []
        if strange:
            raise OpError("S201", f"its {what} has dim '{strange[0]}', which neither queries nor keys have", operand=i)


def _rope(a: Applied) -> None:
    x, positions = a.type(0), a.type(1)
    strange = [d.name for d in positions.dims if d not in x.dims]
    if strange:
        raise OpError("S201", f"the positions have dim '{strange[0]}', which {x} has not", operand=1)
    low, high = between(a.args)
    if low >= high:
        raise OpError("S103", f"'low' ({low:g}) is below 'high' ({high:g})")
    if a.args["original"] is None and not (a.args["low"] is a.args["high"] is None):
        raise OpError("S103", "'low' and 'high' are for 'original'")
    width = x.dims[-1].size
    if width is not None and int(width * a.args["fraction"]) % 2:
        raise OpError("S203", f"the rotated part of {x.dims[-1].shown()} is odd")


def between(args: Mapping[str, Any]) -> tuple[float, float]:
    """How often an original text has the waves that are stretched wholly, and those that are not."""
    low, high = args.get("low"), args.get("high")
    return 1.0 if low is None else float(low), 4.0 if high is None else float(high)


def _positions(a: Applied) -> tuple[TensorType, ...]:
    return (a.type(0),)


def _keys(q: Dim, k: Dim) -> Dim:
    """The dim of keys beside that of queries: `keys` where tokens attend to their own sequence."""
    return Dim("keys", k.size, k.of or k.name) if q == k else k


def _buckets(a: Applied) -> tuple[TensorType, ...]:
    q, k = a.args["q"], a.args["k"]
    exact = a.args["buckets"] // (4 if a.args["bidirectional"] else 2)
    if not 0 < exact < a.args["max_distance"]:
        raise OpError("S203", f"{exact} buckets of one distance each leave none up to {a.args['max_distance']}")
    return (TensorType((q, _keys(q, k)), "int"),)


def _mask(a: Applied) -> tuple[TensorType, ...]:
    q: Dim = a.args["q"]
    k: Dim = a.args["k"]
    batch: dict[str, Dim] = {}
    for t in a.ins:
        assert t is not None
        batch |= {d.name: d for d in t.dims[:-1]}
    return (TensorType((*batch.values(), q, _keys(q, k)), "bool"),)


ROWS = (
    Op("attend", "... s h !e, ... t k !e, ... t k !f -> ... s h f",
       "Softmax attention with grouped key-value heads; the mask is a predicate over token attributes.",
       inputs=("q", "k", "v", "mask?", "bias?"), takes=("float", "float", "float", "bool", "float"),
       args={"mask": Arg("mask", None, "who sees whom: causal & document, prefix, window(128), ..."),
             "scale": Arg("float", None, "factor of the scores; default: 1/sqrt(head dim)"),
             "bias": Arg("value", None, "a [queries keys heads] term of the scores"),
             "softmax": Arg("choice", None, "`fp32`: in fp32 even where the model computes in fp64", ("fp32",))},
       check=_attend, flops="contract", mixes="keys"),
    Op("mask", "-> ", "Dense mask of a predicate over token attributes; true where a query sees a key.",
       inputs=("*attributes",), takes=("int",) * 16, gives=("bool",),
       args={"predicate": Arg("expr"), "q": Arg("dim"), "k": Arg("dim"), "names": Arg("value")},
       infer=_mask, flops="none", internal=True),
    Op("rope", "... s h !e -> ... s h e",
       "Rotary positions (arXiv:2104.09864); layout `half` as Llama, `interleaved` as GLM.",
       inputs=("x", "positions"), takes=("float", "int"),
       args={"positions": Arg("positions", None, "positions of the tokens; default: attribute `pos`, else the index"),
             "theta": Arg("float", 1e4, within="(0, inf)"),
             "layout": Arg("choice", "half", choices=("half", "interleaved")),
             "fraction": Arg("float", 1.0, "part of the head dim that is rotated", within="(0, 1]"),
             "scaling": Arg("float", 1.0, "positions are divided by it", within="(0, inf)"),
             "original": Arg("float", None, "tokens of texts before; `scaling` is for waves that they have less than "
                             "`low` times, and for none that they have `high` times (Llama 3.1)", within="(0, inf)"),
             "low": Arg("float", None, "default: 1", within="[0, inf)"),
             "high": Arg("float", None, "default: 4", within="(0, inf)")},
       infer=_positions, check=_rope),
    Op("relative_bucket", "-> ", "Buckets of key minus query position, as T5 (arXiv:1910.10683).", inputs=(),
       args={"q": Arg("dim"), "k": Arg("dim"), "buckets": Arg("int", 32, within="[2, inf)"),
             "max_distance": Arg("int", 128, within="[1, inf)"), "bidirectional": Arg("bool", True)},
       gives=("int",), infer=_buckets, flops="none"),
)  # fmt: skip
