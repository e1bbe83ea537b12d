"""Predicted beside reported: each row's error, and the errors of groups of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from specc.compiler.foresight.calls import Cluster
from specc.compiler.foresight.model import Model
from specc.compiler.foresight.step import Forecast, forecast
from specc.spec.errors import SpecError
from specc.spec.hardware import Hardware
from tests.foresight.rows import Case, Row, case_of, model_of

# Not calibrated on; what was settled with these in sight is in docs/foresight.md.
HELD_OUT = ("torchtitan", "nanotron-playbook", "zero-bubble")

# Whose table is written by the first rank (nanotron's log_throughput), with its own memory; others say the fullest's.
FIRST_RANK = ("nanotron-playbook",)


@dataclass(frozen=True)
class Compared:
    """A row with what was predicted for it."""

    case: Case
    forecast: Forecast

    @property
    def error(self) -> float | None:
        """Of the seconds of a step, over those reported."""
        return self.forecast.seconds / self.case.seconds - 1 if self.case.seconds else None

    @property
    def memory_error(self) -> float | None:
        """Of the bytes of a device, over those reported."""
        return self.gib / self.case.gib - 1 if self.case.gib else None

    @property
    def gib(self) -> float:
        """Of the device that the table speaks of."""
        f = self.forecast
        return sum((f.first_rank if self.case.row["group"] in FIRST_RANK else f.memory).values()) / 2**30

    @property
    def bubble_gap(self) -> float | None:
        """Of the idle share of a pipeline, less the reported one."""
        reported: float | None = self.case.row["reported"].get("bubble_rate_theoretical")
        f = self.forecast
        return f.bubble / (f.seconds - f.optimizer) - reported if reported is not None else None

    @property
    def kind(self) -> str:
        return "dense" if self.case.row["model"]["moe"] is None else "experts"

    @property
    def role(self) -> str:
        """What a row is for: single nodes and models cut to a few layers set the constants."""
        if self.case.row["group"] in HELD_OUT:
            return "held out"
        one_node = self.case.row["hardware"]["count"] <= 8 or "cut to" in self.case.row["model"]["name"]
        return "calibration" if one_node else "test"


def compare(rows: Iterable[Row], tables: Hardware) -> tuple[list[Compared], Counter[str]]:
    """Every row that can be predicted, and how many cannot for which reason."""
    models: dict[object, Model] = {}
    found: list[Compared] = []
    left: Counter[str] = Counter()
    for row in rows:
        case = case_of(row)
        if isinstance(case, str):
            left[case] += 1
            continue
        key = (case.model, case.dims, case.seq)
        if key not in models:
            models[key] = model_of(case)
        try:
            found.append(Compared(case, forecast(models[key], case.recipe, cluster_of(case, tables))))
        except SpecError as e:
            left[f"refused: {e.diagnostics[0].message}"] += 1
    return found, left


def cluster_of(case: Case, tables: Hardware) -> Cluster:
    device = tables.devices[case.device]
    return Cluster(device, tables.links[device.near], tables.links[device.far], tables.software[case.software])


def summary(compared: Sequence[Compared]) -> Iterator[str]:
    """Mean and worst error by device and number format, by what the rows are for, and by source."""
    titles: tuple[tuple[str, Callable[[Compared], str]], ...] = (
        ("device", lambda c: ""),
        ("what the rows are for", lambda c: c.role),
        ("source", lambda c: f"{c.case.row['group']}, {c.role}"),
    )
    for title, key in titles:
        yield f"seconds of a step, by {title}"
        yield from _groups((f"{_device(c)} {key(c)}", c.error) for c in compared)
    yield "memory of the fullest device, by source"
    yield from _groups((f"{_device(c)} {c.case.row['group']}", c.memory_error) for c in compared)
    yield "share of a step that pipelines wait, less what was reported, by schedule"
    yield from _groups((f"{_device(c)} {c.case.recipe.schedule}", c.bubble_gap) for c in compared)


def _device(c: Compared) -> str:
    return f"{c.case.device.split('-')[0]} {c.case.recipe.format} {c.kind}".ljust(20)


def _groups(errors: Iterable[tuple[str, float | None]]) -> Iterator[str]:
    groups: dict[str, list[float]] = {}
    for name, error in errors:
        if error is not None:
            groups.setdefault(name, []).append(error)
    for name, found in sorted(groups.items()):
        size, bias, worst = mean(map(abs, found)), mean(found), max(found, key=abs)
        yield f"  {name:<52} {len(found):>4} rows  mean error {size:6.1%}  bias {bias:+6.1%}  worst {worst:+6.1%}"


def line(c: Compared) -> str:
    """A row: id, what it is, predicted and reported."""
    r, model, f = c.case.recipe, c.case.row["model"]["name"], c.forecast
    plan = f"dp{r.dp} pp{r.pp}x{r.chunks} cp{r.cp} ep{r.ep} tp{r.tp} zero{r.zero} {r.microbatch}x{r.microbatches}"
    words = [f"{c.case.name:<26} {model:<20.20} {c.case.device:<10.10} {r.format:<4} {plan:<44}"]
    if c.error is not None:
        words.append(f"{f.seconds:9.3f} s for {c.case.seconds:9.3f} s reported {c.error:+7.1%}")
    if c.memory_error is not None:
        words.append(f"{c.gib:6.1f} GiB for {c.case.gib:6.1f} reported {c.memory_error:+7.1%}")
    return "  ".join(words)
