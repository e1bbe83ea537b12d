"""How well predictions rank the plans of one model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import StatisticsError, correlation

from tests.foresight.compare import Compared

SAME = 0.01  # speeds that differ by less rank alike: no table is repeated more closely


def rankings(compared: Sequence[Compared], least: int = 4) -> Iterator[str]:
    """The rank correlation of predicted and reported tokens a second, for each model with experts.

    Of several reports of one plan the best counts: releases of the same software differ by up to 1.8 times."""
    models: dict[str, dict[object, tuple[float, float]]] = {}
    for c in compared:
        if c.kind == "experts" and c.case.seconds is not None and "cut to" not in c.case.row["model"]["name"]:
            plans = models.setdefault(c.case.row["model"]["name"], {})
            key = (c.case.device, c.case.recipe)
            predicted, reported = (_speed(c, seconds) for seconds in (c.forecast.seconds, c.case.seconds))
            plans[key] = (predicted, max(reported, plans.get(key, (0.0, 0.0))[1]))
    for name, plans in sorted(models.items()):
        if len(plans) >= least:
            predicted, reported = zip(*plans.values(), strict=True)
            yield f"  {name:<52} {len(plans):>4} plans  rank correlation {rank_correlation(predicted, reported):.2f}"


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
