"""Bytes of the fullest pipeline rank by what they are for, from the values that bodies save and the schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from specc.compiler.foresight.host import MOMENTS, moments_left, saved_left
from specc.compiler.foresight.recipe import ITEMSIZE, Recipe
from specc.compiler.foresight.update import MOMENT
from specc.compiler.foresight.work import BodyWork
from specc.compiler.schedule.schedules import pipeline
from specc.compiler.schedule.slots import Slot
from specc.spec.hardware import Software

STEADY = 3  # times the ranks: microbatches behind which more keep no more
# Of schedules without weight halves, microbatches whose values rank r of p keeps at once, of m, with c stages a rank.
ALIVE: Mapping[str, Callable[[int, int, int, int], float]] = {
    "gpipe": lambda r, p, m, c: m,
    "1f1b": lambda r, p, m, c: min(m, p - r),
    "interleaved": lambda r, p, m, c: min(m * c, (c - 1) * p + 2 * (p - r - 1) + 1) / c,
    "zb-2p": lambda r, p, m, c: min(m, 2 * (p - r) - 1),
}


def fullest(ranks: Sequence[dict[str, float]]) -> dict[str, float]:
    """The parts of the rank that takes most."""
    return max(ranks, key=lambda parts: sum(parts.values()))


def memories(
    works: Mapping[str, BodyWork], ranks: Sequence[Sequence[str]], recipe: Recipe, software: Software
) -> list[dict[str, float]]:
    """The memory of the ranks of a pipeline, from the first on; of those that call the same the first and the last.
    `ranks` name the bodies that each calls."""
    repeated = _repeated(ranks)
    return [_rank(r, ranks[r], works, repeated, recipe, software) for r in _ends(ranks)]


def _rank(
    r: int, calls: Sequence[str], works: Mapping[str, BodyWork], repeated: set[str], recipe: Recipe, software: Software
) -> dict[str, float]:
    kept, trained = ({z: _numbers(calls, works, recipe, z, t) for z in (1, 2, 3)} for t in (False, True))
    wide = 0.0 if any(works[c].narrow for c in calls) else kept[1] - trained[1]
    each = _each(calls, works, repeated, recipe, software)
    saved = _saved(r, calls, each, works, recipe)
    weights, gradients, moments = state_bytes(recipe, software)
    spared = 0.0 if recipe.moments_on_host else _spared(calls, works, recipe)
    return {
        "weights": weights * kept[3],
        "gradients": gradients * trained[2],
        "optimizer": moments_left(moments, recipe) * trained[1] - spared + master_bytes(recipe, software) * wide,
        "activations": saved_left(saved, max(each.values()), recipe),
        "work space": max(_work_space(works[c], recipe, software, c in repeated) for c in each),
    }


def on_host(
    works: Mapping[str, BodyWork], ranks: Sequence[Sequence[str]], recipe: Recipe, software: Software
) -> float:  # fmt: skip
    """Bytes that the rank with most has in the host's memory."""
    if not recipe.on_host and not recipe.moments_on_host:
        return 0.0
    repeated = _repeated(ranks)

    def held(r: int, calls: Sequence[str]) -> float:
        saved = _saved(r, calls, _each(calls, works, repeated, recipe, software), works, recipe)
        moments = MOMENTS * _numbers(calls, works, recipe, 1, trained=True) - _spared(calls, works, recipe)
        return recipe.on_host * saved + (moments if recipe.moments_on_host else 0.0)

    return max(held(r, ranks[r]) for r in _ends(ranks))


def _repeated(ranks: Sequence[Sequence[str]]) -> set[str]:
    """The bodies that are called more than once."""
    return {name for name, times in Counter(name for rank in ranks for name in rank).items() if times > 1}


def _ends(ranks: Sequence[Sequence[str]]) -> list[int]:
    """Of ranks that call the same the first and the last, of which one has most."""
    first = {tuple(rank): r for r, rank in reversed(list(enumerate(ranks)))}
    last = {tuple(rank): r for r, rank in enumerate(ranks)}
    return sorted({*first.values(), *last.values()})


def _numbers(
    calls: Sequence[str], works: Mapping[str, BodyWork], recipe: Recipe, zero: int, trained: bool = False
) -> float:  # fmt: skip
    """Numbers of parameters (of those that are trained) that a rank keeps of what ZeRO splits from this stage on."""
    experts = sum(works[c].experts - works[c].frozen_experts * trained for c in calls)
    others = sum(works[c].weights - works[c].frozen * trained for c in calls) - experts
    return others / recipe.shards + experts / recipe.expert_shards if recipe.zero >= zero else others + experts


def _spared(calls: Sequence[str], works: Mapping[str, BodyWork], recipe: Recipe) -> float:
    """Bytes of moments that the optimizer's kind keeps fewer of on a rank than AdamW."""
    others, experts = (sum(u.spared for u in own) for own in (
        [works[c].update for c in calls], [works[c].experts_update for c in calls],
    ))  # fmt: skip
    shards, expert_shards = (recipe.shards, recipe.expert_shards) if recipe.zero else (1, 1)
    return (8 if recipe.format == "fp64" else MOMENT) * (others / shards + experts / expert_shards)


def _each(
    calls: Sequence[str], works: Mapping[str, BodyWork], repeated: set[str], recipe: Recipe, software: Software
) -> dict[str, float]:
    return {c: saved_bytes(works[c], recipe if c in repeated else None, software) for c in dict.fromkeys(calls)}


def _saved(
    r: int, calls: Sequence[str], each: Mapping[str, float], works: Mapping[str, BodyWork], recipe: Recipe
) -> float:  # fmt: skip
    """Bytes that the calls of a rank keep for their backward, of all microbatches that wait at once for it or for its
    weight half."""
    saved, half = sum(each[c] for c in calls), sum(works[c].half for c in calls) * ITEMSIZE[recipe.format]
    if recipe.schedule in ALIVE:
        return ALIVE[recipe.schedule](r, recipe.pp, recipe.microbatches, recipe.chunks) * saved
    steady = min(recipe.microbatches, STEADY * recipe.pp)
    return max(a * saved + b * half for a, b in waiting(recipe.schedule, recipe.pp, steady, recipe.chunks)[r])


@cache
def waiting(schedule: str, ranks: int, microbatches: int, chunks: int) -> tuple[tuple[tuple[float, float], ...], ...]:
    """For each rank how many microbatches of all its stages wait at once for their backward, and for its weight half:
    all pairs of which none has less of both."""
    table, _ = pipeline(schedule, ranks, microbatches, chunks)
    return tuple(_most(slots, chunks) for slots in table)


def _most(slots: Sequence[Slot], chunks: int) -> tuple[tuple[float, float], ...]:
    alive, half, most = 0, 0, dict[int, int]()
    for slot in slots:
        alive += {"F": 1, "B": -1, "I": -1, "W": 0}[slot.kind]
        half += {"F": 0, "B": 0, "I": 1, "W": -1}[slot.kind]
        most[half] = max(most.get(half, 0), alive)
    best = [(a, h) for h, a in most.items() if all(a > other for more, other in most.items() if more > h)]
    return tuple((a / chunks, h / chunks) for a, h in best)


def state_bytes(recipe: Recipe, software: Software) -> tuple[int, int, int]:
    """Bytes of a number's weight, gradient and optimizer state; wide formats have no second weight."""
    wide = {"fp32": 4, "fp64": 8}.get(recipe.format)
    return (wide, wide, 2 * wide) if wide else (software.weights, software.gradients, software.moments)


def master_bytes(recipe: Recipe, software: Software) -> int:
    """Bytes of a number's master weight beside that of compute; `moments` of software counts them."""
    return 0 if recipe.format in ("fp32", "fp64") else max(0, software.moments - MOMENTS)


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
