"""The fastest plan that the search finds, beside the published one, both as predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from specc.compiler.foresight.search import Asked, Plan, search
from specc.compiler.hardware.tables import RESERVE
from specc.spec.hardware import Hardware
from tests.foresight.compare import Compared, cluster_of, line
from tests.foresight.rows import model_of


@dataclass(frozen=True)
class Best:
    """A published row and the fastest plan found for the same model, batch and devices."""

    published: Compared
    found: Plan | None

    @property
    def ratio(self) -> float:
        """Predicted seconds of the plan found over those of the published one; infinite where none is found."""
        return self.found.forecast.seconds / self.published.forecast.seconds if self.found else float("inf")


def best(compared: Sequence[Compared], tables: Hardware) -> Iterator[Best]:
    """A search for each dense row whose speed was reported; rows that ask the same share one.

    A device holds what it holds, or what is predicted for the published plan where that is more: it ran."""
    known: dict[object, Plan | None] = {}
    for each in compared:
        if each.kind != "dense" or each.error is None:
            continue
        case, r = each.case, each.case.recipe
        on = cluster_of(case, tables)
        room = max(on.device.memory, each.forecast.nbytes / 2**30 / (1 - RESERVE) + 0.01)
        sequences = r.dp * r.microbatch * r.microbatches
        key = (case.model, case.dims, case.seq, case.device, case.software, r.devices, sequences, r.format, room)
        if key not in known:
            cluster = replace(on, device=on.device.model_copy(update={"memory": room}))
            found = search(Asked(model_of(case), cluster, r.devices, sequences, case.seq, r.format))
            known[key] = found.fit[0] if found.fit else None
        yield Best(each, known[key])


def outcome(each: Iterable[Best]) -> Iterator[str]:
    """How many are as fast as published or faster, and those that are not."""
    every = list(each)
    slower = [b for b in every if b.ratio > 1]
    ratios = sorted(b.ratio for b in every)
    yield f"  {len(every) - len(slower)} of {len(every)} dense rows at least as fast"
    if ratios:
        yield f"  seconds over the published plan's: median {ratios[len(ratios) // 2]:.3f}, worst {ratios[-1]:.4f}"
    yield from (f"  {b.ratio:.4f} {line(b.published)}" for b in slower)
