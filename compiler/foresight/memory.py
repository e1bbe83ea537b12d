"""Bytes of the fullest pipeline rank by what they are for, from the values that bodies save and the schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from specc.compiler.foresight.host import moments_left, saved_left
from specc.compiler.foresight.recipe import ITEMSIZE, Recipe
from specc.compiler.foresight.work import BodyWork
from specc.spec.hardware import Software

# Microbatches whose values a pipeline rank keeps at once at most, of p ranks and m microbatches, with c stages a rank.
ALIVE: Mapping[str, Callable[[int, int, int, int], float]] = {
    "gpipe": lambda r, p, m, c: m,
    "1f1b": lambda r, p, m, c: min(m, p - r),
    "interleaved": lambda r, p, m, c: min(m * c, (c - 1) * p + 2 * (p - r - 1) + 1) / c,
    "zb-h1": lambda r, p, m, c: min(m, p - r),
    "zb-2p": lambda r, p, m, c: min(m, 2 * (p - r) - 1),
    "zb-v": lambda r, p, m, c: min(m, p),
    "dualpipe-v": lambda r, p, m, c: min(m, p + 0.5),
}


def fullest(ranks: Sequence[dict[str, float]]) -> dict[str, float]:
    """The parts of the rank that takes most."""
    return max(ranks, key=lambda parts: sum(parts.values()))


def memories(
    works: Mapping[str, BodyWork], ranks: Sequence[Sequence[str]], recipe: Recipe, software: Software
) -> list[dict[str, float]]:
    """The memory of the ranks of a pipeline, from the first on; of those that call the same the first. `ranks` name the
    bodies that each calls."""
    calls = Counter(name for rank in ranks for name in rank)
    repeated = {name for name, times in calls.items() if times > 1}
    first = {tuple(rank): r for r, rank in reversed(list(enumerate(ranks)))}  # of ranks alike the first keeps most
    return [_rank(r, ranks[r], works, repeated, recipe, software) for r in sorted(first.values())]


def _rank(
    r: int, calls: Sequence[str], works: Mapping[str, BodyWork], repeated: set[str], recipe: Recipe, software: Software
) -> dict[str, float]:
    times = Counter(calls)
    experts = sum(n * works[c].experts for c, n in times.items())
    others = sum(n * works[c].weights for c, n in times.items()) - experts
    alive = ALIVE[recipe.schedule](r, recipe.pp, recipe.microbatches, recipe.chunks)
    each = {c: saved_bytes(works[c], recipe if c in repeated else None, software) for c in times}
    saved = alive * sum(n * each[c] for c, n in times.items())
    kept = {z: others / recipe.shards + experts / recipe.expert_shards if recipe.zero >= z else others + experts
            for z in (1, 2, 3)}  # fmt: skip
    weights, gradients, moments = state_bytes(recipe, software)
    return {
        "weights": weights * kept[3],
        "gradients": gradients * kept[2],
        "optimizer": moments_left(moments, recipe) * kept[1],
        "activations": saved_left(saved, max(each.values()), recipe),
        "work space": max(_work_space(works[c], recipe, software, c in repeated) for c in times),
    }


def state_bytes(recipe: Recipe, software: Software) -> tuple[int, int, int]:
    """Bytes of a number's weight, gradient and optimizer state; wide formats have no second weight."""
    wide = {"fp32": 4, "fp64": 8}.get(recipe.format)
    return (wide, wide, 2 * wide) if wide else (software.weights, software.gradients, software.moments)


def saved_bytes(work: BodyWork, recipe: Recipe | None, software: Software) -> float:
    """What a call keeps from its forward to its backward, with the plan's recompute (None: nothing is done again)."""
    s = work.saved
    scores = s.scores * software.scores if software.attention == "unfused" else 0.0
    values = s.values + s.masks + (0.0 if software.fused else s.steps) + s.gathered * software.keeps_gathered
    rule = {
        "none": values + scores, "attention": values, "half-products": s.entered + s.products / 2 + s.attended,
        "half-layers": (s.entered + values + scores) / 2, "full": s.entered,
    }  # fmt: skip
    return rule[recipe.recompute if recipe else "none"]


def _work_space(work: BodyWork, recipe: Recipe, software: Software, is_repeated: bool) -> float:
    """What is alive during a call beyond what waits: logits, what is done again, weights made whole for it."""
    logits = sum(k.m * k.n for k in work.kernels if k.kind == "loss") * software.logits_alive
    again = saved_bytes(work, None, software) if is_repeated and recipe.recompute != "none" else 0.0
    gathered = 2 * ITEMSIZE[recipe.format] + software.reduce  # those of the next call are on their way
    whole = work.weights * gathered if recipe.zero == 3 else 0.0
    return logits + again + whole
