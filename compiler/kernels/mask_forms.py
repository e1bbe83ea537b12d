"""A mask predicate in its other forms: a tile of scores in a Triton kernel, and FlexAttention's mask_mod.

The dense form is `mask` in compiler/lower/attention.py; the three are tested to agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from specc.compiler.lower.pointwise import formula
from specc.spec.expr import Expr, evaluate

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
WORDS = {"and": "&", "or": "|"}
# Triton rounds quotients of whole numbers towards zero, the language rounds down.
HELPERS = """\
@triton.jit
def floor_mod(a, b):
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@triton.jit
def floor_div(a, b):
    return (a - floor_mod(a, b)) // b
"""


def tile_text(e: Expr, names: Mapping[str, str], in_triton: bool = True) -> str:
    """The predicate as an expression of a kernel; `names` are those of attributes there. With `q.index` and what else
    is of queries as a column, and `k.index` and the keys' as a row, it is a tile. In torch it is the dense mask."""
    if not any(node.op == "attr" for node in e.walk()):
        value = evaluate(e, {})
        return ("(k_index >= 0)" if value else "(k_index < 0)") if isinstance(value, bool) else f"({value})"
    if e.op == "attr":
        return {"q.index": "q_index", "k.index": "k_index", **names}[str(e.value)]
    args = [tile_text(a, names, in_triton) for a in e.args]
    if e.op in ("//", "%") and in_triton:
        return f"floor_{'div' if e.op == '//' else 'mod'}({args[0]}, {args[1]})"
    if e.op in ("neg", "not"):
        return f"({'-' if e.op == 'neg' else '~'}{args[0]})"
    return f"({args[0]} {WORDS.get(e.op, e.op)} {args[1]})"


def mask_mod(e: Expr, attributes: Mapping[str, Tensor]) -> MaskMod:
    """The predicate as FlexAttention takes it; `attributes` are [B S] or [B T] by name (`q.doc`)."""

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        values = {"q.index": q, "k.index": k}
        values |= {name: x[b, q if name.startswith("q.") else k] for name, x in attributes.items()}
        found = formula(e, values)
        return found if isinstance(found, Tensor) else (q >= 0) & bool(found)

    return seen
