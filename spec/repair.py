"""A spec without the parts that have mistakes, so that the rest of it can be checked too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

UNKNOWN = "?"  # the op of a step that cannot be read


def without(data: Any, errors: Sequence[dict[str, Any]]) -> Any:
    """A copy in which pydantic's errors have no cause: unknown keys go, a wrong step is one that nothing is known of,
    and any other mistake takes its stage, plan or model along."""
    data = _copy(data)
    for err in errors:
        loc = list(err["loc"])
        if loc == ["specc"] and isinstance(data, dict):
            data["specc"] = 1
        elif (step := _step(loc)) and (steps := _get(data, step[:-1])) is not None:
            steps[step[-1]] = {"op": UNKNOWN, "as": _results(steps[step[-1]])}
        elif err["type"] == "extra_forbidden":
            _drop(data, loc)
        else:
            _drop(data, loc[:2] if loc[:1] in (["models"], ["stages"]) else loc[:1])
    return data


def _step(loc: list[str | int]) -> list[str | int]:
    """The path of the step that a location lies in, or nothing."""
    for i, (key, entry) in enumerate(itertools.pairwise(loc)):
        if key == "steps" and isinstance(entry, int):
            return loc[: i + 2]
    return []


def _results(step: Any) -> list[str]:
    """The names that a step gives its results, as far as they can be seen."""
    if not isinstance(step, dict):
        return []
    found = [step.get("as"), *(v.get("as") for v in step.values() if isinstance(v, dict))]
    return [n for names in found for n in (names if isinstance(names, list) else [names]) if isinstance(n, str)]


def _get(data: Any, path: list[str | int]) -> Any:
    for key in path:
        held = (isinstance(data, dict) and key in data) or (isinstance(data, list) and isinstance(key, int))
        if not held:
            return None
        data = data[key]
    return data


def _drop(data: Any, path: list[str | int]) -> None:
    holder = _get(data, path[:-1])
    if path and isinstance(holder, dict):
        holder.pop(path[-1], None)


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: _copy(v) for k, v in data.items()}
    return [_copy(v) for v in data] if isinstance(data, list) else data
