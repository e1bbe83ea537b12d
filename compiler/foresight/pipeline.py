"""Seconds that a pipeline adds to the work of its busiest rank: by a formula, or by the simulation of its schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.foresight.recipe import Recipe
from specc.compiler.schedule.schedules import SCHEDULES, pipeline
from specc.compiler.schedule.simulate import simulate
from specc.compiler.schedule.slots import Slot

ROUNDS = (2, 4)  # microbatches a rank that are simulated, and one more: the others are as that one
LARGE = 8192  # stages times ranks from which the fewer will do

# Idle seconds of a rank for each other rank, of w seconds of work a microbatch and g of these for weight gradients
# (arXiv:2104.04473 sec. 2.2; arXiv:2401.10241 table 1; zb-2p is its search with the memory of two pipelines; those in
# the form of a V wait for the first microbatch to come half the way).
IDLE: Mapping[str, Callable[[float, float, int], float]] = {
    "gpipe": lambda w, g, chunks: w,
    "1f1b": lambda w, g, chunks: w,
    "interleaved": lambda w, g, chunks: w / chunks,
    "zb-h1": lambda w, g, chunks: w - 2 * g,
    "zb-2p": lambda w, g, chunks: 0.0,
    "zb-v": lambda w, g, chunks: w - 2.5 * g,
    "dualpipe-v": lambda w, g, chunks: w - 2.5 * g,
}


@dataclass(frozen=True)
class StageTime:
    """Seconds of a stage on a microbatch; `weight` is the part of the backward that gives weight gradients."""

    forward: float
    backward: float
    weight: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


def busiest(stages: Sequence[StageTime], ranks: int, where: Sequence[int]) -> float:
    """Seconds of work a microbatch on the rank that has most."""
    return max(sum(t.total for t, at in zip(stages, where, strict=True) if at == r) for r in range(ranks))


def bubble(stages: Sequence[StageTime], recipe: Recipe) -> float:
    """By the formula of the schedule, for stages that are all alike."""
    work, weight = (sum(each) / recipe.pp for each in zip(*((t.total, t.weight) for t in stages), strict=True))
    return (recipe.pp - 1) * max(0.0, IDLE[recipe.schedule](work, weight, recipe.chunks))


def simulated_bubble(stages: Sequence[StageTime], recipe: Recipe, transfer: Callable[[int, int], float]) -> float:
    """What the schedule takes beyond the work of its busiest rank.

    Of many microbatches some are simulated; each round of the others waits as the last of those: 1F1B for what is sent
    back and forth between neighbours, every time. One in which ranks catch up with the busiest says none."""
    if recipe.pp == 1 or recipe.schedule not in SCHEDULES:
        return bubble(stages, recipe)
    most = ROUNDS[recipe.pp**2 * recipe.chunks < LARGE] * recipe.pp
    if recipe.microbatches <= most:
        return _waits(stages, recipe, recipe.microbatches, transfer)
    less, more = (_waits(stages, recipe, n, transfer) for n in (most, most + recipe.pp))
    return more + (recipe.microbatches - most - recipe.pp) / recipe.pp * max(0.0, more - less)


def _waits(
    stages: Sequence[StageTime], recipe: Recipe, microbatches: int, transfer: Callable[[int, int], float]
) -> float:
    table, where = pipeline(recipe.schedule, recipe.pp, microbatches, recipe.chunks)

    def seconds(slot: Slot) -> float:
        t = stages[slot.stage]
        return {"F": t.forward, "B": t.backward, "I": t.backward - t.weight, "W": t.weight}[slot.kind]

    whole = simulate(table, where, seconds, transfer).seconds
    return whole - microbatches * busiest(stages, recipe.pp, where)
