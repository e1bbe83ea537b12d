"""Attention of a part of the queries to parts of the keys: its kernels put together, against one softmax in fp64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specc.compiler.kernels.attention import TILES, Attention, make_attention
from specc.compiler.kernels.attention_part import blocks_of
from specc.compiler.kernels.made import Made
from specc.compiler.lower.pointwise import formula
from specc.compiler.lower.ring import NEVER, Ring, Seen, ring_attend
from specc.compiler.masks import expand
from specc.compiler.placement.types import Axis
from specc.spec.expr import Expr
from tests.kernels.interpreter import Guarded
from tests.kernels.opcheck import CHECKS, failed_checks
from tests.kernels.regions import loaded

BATCH, HEADS, KV_HEADS, E, F = 2, 4, 2, 20, 12
SHAPES = (HEADS, E), (KV_HEADS, E), (KV_HEADS, F), (HEADS, F)
WINDOWS = ("window(9)", "window(20) & causal", "window(17) & causal & document", "k.index - q.index <= 3")
TILE = (16, 16, 4)
PACKED = expand("causal & document", {}, {})


@dataclass(frozen=True)
class Meeting:
    """How many queries, which of the sequence is the first, and the same of each part of the keys."""

    queries: tuple[int, int]
    keys: tuple[tuple[int, int], ...]


OWN = Meeting((21, 40), ((21, 40), (33, 0)))  # queries at their own keys and at earlier ones
LATER = Meeting((19, 5), ((18, 24), (17, 60)))
ACROSS = Meeting((35, 30), ((9, 3), (37, 41)))  # few early keys, and some that begin between the queries
CASES = {
    torch.float32: (
        ("prefix & document", OWN), ("full", OWN), ("causal & document", LATER), ("causal", ACROSS),
        ("window(7)", ACROSS), ("window(9) & causal & document", OWN),
    ),
    torch.bfloat16: (("window(7)", ACROSS),),
}  # fmt: skip


def parts(folder: Path) -> list[dict[str, Any]]:
    """Errors of results and of gradients, as shares of their largest entries."""
    return [
        {"predicate": text, "dtype": str(dtype).removeprefix("torch."),
         **compared(expand(text, {}, {}), m, dtype, folder)}
        for dtype, cases in CASES.items() for text, m in cases
    ]  # fmt: skip


def wholes(folder: Path) -> list[dict[str, Any]]:
    """Errors of whole sequences under windows, of which tiles see few others, some of them none."""
    return [whole(expand(text, {}, {}), folder) for text in WINDOWS]


def whole(predicate: Expr, folder: Path) -> dict[str, Any]:
    names = tuple(sorted({str(n.value) for n in predicate.walk() if n.op == "attr"} - {"q.index", "k.index"}))
    made = make_attention(Attention(predicate, names, (E, F), E**-0.5, "a window"), torch.float32)
    loaded(made, folder).CONFIGS.update({kind: (TILE,) for kind in TILES})
    draw, at = torch.Generator().manual_seed(0), (75, 0)
    q, k, v, dy = (torch.randn(BATCH, at[0], *s, generator=draw) for s in SHAPES)
    given = {n: x for n, x in attributes(names, at, at, draw).items() if "first" not in n}
    y, lse = getattr(torch.ops.specc, made.name)(q, k, v, *given.values())
    back = getattr(torch.ops.specc, f"{made.name}_backward")(q, k, v, *given.values(), y, lse, dy)
    want = at_once(q, k, v, dense(predicate, given, at, at), dy)
    return {"forward": share(y, want[0]), "backward": max(map(share, back, want[1:])), "text": made.source}


def documents(folder: Path) -> list[dict[str, Any]]:
    """Errors of one document among others that fill tiles, whose numbers are all NaN: a tile of theirs that is gone
    over gives NaN."""
    return [
        {"predicate": text, "document": d, **alone(expand(text, {}, {}), d, folder)}
        for text in ("causal & document", "document", "chunk(16) & k.part == 0")
        for d in (0, 1)
    ]


def alone(predicate: Expr, document: int, folder: Path) -> dict[str, Any]:
    n = 32
    names = tuple(sorted({str(a.value) for a in predicate.walk() if a.op == "attr"} - {"q.index", "k.index"}))
    made = make_attention(Attention(predicate, names, (E, F), E**-0.5, "documents"), torch.float32)
    loaded(made, folder).CONFIGS.update({kind: (TILE,) for kind in TILES})
    draw, whose = torch.Generator().manual_seed(0), torch.arange(n) // 16
    given = {m: whose.expand(BATCH, n) if "doc" in m else torch.zeros(BATCH, n, dtype=torch.int64) for m in names}
    others = (whose != document)[None, :, None, None]
    q, k, v, dy = (torch.randn(BATCH, n, *s, generator=draw).masked_fill(others, math.nan) for s in SHAPES)
    y, lse = getattr(torch.ops.specc, made.name)(q, k, v, *given.values())
    back = getattr(torch.ops.specc, f"{made.name}_backward")(q, k, v, *given.values(), y, lse, dy)
    own = slice(document * 16, (document + 1) * 16)
    seen = dense(predicate, given, (n, 0), (n, 0))[:, own, own]
    want = at_once(*(x[:, own] for x in (q, k, v)), seen, dy[:, own])
    return {"forward": share(y[:, own], want[0]), "backward": max(map(share, (b[:, own] for b in back), want[1:]))}


def rings(folder: Path) -> list[dict[str, Any]]:
    """Errors of a ring of one rank, whose two halves meet themselves and one another by the kernel."""
    found: list[dict[str, Any]] = []
    for dtype in CASES:
        made = ring_file(dtype)
        loaded(made, folder).CONFIGS.update({kind: (TILE,) for kind in TILES})
        found.append({"dtype": str(dtype).removeprefix("torch."), **ring_of_one(made.name, dtype, torch.device("cpu"))})
    return found


def ring_file(dtype: torch.dtype) -> Made:
    attention = Attention(PACKED, ("q.doc", "k.doc"), (E, F), E**-0.5, "a ring", is_part=True)
    return make_attention(attention, dtype)


def ring_of_one(name: str, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Errors of the loaded file of a ring, forward and backward."""
    n, draw = 42, torch.Generator().manual_seed(0)
    q, k, v, dy = (torch.randn(BATCH, n, *s, generator=draw, dtype=torch.float64).to(dtype) for s in SHAPES)
    documents = torch.randint(0, 2, (BATCH, n), generator=draw).cumsum(-1) // 5
    want = at_once(q, k, v, dense(PACKED, {"q.doc": documents, "k.doc": documents}, (n, 0), (n, 0)), dy)
    leaves = [x.to(device).requires_grad_() for x in (q, k, v)]
    with device:  # what a ring makes of its own is made there
        own = documents.to(device)
        seen = Seen(1, 2, n, torch.tensor([0]), True, PACKED, {"q.doc": own, "k.doc": own})
        y = ring_attend(*leaves, Ring(Axis("cp", 1), None, seen, blocks_of(name)))
        got = [x.cpu() for x in (y.detach(), *torch.autograd.grad(y, leaves, dy.to(device)))]
    return {"forward": share(got[0], want[0]), "backward": max(map(share, got[1:], want[1:]))}


def compared(predicate: Expr, m: Meeting, dtype: torch.dtype, folder: Path) -> dict[str, Any]:
    names = tuple(sorted({str(n.value) for n in predicate.walk() if n.op == "attr"} - {"q.index", "k.index"}))
    made = make_attention(Attention(predicate, names, (E, F), E**-0.5, "a pair", is_part=True), dtype)
    module, guard = loaded(made, folder), Guarded()
    module.CONFIGS.update({kind: (TILE,) for kind in TILES})
    module.torch = guard  # type: ignore[attr-defined]
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return guard.guarded(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype))

    q, dy = drawn(BATCH, m.queries[0], HEADS, E), drawn(BATCH, m.queries[0], HEADS, F)
    ks = [drawn(BATCH, n, KV_HEADS, E) for n, _ in m.keys]
    vs = [drawn(BATCH, n, KV_HEADS, F) for n, _ in m.keys]
    given = [attributes(names, m.queries, at, draw) for at in m.keys]
    for other in given[1:]:
        other.update({n: x for n, x in given[0].items() if n.startswith("q.")})
    got = by_parts(made.name, q, list(zip(ks, vs, [list(a.values()) for a in given], strict=True)), dy)
    seen = torch.cat([dense(predicate, a, m.queries, at) for a, at in zip(given, m.keys, strict=True)], -1)
    want = at_once(q, torch.cat(ks, 1), torch.cat(vs, 1), seen, dy)
    module.torch = torch  # type: ignore[attr-defined]
    return {
        "forward": share(got[0], want[0]), "backward": max(map(share, got[1:], want[1:])),
        "untouched": guard.untouched(), "sees_nothing": bool((~seen.any(-1)).any()),
        "checked": checked(made.name, [q, ks[0], vs[0], *given[0].values()], dy),
    }  # fmt: skip


def attributes(
    names: tuple[str, ...], queries: tuple[int, int], keys: tuple[int, int], draw: torch.Generator
) -> dict[str, Tensor]:  # fmt: skip
    """What the op takes behind q, k and v: the first indices, and drawn attributes."""
    firsts = {"q.first": torch.tensor([queries[1]]), "k.first": torch.tensor([keys[1]])}
    lengths = {"q": queries[0], "k": keys[0]}
    return firsts | {n: torch.randint(-1, 2, (BATCH, lengths[n[0]]), generator=draw) for n in names}


def dense(predicate: Expr, given: Mapping[str, Tensor], queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
    """Who sees whom, [B queries keys]."""
    values = {n: x[:, :, None] if n.startswith("q.") else x[:, None, :] for n, x in given.items() if "first" not in n}
    values["q.index"] = torch.arange(queries[1], queries[1] + queries[0])[:, None]
    values["k.index"] = torch.arange(keys[1], keys[1] + keys[0])[None, :]
    found = torch.as_tensor(formula(predicate, values))
    return found.expand(BATCH, queries[0], keys[0]).bool()


def by_parts(name: str, q: Tensor, met: list[tuple[Tensor, Tensor, list[Tensor]]], dy: Tensor) -> list[Tensor]:
    """The result of queries that meet parts of the keys one by one, and the gradients of queries, keys and values."""
    found = [getattr(torch.ops.specc, name)(q, k, v, *rest) for k, v, rest in met]
    assert all(bool(((z > NEVER / 2) | (y == 0).all(-1).transpose(1, 2)).all()) for y, z in found)
    lse = torch.logsumexp(torch.stack([z for _, z in found]), 0)
    y = torch.stack([y * (z - lse).exp().transpose(1, 2)[..., None] for y, z in found]).sum(0)
    delta = (y * dy.float()).sum(-1).transpose(1, 2)
    back = [getattr(torch.ops.specc, f"{name}_backward")(q, k, v, *rest, dy, lse, delta) for k, v, rest in met]
    assert {x.dtype for x in (y, *back[0])} == {torch.float32}
    return [y, torch.stack([b[0] for b in back]).sum(0), *(torch.cat([b[i] for b in back], 1) for i in (1, 2))]


def at_once(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, dy: Tensor) -> list[Tensor]:
    """The same by a softmax over all keys in fp64; a query that sees nothing has zeros."""
    q, k, v = leaves = [x.double().requires_grad_() for x in (q, k, v)]
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 2) for x in (k, v))
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) * E**-0.5
    p = torch.where(seen[:, None], torch.where(seen[:, None], scores, torch.finfo(scores.dtype).min).softmax(-1), 0.0)
    y = torch.einsum("bhqk,bkhf->bqhf", p, v)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.double())]


def share(got: Tensor, want: Tensor) -> float:
    """Infinite where something was not written: the greater of a number and NaN may be the number."""
    found = float((got.double() - want).abs().max() / want.abs().max().clamp(min=1e-30))
    return math.inf if math.isnan(found) else found


def checked(name: str, given: list[Tensor], dy: Tensor) -> list[str]:
    """Which of torch's own checks of the two ops fail."""
    y, lse = getattr(torch.ops.specc, name)(*given)
    known = {name: given, f"{name}_backward": [*given, dy, lse, (y * dy.float()).sum(-1).transpose(1, 2).contiguous()]}
    return failed_checks(known, CHECKS)
