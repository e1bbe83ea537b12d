"""Two builds side by side: what a person changed, what moved on the mesh, and what it costs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from specc.compiler.graphs import tensor_bytes
from specc.compiler.report.gather import read_json
from specc.compiler.schedule.actions import CARRY, PARTS
from specc.compiler.schedule.files import read_schedules
from specc.compiler.units import count, size

COLLECTIVE = "_c10d_functional."
WAIT = f"{COLLECTIVE}wait_tensor.default"
NUMBER = re.compile(r"\.\d+(?=\.)")


def compare(a: Path, b: Path) -> str:
    """The differences of two build directories as text; stages are those of the same name."""
    names = [stages(path) for path in (a, b)]
    lines: list[str] = []
    for name in dict.fromkeys([*names[0], *names[1]]):
        missing = [path for path, found in zip((a, b), names, strict=True) if name not in found]
        if missing:
            lines += [f"{name}: not in {missing[0]}", ""]
            continue
        homes = a / "stages" / name, b / "stages" / name
        found = [*said(*homes), *moved(*homes), *costs(*homes)]
        lines += [f"{name}:{'' if found else ' the same'}", *(f"  {line}" for line in found), ""]
    return "\n".join(lines).rstrip()


def stages(build: Path) -> list[str]:
    found: list[str] = read_json(build / "manifest.json")["stages"]
    return found


def said(a: Path, b: Path) -> Iterator[str]:
    """What differs in the stage and the plan as they were written, and in the model's program."""
    x, y = (dict(flat(read_json(home / "stage.json"), ("spec", "plan"))) for home in (a, b))
    for key in sorted(x.keys() | y.keys()):
        if x.get(key) != y.get(key):
            yield f"{key}: {shown(x.get(key))} -> {shown(y.get(key))}"
    if (a / "program.txt").read_text() != (b / "program.txt").read_text():
        yield "the program differs (see program.txt of each)"


def flat(data: Mapping[str, Any], only: tuple[str, ...] = (), above: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by their path."""
    for key, value in data.items():
        if only and key not in only:
            continue
        path = f"{above}.{key}" if above else key
        if isinstance(value, Mapping) and value:
            yield from flat(value, (), path)
        else:
            yield path, value


def shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


def moved(a: Path, b: Path) -> Iterator[str]:
    """Parameters that are kept otherwise; those of all tiles of a repeat in one line."""
    x, y = (kept(home) for home in (a, b))
    changes = Counter((NUMBER.sub(".*", path), x[path], y[path]) for path in x if path in y and x[path] != y[path])
    for (path, before, after), n in changes.items():
        yield f"{path}: kept {before} -> {after}" + (f" ({n} of them)" if n > 1 else "")


def kept(home: Path) -> dict[str, str]:
    """Where each parameter lies: `tp:S(H) dp:S(D)`, or `whole`."""
    axes = [axis["name"] for axis in read_json(home / "stage.json").get("mesh", []) if axis["role"] != "stages"]
    found: dict[str, str] = {}
    for p in read_json(home / "params.json"):
        places = zip(axes, p.get("layout", []), strict=False)
        split = [f"{axis}:S({p['dims'][int(place[1:])]})" for axis, place in places if place.startswith("S")]
        found[p["path"]] = " ".join(split) or "whole"
    return found


def costs(a: Path, b: Path) -> Iterator[str]:
    """Memory of the fullest rank, work, and what is sent, where they differ."""
    memory = [read_json(home / "memory.json") for home in (a, b)]
    for kind in dict.fromkeys([*memory[0], *memory[1]]):
        yield from changed(f"memory, {kind}", memory[0].get(kind, 0), memory[1].get(kind, 0), size)
    work = [read_json(home / "work.json")["step"] for home in (a, b)]
    yield from changed("FLOPs of a step and rank", work[0]["flops"], work[1]["flops"], count)
    sent = [collectives(home) for home in (a, b)]
    for name in sorted(sent[0].keys() | sent[1].keys()):
        (n, x), (m, y) = (each.get(name, (0, 0)) for each in sent)
        if (n, x) != (m, y):
            yield f"{name}: {n} of {size(x)} in all -> {m} of {size(y)}"


def changed(what: str, before: float, after: float, unit: Any) -> Iterator[str]:
    if before != after:
        share = f" ({after / before - 1:+.0%})" if before else ""
        yield f"{what}: {unit(before)} -> {unit(after)}{share}"


def collectives(home: Path) -> dict[str, tuple[int, int]]:
    """How many of each kind and group the first rank of the pipeline runs in a step, and the bytes of their results."""
    calls = read_json(home / "calls.json")["calls"]
    runs = Counter[tuple[str, str]]()
    for action in read_schedules(home)[0]:
        parts = [PARTS[action.kind]] if action.kind in PARTS else list(CARRY.get(action.kind, ()))
        which = [action.call] if action.call >= 0 else range(len(calls)) if parts else []
        runs.update((calls[c]["body"], part) for c in which for part in parts)
    found: dict[str, tuple[int, int]] = {}
    for (body, part), times in runs.items():
        path = home / "graphs" / f"{body}.{part}.json"
        for name, nbytes in sends(path) if path.is_file() else ():
            n, total = found.get(name, (0, 0))
            found[name] = n + times, total + nbytes * times
    return found


def sends(graph: Path) -> Iterator[tuple[str, int]]:
    """The collectives of a graph: their kind and group, and the bytes of the result."""
    for row in read_json(graph):
        target = row.get("target", "")
        if target.startswith(COLLECTIVE) and target != WAIT:
            kind = target.removeprefix(COLLECTIVE).partition(".")[0]
            yield f"{kind} on {row['args'][-1]}", tensor_bytes(row["type"])
