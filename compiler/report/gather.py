"""From a build directory to the data of its report; what runs have shown is put in by the runtime."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specc.compiler.elaborate import elaborate_stage
from specc.compiler.kernels.load import LIST
from specc.compiler.program import Call, Program
from specc.compiler.report.data import Action, Compiled, Cover, Kernel, Memory, Model, Report, Schedule, Stage
from specc.compiler.report.program import model_data
from specc.compiler.report.text import flops
from specc.compiler.schedule import actions as scheduled
from specc.compiler.schedule.actions import PARTS
from specc.compiler.schedule.files import calls_of, read_schedules
from specc.compiler.schedule.ledger import HOST
from specc.compiler.schedule.timeline import starts
from specc.compiler.units import count, size
from specc.spec.spec import Spec, load

STEP_SHARE = 0.004  # width of the actions that are no graph, as a share of the step


def read_build(build: Path) -> Report:
    """The report of a build that has not run."""
    manifest = read_json(build / "manifest.json")
    spec = load(build / "spec.yaml")
    facts = {name: read_json(build / "stages" / name / "stage.json") for name in spec.stages}
    programs = {name: elaborate_stage(spec, s) for name, s in spec.stages.items()}
    cards = {p.name: _card(spec, p, facts[name]) for name, p in reversed(programs.items())}
    digest = hashlib.sha256((build / "manifest.json").read_bytes()).hexdigest()
    memory = [_memory(name, read_json(build / "stages" / name / "memory.json")) for name in spec.stages]
    return {
        "name": spec.name,
        "doc": next((m["doc"] for m in cards.values()), ""),
        "version": manifest["specc"],
        "key": digest,
        "figures": [
            *_model_figures(list(cards.values())),
            {"label": "memory, predicted", "value": size(_peak(memory)), "note": "at the fullest moment of a step"},
        ],
        "stages": [_stage(spec, name, facts[name]) for name in spec.stages],
        "models": list(reversed(cards.values())),
        "memory": memory,
        "schedules": [_schedule(build, name) for name in spec.stages],
        "compiled": [row for name in spec.stages for row in _graphs(build, name)],
        "covers": [row for name in spec.stages for row in _covers(build, name)],
        "kernels": _kernels(build),
        "files": [
            {"path": path, "sha256": sha, "bytes": (build / path).stat().st_size}
            for path, sha in manifest["files"].items()
        ],
    }


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _card(spec: Spec, program: Program, facts: dict[str, Any]) -> Model:
    sizes = {**dict.fromkeys(program.open_dims(), 1), **facts["sizes"]}
    return model_data(program, sizes, _tokens(program, sizes), spec.model_section(program.name)[1].doc)


def _tokens(program: Program, sizes: dict[str, int]) -> int:
    """Tokens of a microbatch, or its samples if the model reads no tokens."""
    first = program.inputs.get("tokens")
    return first.numel(sizes) if first else max(sizes.values(), default=1)


def _model_figures(models: Sequence[Model]) -> list[Any]:
    params, trained = sum(m["params"] for m in models), sum(m["trained"] for m in models)
    frozen = "all trained" if trained == params else f"{count(trained)} trained"
    work = 3 * sum(m["flops"] for m in models)
    return [
        {"label": "parameters", "value": count(params), "note": frozen},
        {"label": "FLOPs per token", "value": flops(work), "note": "forward and backward"},
    ]


def _peak(memory: Sequence[Memory]) -> int:
    return max((sum(s["bytes"] for s in m["shares"]) for m in memory), default=0)


def _stage(spec: Spec, name: str, facts: dict[str, Any]) -> Stage:
    stage = spec.stages[name]
    return {
        "name": name,
        "kind": f"{stage.kind}, {stage.objective}" if stage.kind == "pretrain" else stage.kind,
        "after": [stage.from_] if stage.from_ else [],
        "status": "waiting",
        "key": facts["hash"],
        "steps": stage.steps(),
        "steps_done": 0,
        "tokens": 0,
        "unit": stage.unit,
        "seconds": 0.0,
        "entropy": None,
        "series": [],
        "samples": [],
        "notes": [],
    }


def _memory(name: str, shares: dict[str, int]) -> Memory:
    order = ["weights", "gradients", "optimizer", "activations"]
    here = (n for n in shares if n not in ("peak", HOST))
    names = sorted(here, key=lambda n: order.index(n) if n in order else len(order))
    return {
        "stage": name,
        "shares": [{"category": n, "bytes": shares[n]} for n in names],
        "limit": None,
        "measured": None,
    }


def _schedule(build: Path, name: str) -> Schedule:
    """Actions as wide as the FLOPs of their graphs, beginning when what they take is there, and the bytes that live
    behind each."""
    home = build / "stages" / name
    layout, live, work = (read_json(home / f) for f in ("calls.json", "live.json", "work.json"))
    calls, schedules = calls_of(layout), read_schedules(home)
    flops = {(n, p): w["flops"] for n, each in work["parts"].items() for p, w in each.items()}
    tiles = Counter(c.body for c in calls)
    least = STEP_SHARE * max(sum(_flops(a, calls, flops) for a in actions) for actions in schedules)

    def width(a: scheduled.Action) -> float:
        return max(_flops(a, calls, flops), least)

    ranks: list[list[Action]] = []
    for actions, begins, left in zip(schedules, starts(schedules, calls, width), live, strict=True):
        ranks.append([
            {"kind": a.kind, "label": _label(a, calls, tiles), "microbatch": a.microbatch, "start": begin,
             "work": width(a), "live": nbytes}
            for a, begin, nbytes in zip(actions, begins, left, strict=True)
        ])  # fmt: skip
    return {"stage": name, "note": "widths are FLOPs; a rank waits where there is nothing", "ranks": ranks}


def _flops(a: scheduled.Action, calls: Sequence[Call], flops: Mapping[tuple[str, str], float]) -> float:
    return flops.get((calls[a.call].body, PARTS[a.kind]), 0.0) if a.kind in PARTS else 0.0


def _label(a: scheduled.Action, calls: Sequence[Call], tiles: Mapping[str, int]) -> str:
    if a.call < 0:
        return a.value
    call = calls[a.call]
    return f"{call.body} {call.tile}" if tiles[call.body] > 1 else call.body


def _graphs(build: Path, name: str) -> list[Compiled]:
    home = build / "stages" / name
    layout = read_json(home / "calls.json")
    return [
        {
            "stage": name,
            "block": block,
            "times": sum(c["body"] == block for c in layout["calls"]),
            "forward": _nodes(home / "graphs" / f"{block}.fwd.json"),
            "backward": _nodes(home / "graphs" / f"{block}.bwd.json"),
            "saved": g["saved_bytes"],
            "how": "",
        }
        for block, g in layout["graphs"].items()
    ]


def _covers(build: Path, name: str) -> list[Cover]:
    path = build / "stages" / name / "kernels.json"
    found = read_json(path) if path.is_file() else {}
    return [
        {"stage": name, "block": block, "ops": row["ops"], "bytes": row["bytes"], "left": row["left"]}
        for block, row in found.items()
    ]


def _kernels(build: Path) -> list[Kernel]:
    path = build / "kernels" / LIST
    rows = read_json(path) if path.is_file() else {}
    return [_kernel(name, row) for name, row in rows.items()]


def _kernel(name: str, row: Mapping[str, Any]) -> Kernel:
    most = {k: max((f[k] for f in row["figures"]), default=0) for k in ("registers", "spilled", "shared")}
    return {
        "name": name, "places": row["from"], "used": row["used"],
        "targets": sorted({f["target"] for f in row["figures"]}),
        "registers": most["registers"], "spilled": most["spilled"], "shared": most["shared"],
    }  # fmt: skip


def _nodes(path: Path) -> int:
    """Operators of a graph; a body that needs no gradient has no backward."""
    return sum(row["op"] == "call_function" for row in read_json(path)) if path.is_file() else 0
