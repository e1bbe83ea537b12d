"""How well predictions rank the plans of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import StatisticsError, correlation

from tests.foresight.compare import Compared

SAME = 0.01  # speeds that differ by less rank alike: no table is repeated more closely


def rankings(compared: Sequence[Compared], least: int = 4) -> Iterator[str]:
    """The rank correlation of predicted and reported tokens a second, for each model with experts: of plans, of whose
    reports the best counts, as releases of the same software differ by up to 1.8 times; and of all rows, each report
    for itself."""
    models: dict[str, dict[object, list[tuple[float, float]]]] = {}
    for c in compared:
        if c.kind == "experts" and c.case.seconds is not None and "cut to" not in c.case.row["model"]["name"]:
            plans = models.setdefault(c.case.row["model"]["name"], {})
            speeds = _speed(c, c.forecast.seconds), _speed(c, c.case.seconds)
            plans.setdefault((c.case.device, c.case.recipe), []).append(speeds)
    for name, plans in sorted(models.items()):
        if len(plans) >= least:
            best = [max(reports, key=lambda speeds: speeds[1]) for reports in plans.values()]
            rows = [speeds for reports in plans.values() for speeds in reports]
            yield f"  {name:<52} {_told(best)} plans, {_told(rows)} rows"


def _told(pairs: Sequence[tuple[float, float]]) -> str:
    return f"{rank_correlation(*zip(*pairs, strict=True)):.2f} of {len(pairs):>2}"


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; 0 where all are alike."""
    try:
        return correlation(_ranks(a), _ranks(b))
    except StatisticsError:
        return 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each value; values that are nearly the same share the mean of their places."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    ranks = [0.0] * len(values)
    begin = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or values[order[end]] > values[order[begin]] * (1 + SAME):
            for i in order[begin:end]:
                ranks[i] = (begin + end - 1) / 2
            begin = end
    return ranks


def _speed(c: Compared, seconds: float) -> float:
    """Tokens a second and device."""
    row = c.case.row
    tokens: float = row["parallel"]["global_batch"] * row["model"]["seq"]
    return tokens / seconds / row["hardware"]["count"]
