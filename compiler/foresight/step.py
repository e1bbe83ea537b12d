"""A training step: the busiest pipeline rank, the pipeline's bubble, data parallelism, the optimizer; and memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.foresight.calls import CallTime, Cluster, call_time, exposed, tensors
from specc.compiler.foresight.host import MOMENTS, moments_wait, values_wait
from specc.compiler.foresight.kernels import Both
from specc.compiler.foresight.memory import fullest, memories, on_host, saved_bytes
from specc.compiler.foresight.model import Model
from specc.compiler.foresight.pipeline import StageTime, bubble, simulated_bubble
from specc.compiler.foresight.recipe import AGAIN, Recipe
from specc.compiler.foresight.stages import stages_of
from specc.compiler.foresight.update import MOMENT, MOVED, NO_OTHER, Update
from specc.compiler.foresight.work import BodyWork
from specc.spec.hardware import Format, Software


@dataclass(frozen=True)
class Forecast:
    """Seconds of a step: of kernels, of what is sent and not hidden, of waiting in the pipeline, of the optimizer, of
    waiting for the host's memory.

    `memory` are the bytes of the fullest rank by what they are for, `first_rank` those of a pipeline's first,
    `on_host` those that the rank with most of these has in the host's memory."""

    work: float
    sent: float
    bubble: float
    optimizer: float
    host: float
    memory: Mapping[str, float]
    first_rank: Mapping[str, float]
    on_host: float = 0.0

    @property
    def seconds(self) -> float:
        return self.work + self.sent + self.bubble + self.optimizer + self.host

    @property
    def nbytes(self) -> float:
        return sum(self.memory.values())


def forecast(model: Model, recipe: Recipe, cluster: Cluster, exact: bool = True) -> Forecast:
    """Predict a step. Raises SpecError where the model does not split so.

    Without `exact`, which is fast, stages have equal numbers of calls and pipelines wait as a formula says."""
    works, each = model.works(recipe), call_times(model, recipe, cluster)
    stages, where = stages_of(model.calls, each, works, recipe, cluster.software if exact else None)
    ranks = [[n for stage, at in zip(stages, where, strict=True) if at == r for n in stage] for r in range(recipe.pp)]
    busy = max(ranks, key=lambda rank: sum(each[n].total for n in rank))
    done = sum((each[n] for n in busy), CallTime(Both(), Both()))
    each_copies = (_copies(Counter(rank), works, recipe, cluster.software) for rank in ranks)
    copies = max(each_copies, key=lambda c: c[0].numbers + c[1].numbers)
    times = [_stage_time([each[n] for n in stage]) for stage in stages]
    width = max(works[n].width for n in model.calls)
    idle = simulated_bubble(times, recipe, transfer(width, recipe, cluster)) if exact else bubble(times, recipe)
    numbers = sum(c.numbers / (c.shards if recipe.zero else 1) for c in copies)
    spared = sum(c.update.spared / (c.shards if recipe.zero else 1) for c in copies)
    flops = sum(c.update.flops(model.optimizer, c.shards if recipe.zero else 1) for c in copies)
    optimizer = _optimizer(numbers, spared, flops, copies, recipe.format, cluster)
    moments = MOMENTS * numbers - MOMENT * spared
    sent = recipe.microbatches * (done.total - done.busy) + _data(copies, done, recipe, cluster)
    saved = sum(saved_bytes(works[n], recipe, cluster.software) for n in busy) if recipe.on_host else 0.0
    wait = values_wait(saved, done.forward, done.backward, recipe, cluster)
    held = memories(works, ranks, recipe, cluster.software)
    return Forecast(
        recipe.microbatches * done.busy, sent, idle, optimizer,
        recipe.microbatches * wait + moments_wait(moments, optimizer, recipe, cluster),
        fullest(held), held[0], on_host(works, ranks, recipe, cluster.software),
    )  # fmt: skip


def call_times(model: Model, recipe: Recipe, cluster: Cluster) -> dict[str, CallTime]:
    """The time of each body's call; what is called once (embedding, head) is not done again in the backward."""
    calls = model.calls
    again = {n: AGAIN[recipe.recompute if calls.count(n) > 1 else "none"] for n in dict.fromkeys(calls)}
    works = model.works(recipe)
    return {n: call_time(works[n], recipe, cluster, a) for n, a in again.items()}


def _stage_time(calls: Sequence[CallTime]) -> StageTime:
    return StageTime(sum(c.forward for c in calls), sum(c.backward for c in calls), sum(c.work.weight for c in calls))


def transfer(width: float, recipe: Recipe, cluster: Cluster) -> Callable[[int, int], float]:
    """Seconds from a pipeline rank to another; the ranks of a pipeline are as far apart as its stages have devices."""
    stride, node = recipe.devices // recipe.pp, cluster.device.node

    def seconds(source: int, target: int) -> float:
        link = cluster.near if source * stride // node == target * stride // node else cluster.far
        return width / (link.bandwidth * link.pair * 1e9) + link.latency * 1e-6

    return seconds


@dataclass(frozen=True)
class Copies:
    """Numbers of trained parameters of which `size` ranks have a copy, `stride` devices apart; `shards` ranks share
    them. They are in so many `tensors`."""

    numbers: float
    size: int
    stride: int
    shards: int
    tensors: int = 0
    update: Update = NO_OTHER


def _copies(
    calls: Mapping[str, int], works: Mapping[str, BodyWork], recipe: Recipe, software: Software
) -> tuple[Copies, Copies]:
    """Of a pipeline rank that calls bodies so often: what all data parallel ranks have, and the experts, of which fewer
    ranks have a copy."""
    each, size = [(works[name], times) for name, times in calls.items()], recipe.dp * recipe.cp
    experts = sum((w.experts - w.frozen_experts) * n for w, n in each)
    others = sum(w.trained * n for w, n in each) - experts
    update = sum((w.update * n for w, n in each), NO_OTHER)
    of_experts = sum((w.experts_update * n for w, n in each), NO_OTHER)
    return (
        Copies(others, size, recipe.tp, recipe.shards, sum(tensors(w, software) * n for w, n in each), update),
        Copies(experts, max(1, size // recipe.ep), recipe.tp * recipe.ep, recipe.expert_shards, update=of_experts),
    )


def _optimizer(
    numbers: float, spared: float, flops: float, each: Sequence[Copies], form: Format, cluster: Cluster
) -> float:
    """Seconds to update so many numbers; gradients are clipped by all ranks that have them. Products run at the rate of
    large ones, and what ranks exchange to make matrices orthogonal is not counted."""
    device, software = cluster.device, cluster.software
    moved = software.updates * numbers + software.clips * sum(c.numbers for c in each) - MOVED * MOMENT * spared
    products = flops / (device.peak[form] * 1e12 * device.product[form])
    return moved / (device.bandwidth * 1e9 * device.stream) + products


def _data(each: Sequence[Copies], beside: CallTime, recipe: Recipe, cluster: Cluster) -> float:
    """What data parallelism sends once a step and does not hide: gradients, and weights if ZeRO.

    Gradients alone leave beside the backward of the last microbatch, weights come beside the forward of the next."""
    software, sent = cluster.software, sum(_sent(c, recipe, cluster) for c in each if c.numbers)
    if recipe.zero == 1 and software.sums_whole:
        return sent + sum(c.tensors * c.shards for c in each if c.shards > 1) * cluster.device.launch * 1e-6
    return exposed(sent, beside.total if recipe.zero else beside.backward, software.hidden_data)


def _sent(c: Copies, recipe: Recipe, cluster: Cluster) -> float:
    software, reduce = cluster.software, cluster.software.reduce * c.numbers
    if recipe.zero == 3:
        return cluster.seconds("all-reduce", reduce / c.shards, c.size // c.shards, c.shards * c.stride)
    if not recipe.zero:
        times = max(1, math.ceil(c.numbers / software.bucket / 1e6)) if software.bucket else 1
        return times * cluster.seconds("all-reduce", reduce / times, c.size, c.stride)
    times = recipe.microbatches if recipe.zero == 2 else 1
    gather = cluster.seconds("all-gather", 2 * c.numbers, c.size, c.stride)
    kind = "all-reduce" if software.sums_whole else "reduce-scatter"
    return times * cluster.seconds(kind, reduce, c.size, c.stride) + gather
