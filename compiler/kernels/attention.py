"""Masked attention as a generated file: its predicate becomes a test of a tile of scores, forward and backward.

A dense mask is never made. What a query may see is the predicate of compiler/masks.py over attributes of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specc.compiler.kernels.attention_text import (
    BACKWARD_KEYS,
    BACKWARD_QUERIES,
    FORWARD,
    LAUNCHERS,
    OPS,
    TILE,
)  # fmt: skip
from specc.compiler.kernels.kernel import POINTERS
from specc.compiler.kernels.made import Entry, Made, Setting
from specc.compiler.kernels.mask_forms import HELPERS, tile_text
from specc.compiler.kernels.source import plain
from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.placed_attention import own_heads
from specc.compiler.masks import CAUSAL, implies_causal
from specc.compiler.program import Body, Eqn
from specc.spec.expr import Expr

TILES = {
    "forward": ((128, 64, 8), (64, 64, 8), (64, 64, 4), (64, 32, 4), (32, 32, 4), (16, 16, 4)),
    "backward_keys": ((64, 64, 8), (32, 64, 4), (32, 32, 4), (16, 16, 4)),
    "backward_queries": ((64, 64, 8), (64, 32, 4), (32, 32, 4), (16, 16, 4)),
}
HEAD = """\
# {name}: made by specc, never changed by hand. Build again after a change of the spec.
#
#   {place}
#   a query sees a key where {predicate}
#
# heads of {e} numbers, values of {f}; products of {dtype} sum up in fp32. sha256 of what follows: {digest}
"""


@dataclass(frozen=True)
class Attention:
    """`names` are the attributes of its predicate, in the order of the op's operands behind q, k and v."""

    predicate: Expr
    names: tuple[str, ...]
    widths: tuple[int, int]  # of heads of q and k, and of v
    scale: float
    place: str = ""


def make_attention(a: Attention, dtype: torch.dtype) -> Made:
    """The file of an attention."""
    e, f = a.widths
    blocks = _block(e), _block(f)
    configs = "\n".join(f'    "{kind}": {tiles},' for kind, tiles in TILES.items())
    code = [
        "import torch\nimport triton\nimport triton.language as tl\n",
        f"SCALE = {a.scale!r}\nCONFIGS = {{  # queries and keys of a tile, and warps\n{configs}\n}}\n"
        "CHOSEN = dict.fromkeys(CONFIGS, 0)",
        HELPERS, TILE, FORWARD, BACKWARD_KEYS, BACKWARD_QUERIES, LAUNCHERS, OPS,
    ]  # fmt: skip
    text = "\n\n".join(part.strip("\n") + "\n" for part in code)
    for word, meaning in _words(a, dtype, blocks).items():
        text = text.replace(f"<{word}>", meaning)
    digest = hashlib.sha256(text.encode()).hexdigest()
    name = f"attention_{digest[:10]}"
    head = HEAD.format(
        name=name, place=plain(a.place), predicate=plain(str(a.predicate)), e=e, f=f, digest=digest,
        dtype=str(dtype).removeprefix("torch."),
    )  # fmt: skip
    return Made(name, f"{head}\n{text.replace('<NAME>', name)}", _entries(a, dtype, blocks))


def _block(width: int) -> int:
    """Columns of a tile: products want 16 and a power of two."""
    return max(16, 1 << (width - 1).bit_length())


def _words(a: Attention, dtype: torch.dtype, blocks: tuple[int, int]) -> dict[str, str]:
    """What the words of the text stand for; no name of the spec is among it."""
    own = {name: f"a{i}" for i, name in enumerate(a.names)}
    dense = {n: f"{own[n]}[:, :, None]" if n.startswith("q.") else f"{own[n]}[:, None, :]" for n in a.names}
    causal = implies_causal(a.predicate)
    names = "".join(f", {x}" for x in own.values())
    return {
        "PREDICATE": tile_text(a.predicate, own),
        "DENSE": tile_text(a.predicate, dense, in_triton=False),
        "TILE_ATTRIBUTES": names, "ARGUMENTS": names, "NAMES": names,
        "TYPED": "".join(f", {x}: torch.Tensor" for x in own.values()),
        "POINTERS": "".join(f"{x}_ptr, " for x in own.values()),
        "LOAD_Q": _loads(own, "q"), "LOAD_K": _loads(own, "k"),
        "CHECKS": "\n        ".join(f"check({x}, (batch, n_{n[0]}), torch.int64)," for n, x in own.items()),
        "NONES": ", ".join(["None"] * len(own)) + ("," if own else ""),
        "LAST_KEY": "tl.minimum(n_k, (tl.program_id(0) + 1) * BLOCK_Q)" if causal else "n_k",
        "FIRST_QUERY": "tl.program_id(0) * BLOCK_K // BLOCK_Q * BLOCK_Q" if causal else "0",
        "E": str(a.widths[0]), "F": str(a.widths[1]), "BLOCK_E": str(blocks[0]), "BLOCK_F": str(blocks[1]),
        "DTYPE": str(dtype),
    }  # fmt: skip


def _loads(own: Mapping[str, str], side: str) -> str:
    of = f"batch * n_{side} + {side}_index, mask={side}_index < n_{side}, other=0"
    return "; ".join(f"{x} = tl.load({x}_ptr + {of})" for n, x in own.items() if n.startswith(f"{side}.")) or "pass"


def _entries(a: Attention, dtype: torch.dtype, blocks: tuple[int, int]) -> tuple[Entry, ...]:
    x, stats = POINTERS[dtype], "*fp32"
    given = {f"{n}_ptr": x for n in "qkv"} | {f"a{i}_ptr": "*i64" for i in range(len(a.names))}
    back = {"dy_ptr": x, "lse_ptr": stats, "delta_ptr": stats}
    more = {
        "forward": {"y_ptr": x, "lse_ptr": stats},
        "backward_keys": {**back, "dk_ptr": x, "dv_ptr": x},
        "backward_queries": {**back, "dq_ptr": x},
    }
    numbers = {**dict.fromkeys(("n_q", "n_k", "heads", "groups"), "i32"), "scale": "fp32"}
    widths = {"BLOCK_E": blocks[0], "BLOCK_F": blocks[1]}
    return tuple(
        Entry(
            f"{kind}_kernel", {**given, **more[kind], **numbers},
            tuple(Setting({"BLOCK_Q": q, "BLOCK_K": k, **widths}, warps) for q, k, warps in tiles),
        )
        for kind, tiles in TILES.items()
    )  # fmt: skip


def attention_impl(name: str) -> Impl:
    def call(e: Local, q: Tensor, k: Tensor, v: Tensor, *attributes: Tensor) -> Tensor:
        if e.spread and e.spread.using("kv_heads"):
            k, v = own_heads(e, q, k, v)
        y: Tensor = getattr(torch.ops.specc, name)(q, k, v, *attributes)[0]
        return y

    return call


def attentions(body: Body) -> dict[str, Attention]:
    """The attentions of a body that a kernel can compute, by their results; their masks are made in the body."""
    makers = {o: e for e in body.eqns for o in e.outs}
    found = {e.outs[0]: _attention(body, e, makers) for e in body.eqns if e.op == "attend"}
    return {out: a for out, a in found.items() if a is not None}


def _attention(body: Body, e: Eqn, makers: Mapping[str, Eqn]) -> Attention | None:
    types = body.types()
    mask, bias = (*e.ins[3:], None, None)[:2]
    shapes = [types[n or ""].dims for n in e.ins[:3]]
    e_dim, f_dim = shapes[1][-1].size, shapes[2][-1].size
    if bias or e.attrs.get("softmax") or any(len(s) != 4 for s in shapes) or e_dim is None or f_dim is None:
        return None
    scale = float(e.attrs.get("scale") or e_dim**-0.5)
    if mask is None:
        tree = CAUSAL if e.attrs.get("causal") else Expr("==", args=(Expr("num", 1), Expr("num", 1)))
        return Attention(tree, (), (e_dim, f_dim), scale, f"{e.place.rpartition('/')[2]} {e.path}")
    made = makers.get(mask)
    if made is None or made.op != "mask" or any(len(types[n or ""].dims) != 2 for n in made.ins):
        return None
    names = tuple(made.attrs["names"])
    return Attention(made.attrs["predicate"], names, (e_dim, f_dim), scale, f"{e.place.rpartition('/')[2]} {e.path}")


def with_attention(body: Body, names: Mapping[str, str]) -> Body:
    """The body with attentions as equations of the kernels `names`; masks that nothing reads any more go."""
    makers = {o: e for e in body.eqns for o in e.outs}
    eqns = [_kernel_eqn(e, makers, names[e.outs[0]]) if e.outs[0] in names else e for e in body.eqns]
    read = {i for e in eqns for i in e.ins} | set(body.outs)
    return replace(body, eqns=tuple(e for e in eqns if e.op != "mask" or e.outs[0] in read))


def _kernel_eqn(e: Eqn, makers: Mapping[str, Eqn], name: str) -> Eqn:
    mask = e.ins[3] if len(e.ins) > 3 else None
    return replace(e, op=name, ins=(*e.ins[:3], *(makers[mask].ins if mask else ())), attrs={})
