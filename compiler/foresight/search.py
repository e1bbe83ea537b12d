"""The search for the fastest plan of a model on a cluster: every way to share it out, the best of them exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from specc.compiler.foresight.calls import Cluster
from specc.compiler.foresight.model import Model
from specc.compiler.foresight.pipeline import IDLE
from specc.compiler.foresight.recipe import Recipe, Recompute
from specc.compiler.foresight.step import Forecast, forecast
from specc.compiler.hardware.tables import usable, usable_host
from specc.compiler.schedule.schedules import SCHEDULES
from specc.compiler.types import size_of
from specc.spec.errors import SpecError
from specc.spec.hardware import Format

MOST_SEQUENCES, MOST_TOKENS = 8, 98_304  # of a rank at a time: the larger of both bounds
SEARCHED = tuple(n for n in SCHEDULES if n in IDLE and n != "gpipe")  # which 1f1b is never slower than
MOST_CHUNKS = 8  # stages of a pipeline rank
MOST_STAGES = 128
LEAST_TOKENS = 1024  # of a sequence on a rank of context parallelism
CLOSELY = 16  # of the best plans are predicted exactly
HOST = ((0.5, False), (1.0, False), (0.0, True), (0.5, True), (1.0, True))  # shares of saved values, and moments there
TRIED = 64  # plans that do not fit are tried with the host's memory


@dataclass(frozen=True)
class Asked:
    """What to search for: a step of `sequences` of `tokens` on so many devices. `pins` hold parts of recipes fixed,
    `offload` the share of saved values and whether moments are in the host's memory."""

    model: Model
    cluster: Cluster
    devices: int
    sequences: int
    tokens: int
    form: Format = "bf16"
    pins: Mapping[str, int | str] = field(default_factory=dict)
    limit: float = math.inf
    offload: tuple[float, bool] | None = None

    @property
    def capacity(self) -> float:
        """Bytes of a device that a plan may take: those of the device, or the user's `limit`."""
        return min(self.limit, usable(self.cluster.device))


@dataclass(frozen=True)
class Plan:
    """A recipe with what it takes."""

    recipe: Recipe
    forecast: Forecast


@dataclass(frozen=True)
class Found:
    """The plans that fit, fastest first; those that do not, smallest first; how many do not split so."""

    fit: list[Plan]
    over: list[Plan]
    refused: int


def search(asked: Asked) -> Found:
    """Every plan, roughly; then the best ones exactly."""
    every: list[Plan] = []
    refused = 0
    for recipe in recipes(asked):
        try:
            every.append(Plan(recipe, forecast(asked.model, recipe, asked.cluster, exact=False)))
        except SpecError:
            refused += 1
    fit, over = _parted(every, asked)
    if asked.cluster.host is not None and asked.offload is None:
        fit, over = _parted([*every, *_with_host(fit, over, asked)], asked)
    closely = [Plan(p.recipe, forecast(asked.model, p.recipe, asked.cluster)) for p in fit[:CLOSELY]]
    best = sorted((p for p in closely if p.forecast.nbytes <= asked.capacity), key=lambda p: p.forecast.seconds)
    return Found(best + fit[CLOSELY:], over, refused)


def _parted(plans: Sequence[Plan], asked: Asked) -> tuple[list[Plan], list[Plan]]:
    """Plans that fit, fastest first; the others, smallest first."""
    fit = sorted((p for p in plans if p.forecast.nbytes <= asked.capacity), key=lambda p: p.forecast.seconds)
    return fit, sorted((p for p in plans if p.forecast.nbytes > asked.capacity), key=lambda p: p.forecast.nbytes)


def _with_host(fit: Sequence[Plan], over: Sequence[Plan], asked: Asked) -> Iterator[Plan]:
    """With the host's memory, which only adds seconds: plans that would be faster than all that fit, and may fit with
    all on the host that can be."""
    bound = fit[0].forecast.seconds if fit else math.inf
    hopes = (p for p in over if p.forecast.seconds < bound and _least(p.forecast) <= asked.capacity)
    for plan in sorted(hopes, key=lambda p: p.forecast.seconds)[:TRIED]:
        for share, moments in HOST:
            recipe = replace(plan.recipe, on_host=share, moments_on_host=moments)
            if share and recipe.recompute == "full":
                continue  # what runs forward again keeps next to nothing
            found = forecast(asked.model, recipe, asked.cluster, exact=False)
            if found.on_host <= usable_host(asked.cluster.device):
                yield Plan(recipe, found)


def _least(f: Forecast) -> float:
    """Bytes that a device has in any case."""
    return f.nbytes - f.memory["activations"] - f.memory["optimizer"]


def recipes(asked: Asked) -> Iterator[Recipe]:
    """All plans that the devices and the sequences of a step divide into, and that have what is pinned."""
    yield from (r for r in _recipes(asked) if all(getattr(r, name) == value for name, value in asked.pins.items()))


def _recipes(asked: Asked) -> Iterator[Recipe]:
    share, moments = asked.offload or (0.0, False)
    for tp, cp, ep, pp in _axes(asked):
        dp, context = asked.devices // (tp * cp * pp), cp if asked.cluster.software.zero_over_context else 1
        if dp % ep or asked.sequences % dp:
            continue
        for size in _microbatches(asked, dp):
            n = asked.sequences // (dp * size)
            for zero in _zero(asked, dp * context, pp):
                for schedule, chunks in _schedules(asked, pp, n):
                    yield from (
                        Recipe(
                            dp, dp * context, pp, chunks, cp, ep, tp, zero, size, n, schedule, recompute, share,
                            moments, format=asked.form,
                        )
                        for recompute in _recompute(asked)
                    )  # fmt: skip


def _axes(asked: Asked) -> Iterator[tuple[int, int, int, int]]:
    """Sizes of tp, cp, ep and pp whose product divides the devices."""
    experts = _experts(asked)
    for tp in _sizes(asked, "tp", asked.devices, asked.cluster.device.node):
        for cp in _sizes(asked, "cp", asked.devices // tp, max(1, asked.tokens // LEAST_TOKENS)):
            rest = asked.devices // (tp * cp)
            for pp in _sizes(asked, "pp", rest, min(MOST_STAGES, len(asked.model.calls))):
                for ep in _sizes(asked, "ep", math.gcd(rest // pp, experts), experts):
                    yield tp, cp, ep, pp


def _microbatches(asked: Asked, dp: int) -> list[int]:
    """How many sequences a rank may take at a time: divisors of those that it has in a step."""
    own, pinned = asked.sequences // dp, asked.pins.get("microbatch")
    if isinstance(pinned, int):
        return [pinned] if own % pinned == 0 else []
    most = max(MOST_SEQUENCES, MOST_TOKENS // asked.tokens)
    return [n for n in range(1, min(own, most) + 1) if own % n == 0]


def _experts(asked: Asked) -> int:
    """How many a layer has; 1 without any."""
    eqns = [e for b in asked.model.program.bodies.values() for e in b.eqns if e.op == "dispatch"]
    return max((size_of(e.attrs["experts"], {}) for e in eqns), default=1)


def _sizes(asked: Asked, axis: str, devices: int, most: int) -> list[int]:
    """Divisors of the devices that are powers of two; stages of a pipeline may also be as many as divide the layers."""
    pinned = asked.pins.get(axis)
    if isinstance(pinned, int):
        return [pinned] if devices % pinned == 0 else []
    layers = asked.model.layers if axis == "pp" else 0
    sizes = range(1, min(devices, most) + 1)
    return [n for n in sizes if devices % n == 0 and (n & (n - 1) == 0 or (layers and layers % n == 0))]


def _zero(asked: Asked, copies: int, pp: int) -> tuple[int, ...]:
    pinned = asked.pins.get("zero")
    if isinstance(pinned, int):
        return (pinned,)
    if copies == 1:
        return (0,)
    return (1, 3) if pp > 1 else (1, 2, 3)


def _schedules(asked: Asked, pp: int, microbatches: int) -> Iterator[tuple[str, int]]:
    """Schedules with the stages of a rank, where there are enough microbatches and calls."""
    if pp == 1:
        yield "1f1b", 1
        return
    for name in SEARCHED:
        row = SCHEDULES[name]
        for chunks in range(1, MOST_CHUNKS + 1):
            if chunks & (chunks - 1) and asked.model.layers % (pp * chunks):
                continue  # stages that are as uneven as those of a power of two, or more so
            fits = row.least <= chunks <= row.most and pp * chunks <= min(MOST_STAGES, len(asked.model.calls))
            if fits and microbatches >= max(1, row.fill) * pp and not (row.rounds and microbatches % pp):
                yield name, chunks


def _recompute(asked: Asked) -> tuple[Recompute, ...]:
    """What changes something: attention alone where its scores would be kept, and all unless the host keeps it."""
    some: tuple[Recompute, ...] = ("none", "attention") if asked.cluster.software.attention == "unfused" else ("none",)
    return some if asked.offload is not None and asked.offload[0] else (*some, "full")
