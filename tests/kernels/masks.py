"""Random mask predicates, the attributes of tokens that they read, and a kernel that writes a tile's test."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from specc.compiler.kernels.attention_ranges import Ranges
from specc.compiler.kernels.attention_text import TILE
from specc.compiler.kernels.mask_forms import HELPERS, tile_text
from specc.compiler.lower.pointwise import formula
from specc.compiler.masks import LIBRARY, expand
from specc.spec.expr import Expr

N_Q, N_K = 13, 11
NAMES = ("q.doc", "k.doc", "q.part", "k.part")
OWN = {name: f"a{i}" for i, name in enumerate(NAMES)}
KERNEL = """
@triton.jit
def tile_kernel(a0_ptr, a1_ptr, a2_ptr, a3_ptr, out_ptr, n_q, n_k, BLOCK: tl.constexpr):
    q_index, k_index = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    a0 = tl.load(a0_ptr + q_index, mask=q_index < n_q, other=0)
    a1 = tl.load(a1_ptr + k_index, mask=k_index < n_k, other=0)
    a2 = tl.load(a2_ptr + q_index, mask=q_index < n_q, other=0)
    a3 = tl.load(a3_ptr + k_index, mask=k_index < n_k, other=0)
    seen = seen_tile(q_index, k_index, n_q, n_k, a0, a1, a2, a3)
    tl.store(out_ptr + q_index * n_k + k_index, seen.to(tl.int64), mask=(q_index < n_q) & (k_index < n_k))
"""

BLOCK = 4
SIGHT_KERNEL = """
@triton.jit
def sight_kernel(a0_ptr, a1_ptr, a2_ptr, a3_ptr, out_ptr, n_q, n_k, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    own = out_ptr + tl.program_id(0) * 4
    begin, end = keys_in_sight(0, n_k, 0, n_q, n_k, a0_ptr, a1_ptr, a2_ptr, a3_ptr, BLOCK_Q, BLOCK_K)
    tl.store(own, begin.to(tl.int64))
    tl.store(own + 1, end.to(tl.int64))
    begin, end = queries_in_sight(0, n_q, 0, n_q, n_k, a0_ptr, a1_ptr, a2_ptr, a3_ptr, BLOCK_Q, BLOCK_K)
    tl.store(own + 2, begin.to(tl.int64))
    tl.store(own + 3, end.to(tl.int64))
"""


def predicates(n: int = 40) -> list[Expr]:
    """The library's masks, and random ones."""
    draw = random.Random(0)
    named = [expand(name.replace("(n)", "(3)"), {}, {}) for name in LIBRARY]
    return [*named, *(_claim(draw, 3) for _ in range(n))]


def _claim(draw: random.Random, depth: int) -> Expr:
    kind = draw.choice(["and", "or", "not", "compare", "compare"]) if depth else "compare"
    if kind == "compare":
        return Expr(draw.choice(["<", "<=", ">", ">=", "==", "!="]), args=(_number(draw, 2), _number(draw, 2)))
    return Expr(kind, args=tuple(_claim(draw, depth - 1) for _ in range(1 if kind == "not" else 2)))


def _number(draw: random.Random, depth: int) -> Expr:
    kind = draw.choice(["num", "attr", "attr", "+", "-", "*", "//", "%", "neg"]) if depth else "attr"
    if kind == "num":
        return Expr("num", draw.randrange(-3, 9))
    if kind == "attr":
        return Expr("attr", draw.choice(["q.index", "k.index", *NAMES]))
    if kind in ("//", "%"):
        return Expr(kind, args=(_number(draw, depth - 1), Expr("num", draw.choice([-3, 2, 4]))))
    return Expr(kind, args=tuple(_number(draw, depth - 1) for _ in range(1 if kind == "neg" else 2)))


def attributes(seed: int) -> dict[str, Tensor]:
    """Drawn attributes of one sequence, below zero too."""
    draw = torch.Generator().manual_seed(seed)
    return {n: torch.randint(-2, 4, (N_Q if n.startswith("q.") else N_K,), generator=draw) for n in NAMES}


def dense(e: Expr, given: Mapping[str, Tensor]) -> Tensor:
    values = {n: x[:, None] if n.startswith("q.") else x[None, :] for n, x in given.items()}
    values |= {"q.index": torch.arange(N_Q)[:, None], "k.index": torch.arange(N_K)[None, :]}
    seen = formula(e, values)
    return torch.broadcast_to(torch.as_tensor(seen), (N_Q, N_K)).bool()


def sight_file(e: Expr) -> str:
    """A kernel that writes what tiles may see; nothing if the predicate's form tells it all."""
    functions = Ranges(e, NAMES, False).functions()
    text = "\n\n".join([HELPERS, *functions, SIGHT_KERNEL])
    return f"import triton\nimport triton.language as tl\n\n\n{text}" if functions else ""


def tile_file(e: Expr) -> str:
    text = "\n\n".join([HELPERS, TILE, KERNEL]).replace("<TILE_ATTRIBUTES>", ", " + ", ".join(OWN.values()))
    return "import triton\nimport triton.language as tl\n\n\n" + text.replace("<PREDICATE>", tile_text(e, OWN))
