"""Masked attention as a generated file: its predicate becomes a test of a tile of scores, forward and backward.

A dense mask is never made. What a query may see is the predicate of compiler/masks.py over attributes of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specc.compiler.kernels.attention_ranges import Ranges
from specc.compiler.kernels.attention_text import (
    AUTOGRAD,
    BACKWARD_KEYS,
    BACKWARD_QUERIES,
    FORWARD,
    LAUNCHERS,
    OPS,
    PART,
    TILE,
    WHOLE,
)  # fmt: skip
from specc.compiler.kernels.cut import PLACED
from specc.compiler.kernels.kernel import POINTERS
from specc.compiler.kernels.made import Entry, Made, Setting
from specc.compiler.kernels.mask_forms import HELPERS, tile_text
from specc.compiler.kernels.source import plain
from specc.compiler.kernels.template import COMMON
from specc.compiler.lower.local import Impl, Local
from specc.compiler.lower.placed_attention import own_heads
from specc.compiler.masks import CAUSAL
from specc.compiler.program import Body, Eqn
from specc.spec.expr import Expr

TILES = {
    "forward": ((128, 64, 8), (64, 64, 8), (64, 64, 4), (64, 32, 4), (32, 32, 4), (16, 16, 4)),
    "backward_keys": ((64, 64, 8), (32, 64, 8), (32, 64, 4), (32, 32, 4), (32, 32, 8), (16, 16, 4), (16, 16, 8)),
    "backward_queries": ((64, 64, 8), (64, 32, 4), (32, 32, 4), (16, 16, 4)),
}
PART_NAME = "attention_part_"
PART_OP = "part.attend"  # of an equation whose queries or keys are a part of a sequence (compiler.kernels.on_mesh)
HEAD = """\
# {name}: made by specc, never changed by hand. Build again after a change of the spec.
#
#   {place}
#   {who} sees {whom} where {predicate}
#
# heads of {e} numbers, values of {f}; products of {dtype} sum up in fp32. sha256 of what follows: {digest}
"""


@dataclass(frozen=True)
class Attention:
    """`names` are the attributes of its predicate, in the order of the op's operands behind q, k and v. One of a part
    of the queries to a part of the keys takes the index of the first of each before them."""

    predicate: Expr
    names: tuple[str, ...]
    widths: tuple[int, int]  # of heads of q and k, and of v
    scale: float
    place: str = ""
    is_part: bool = False

    @property
    def ranges(self) -> Ranges:
        return Ranges(self.predicate, self.names, self.is_part)


def make_attention(a: Attention, dtype: torch.dtype) -> Made:
    """The file of an attention."""
    e, f = a.widths
    blocks = _block(e), _block(f)
    configs = "\n".join(f'    "{kind}": {tiles},' for kind, tiles in TILES.items())
    code = [
        "import torch\nimport triton\nimport triton.language as tl\n",
        f"SCALE = {a.scale!r}\nCONFIGS = {{  # queries and keys of a tile, and warps\n{configs}\n}}\n"
        "CHOSEN = dict.fromkeys(CONFIGS, 0)",
        HELPERS, TILE, *a.ranges.functions(), FORWARD, BACKWARD_KEYS, BACKWARD_QUERIES, LAUNCHERS, OPS,
        "" if a.is_part else AUTOGRAD,
    ]  # fmt: skip
    text = "\n\n".join(part.strip("\n") + "\n" for part in code if part)
    for word, meaning in _words(a, dtype, blocks).items():
        text = text.replace(f"<{word}>", meaning)
    digest = hashlib.sha256(text.encode()).hexdigest()
    name = f"{PART_NAME if a.is_part else 'attention_'}{digest[:10]}"
    head = HEAD.format(
        name=name, place=plain(a.place), who="a query of a part" if a.is_part else "a query",
        whom="a key of another" if a.is_part else "a key", predicate=plain(str(a.predicate)), e=e, f=f, digest=digest,
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
    firsts = ("q_first", "k_first") if a.is_part else ()
    index = {f"{side}.index": f"({side}_first + {side}_index)" for side in "qk"} if a.is_part else {}
    shapes = dict.fromkeys(firsts, "(1,)") | {x: f"(batch, n_{n[0]})" for n, x in own.items()}
    names = "".join(f", {x}" for x in shapes)
    return {
        **COMMON,
        **(PART if a.is_part else WHOLE),
        **a.ranges.words(),
        "PREDICATE": tile_text(a.predicate, own | index),
        "DENSE": tile_text(a.predicate, dense | index, in_triton=False),
        "TILE_ATTRIBUTES": names, "ARGUMENTS": names, "NAMES": names,
        "TYPED": "".join(f", {x}: torch.Tensor" for x in shapes),
        "POINTERS": "".join(f"{x}_ptr, " for x in shapes),
        "LOAD_Q": _loads(own, "q"), "LOAD_K": _loads(own, "k"),
        "CHECKS": "\n        ".join(f"check({x}, {shape}, torch.int64)," for x, shape in shapes.items()),
        "NONES": ", ".join(["None"] * len(own)) + ("," if own else ""),
        "E": str(a.widths[0]), "F": str(a.widths[1]), "BLOCK_E": str(blocks[0]), "BLOCK_F": str(blocks[1]),
        "DTYPE": str(dtype),
    }  # fmt: skip


def _loads(own: Mapping[str, str], side: str) -> str:
    of = f"batch * n_{side} + {side}_index, mask={side}_index < n_{side}, other=0"
    return "; ".join(f"{x} = tl.load({x}_ptr + {of})" for n, x in own.items() if n.startswith(f"{side}.")) or "pass"


def _entries(a: Attention, dtype: torch.dtype, blocks: tuple[int, int]) -> tuple[Entry, ...]:
    x, stats = POINTERS[dtype], "*fp32"
    integers = [*(("q_first", "k_first") if a.is_part else ()), *(f"a{i}" for i in range(len(a.names)))]
    given = {f"{n}_ptr": x for n in "qkv"} | {f"{n}_ptr": "*i64" for n in integers}
    back, out = {"dy_ptr": x, "lse_ptr": stats, "delta_ptr": stats}, stats if a.is_part else x
    more = {
        "forward": {"y_ptr": out, "lse_ptr": stats},
        "backward_keys": {**back, "dk_ptr": out, "dv_ptr": out},
        "backward_queries": {**back, "dq_ptr": out},
    }
    numbers = {**dict.fromkeys(("n_q", "n_k", "heads", "groups"), "i32"), "scale": "fp32"}
    widths = {"BLOCK_E": blocks[0], "BLOCK_F": blocks[1]}
    narrow = "no head is a multiple of 16 bytes" if all(n * dtype.itemsize % 16 for n in a.widths) else ""
    return tuple(
        Entry(
            f"{kind}_kernel", {**given, **more[kind], **numbers},
            tuple(Setting({"BLOCK_Q": q, "BLOCK_K": k, **widths}, warps) for q, k, warps in tiles),
            narrow,
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
    found = {e.outs[0]: _attention(body, e, makers) for e in body.eqns if e.op in ("attend", PART_OP)}
    return {out: a for out, a in found.items() if a is not None}


def _attention(body: Body, e: Eqn, makers: Mapping[str, Eqn]) -> Attention | None:
    types = body.types()
    mask, bias = (*e.ins[3:], None, None)[:2]
    shapes = [types[n or ""].dims for n in e.ins[:3]]
    e_dim, f_dim = shapes[1][-1].size, shapes[2][-1].size
    if bias or e.attrs.get("softmax") or any(len(s) != 4 for s in shapes) or e_dim is None or f_dim is None:
        return None
    scale, place = float(e.attrs.get("scale") or e_dim**-0.5), e.stands_at
    is_part = e.op == PART_OP
    if mask is None:
        tree = CAUSAL if e.attrs.get("causal") else Expr("==", args=(Expr("num", 1), Expr("num", 1)))
        return Attention(tree, (), (e_dim, f_dim), scale, place, is_part)
    made = makers.get(mask)
    # A part's mask may look beyond what its rank has.
    makes_mask = made is not None and (made.op.removeprefix(PLACED) if is_part else made.op) == "mask"
    if made is None or not makes_mask or any(len(types[n or ""].dims) != 2 for n in made.ins):
        return None
    names = tuple(made.attrs["names"])
    return Attention(made.attrs["predicate"], names, (e_dim, f_dim), scale, place, is_part)


def with_attention(body: Body, names: Mapping[str, str]) -> Body:
    """The body with attentions as equations of the kernels `names`; masks that nothing reads any more go."""
    makers = {o: e for e in body.eqns for o in e.outs}
    eqns = [_kernel_eqn(e, makers, names[e.outs[0]]) if e.outs[0] in names else e for e in body.eqns]
    read = {i for e in eqns for i in e.ins} | set(body.outs)
    return replace(body, eqns=tuple(e for e in eqns if e.op != "mask" or e.outs[0] in read))


def _kernel_eqn(e: Eqn, makers: Mapping[str, Eqn], name: str) -> Eqn:
    if e.op == PART_OP:
        return replace(e, op=name)  # it finds the attributes where they lie, by its mask
    mask = e.ins[3] if len(e.ins) > 3 else None
    return replace(e, op=name, ins=(*e.ins[:3], *(makers[mask].ins if mask else ())), attrs={})
