"""Seconds of a training step: the busiest pipeline rank, the pipeline's bubble, data parallelism and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.foresight.calls import CallTime, Cluster, call_time, exposed
from specc.compiler.foresight.memory import memory
from specc.compiler.foresight.model import Model
from specc.compiler.foresight.recipe import AGAIN, Recipe
from specc.compiler.foresight.work import BodyWork
from specc.compiler.schedule.split import split

OPTIMIZER = 30  # bytes that a step of AdamW reads and writes for each number

# Idle seconds of a pipeline rank, over those of one microbatch's work w and of the weight gradients g in it, for each
# other rank (arXiv:2104.04473 sec. 2.2; arXiv:2401.10241 table 1).
IDLE: Mapping[str, Callable[[float, float, int], float]] = {
    "gpipe": lambda w, g, chunks: w,
    "1f1b": lambda w, g, chunks: w,
    "interleaved": lambda w, g, chunks: w / chunks,
    "zb-h1": lambda w, g, chunks: w - 2 * g,
    "zb-h2": lambda w, g, chunks: w - 3 * g,
    "zb-v": lambda w, g, chunks: w - 3 * g,
}


@dataclass(frozen=True)
class Forecast:
    """Seconds of a step: of kernels, of what is sent and not hidden, of waiting in the pipeline, of the optimizer.

    `memory` are the bytes of the fullest rank by what they are for."""

    work: float
    sent: float
    bubble: float
    optimizer: float
    memory: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return self.work + self.sent + self.bubble + self.optimizer

    @property
    def nbytes(self) -> float:
        return sum(self.memory.values())


def forecast(model: Model, recipe: Recipe, cluster: Cluster) -> Forecast:
    """Predict a step. Raises SpecError where the model cannot be split so."""
    works = model.works(recipe)
    each = call_times(model, recipe, cluster)
    ranks = ranks_of(model.calls, each, recipe)
    busiest = max(ranks, key=lambda rank: sum(each[n].total for n in rank))
    total = sum(each[n].total for n in busiest)
    work = sum(each[n].work.forward + each[n].work.backward for n in busiest)
    weights = max(sum(works[n].weights for n in rank) for rank in ranks)
    once = _data(weights, total, recipe, cluster)
    return Forecast(
        recipe.microbatches * work, recipe.microbatches * (total - work) + once, _bubble(each, ranks, recipe),
        _optimizer(weights, recipe, cluster), memory(works, ranks, recipe, cluster.software),
    )  # fmt: skip


def call_times(model: Model, recipe: Recipe, cluster: Cluster) -> dict[str, CallTime]:
    """The time of each body's call; what is called once (embedding, head) is not done again in the backward."""
    calls = model.calls
    again = {n: AGAIN[recipe.recompute if calls.count(n) > 1 else "none"] for n in dict.fromkeys(calls)}
    works: Mapping[str, BodyWork] = model.works(recipe)
    return {n: call_time(works[n], recipe, cluster, a) for n, a in again.items()}


def ranks_of(calls: Sequence[str], each: Mapping[str, CallTime], recipe: Recipe) -> list[list[str]]:
    """The calls of each pipeline rank: stages as alike as can be, one after the other around the ranks."""
    begins = split([each[n].total for n in calls], recipe.pp * recipe.chunks)
    stages = [calls[a:b] for a, b in zip(begins, [*begins[1:], len(calls)], strict=True)]
    return [[n for stage in stages[r :: recipe.pp] for n in stage] for r in range(recipe.pp)]


def _bubble(each: Mapping[str, CallTime], ranks: Sequence[Sequence[str]], recipe: Recipe) -> float:
    """What a rank waits for the first microbatch to come, and for the last to return."""
    mean = sum(each[n].total for rank in ranks for n in rank) / recipe.pp
    weight = sum(each[n].work.weight for rank in ranks for n in rank) / recipe.pp
    return (recipe.pp - 1) * max(0.0, IDLE[recipe.schedule](mean, weight, recipe.chunks))


def _data(weights: float, window: float, recipe: Recipe, cluster: Cluster) -> float:
    """What data parallelism sends once a step, beside the work of a microbatch: gradients, and weights if ZeRO."""
    reduce, copies = cluster.software.reduce * weights, recipe.dp * recipe.cp
    if recipe.zero == 3:
        sent = cluster.seconds("all-reduce", reduce / recipe.shards, copies // recipe.shards, recipe.shards * recipe.tp)
    elif recipe.zero:
        sent = cluster.seconds("reduce-scatter", reduce, copies, recipe.tp)
        sent += cluster.seconds("all-gather", 2 * weights, copies, recipe.tp)
    else:
        sent = cluster.seconds("all-reduce", reduce, copies, recipe.tp)
    return exposed(sent, window, cluster.software.hidden_data)


def _optimizer(weights: float, recipe: Recipe, cluster: Cluster) -> float:
    kept = weights / (recipe.shards if recipe.zero else 1)
    return kept * OPTIMIZER / (cluster.device.bandwidth * 1e9 * cluster.device.stream)
