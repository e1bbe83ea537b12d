"""From one layout to another: a list of steps along one axis each, used by cost and lowering alike.

Several axes may split one dim; the outer axis cuts first. So where an outer axis changes on a dim, the inner ones that
split it too are gathered before and cut again after."""

from __future__ import annotations

from dataclasses import dataclass

from specc.compiler.placement.types import Layout, P, Place, R, V


@dataclass(frozen=True)
class Move:
    """A change of type along one axis.

    forward / backward collective: S->R all-gather / none; S->V all-gather / reduce-scatter; P->S reduce-scatter /
    all-gather; P->R all-reduce / none; P->V all-reduce / all-reduce; S->S all-to-all / all-to-all; R->V none /
    all-reduce; R->S none / all-gather; V->S, V->R none / none (the gradient's cut, or its sum on one rank)."""

    axis: int
    src: Place
    dst: Place


def moves(src: Layout, dst: Layout) -> list[Move] | None:
    """The steps in order, innermost axis first where gathered and last where cut; None if there is no way (R -> P)."""
    if any(t == P != f for f, t in zip(src, dst, strict=True)):
        return None
    dirty = _dirty(src, dst)
    steps: list[Move] = []
    mid = list(src)
    for a in reversed(range(len(src))):
        f, t = src[a], dst[a]
        if not dirty[a]:
            continue
        if f.kind == "S":
            across = t.kind == "S" and t != f and _alone(src, dst, a, {f.dim, t.dim})
            mid[a] = t if across or t in (R, V) else V  # what is cut again keeps its gradient in parts until then
            steps.append(Move(a, f, mid[a]))
        elif f == P and t != P:
            scatter = t.kind == "S" and _alone(src, dst, a, {t.dim})
            mid[a] = t if scatter or t in (R, V) else R
            steps.append(Move(a, f, mid[a]))
    steps += [Move(a, mid[a], dst[a]) for a in range(len(src)) if mid[a] != dst[a]]
    return steps


def _dirty(src: Layout, dst: Layout) -> list[bool]:
    """The axes that change, and the inner ones that split a dim on which an outer one changes."""
    changed = {(t.dim, a) for a, pair in enumerate(zip(src, dst, strict=True)) if pair[0] != pair[1]
               for t in pair if t.kind == "S"}  # fmt: skip
    return [
        src[a] != dst[a] or (src[a].kind == "S" and any(d == src[a].dim and b < a for d, b in changed))
        for a in range(len(src))
    ]


def _alone(src: Layout, dst: Layout, axis: int, dims: set[int]) -> bool:
    """Whether no other axis splits one of these dims, before or after; an outer one that stays may."""
    return not any(
        b != axis and any(p.kind == "S" and p.dim in dims for p in (src[b], dst[b])) and (b > axis or src[b] != dst[b])
        for b in range(len(src))
    )
