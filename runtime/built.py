"""A build as the runtime reads it: verified, and its stages' graphs as callables."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specc.compiler.fused import SENT
from specc.compiler.graphs import CARRIED, from_json
from specc.compiler.lower.attend import attention  # registers ops that graphs may name
from specc.compiler.lower.exchange import exchange  # and these
from specc.compiler.lower.flash import flash_attention  # and these
from specc.compiler.lower.grouped import grouped_mm
from specc.compiler.moments import Matrix
from specc.compiler.program import Adapter, Call
from specc.compiler.schedule.actions import Action, graph_calls, parts_of
from specc.compiler.schedule.files import calls_of, read_schedules
from specc.compiler.work import Work
from specc.runtime.boxed import Function
from specc.runtime.compile import Decision, callable_of, decide
from specc.runtime.device import CPU
from specc.runtime.errors import RunError
from specc.runtime.executor import Compiled, Executor
from specc.runtime.rates import measured
from specc.runtime.tuned import Seconds, step_seconds, tuned_of
from specc.runtime.wire import Wire
from specc.spec.objective import LOG_PROBS
from specc.spec.stage import StageSpec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
assert attention is not None
assert grouped_mm is not None
assert exchange is not None
assert flash_attention is not None


def body_of(
    layout: Mapping[str, Any], texts: Mapping[str, str], compiled: Collection[str] = (), device: torch.device = CPU
) -> Compiled:  # fmt: skip
    """A body's graphs as callables, some compiled."""
    parts: dict[str, Function] = {}
    for name, text in texts.items():
        parts[name] = callable_of(from_json(text, device), name in compiled, device)
    ins, params, outs = (tuple(layout[k]) for k in ("in_grads", "param_grads", "out_grads"))
    return Compiled(
        parts["fwd"], parts.get("bwd"), parts.get("bwd_input"), parts.get("bwd_weight"), layout["n_outs"], ins, params,
        outs, saved_from=tuple(layout.get("saved_from", ())), gathered=tuple(layout.get("gathered", ())),
        reduced=tuple(layout.get("reduced", ())), **{name: parts.get(name) for name in CARRIED},
    )  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A stage of a build."""

    name: str
    hash: str
    path: Path
    spec: StageSpec
    plan: Mapping[str, Any]
    facts: Mapping[str, Any]
    params: list[dict[str, Any]]
    calls: tuple[Call, ...]
    graphs: Mapping[str, Any]
    schedules: tuple[list[Action], ...]  # of each rank of the pipeline
    work: Mapping[str, Any]
    pipeline: Mapping[str, Any]  # nothing without one

    @property
    def compute(self) -> torch.dtype:
        return DTYPES[self.plan["precision"]["compute"]]

    @property
    def fields(self) -> set[str]:
        return set(self.facts["inputs"])

    @property
    def reads_in_parts(self) -> bool:
        """Whether a rank of a mesh reads its own samples alone: pictures, of which no labels are counted."""
        return self.spec.of_images and "labels" not in self.fields

    @property
    def watched(self) -> dict[str, str]:
        """The values by name that a run reads beside the loss."""
        return dict(self.facts.get("watched", {}))

    @property
    def metrics(self) -> list[str]:
        """Those that are single numbers, which a run logs."""
        return [n for n in self.watched if n != LOG_PROBS]

    @property
    def refusal(self) -> str:
        """Why its model cannot decode, or nothing."""
        return (self.path / "decode.txt").read_text().strip()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        return tuple(Adapter(**a) for a in self.facts.get("adapters", ()))

    def trainable(self) -> list[str]:
        return [p["path"] for p in self.params if p["trainable"]]

    def dtype(self, path: str) -> torch.dtype:
        """Of a parameter between steps: that of the optimizer's weights, or of compute for what is frozen beside
        adapters."""
        return self.compute if path in self.narrow else DTYPES[self.plan["precision"]["master"]]

    @cached_property
    def narrow(self) -> frozenset[str]:
        return frozenset(p["path"] for p in self.params if p.get("narrow"))

    def matrices(self) -> dict[str, Matrix]:
        """The parameters that Muon makes orthogonal, whole."""
        kept = {p["path"]: p["matrix"] for p in self.params if "matrix" in p}
        return {path: Matrix(*(tuple(m[key]) for key in ("alike", "ins", "outs"))) for path, m in kept.items()}

    def shapes(self) -> dict[str, list[int]]:
        """Of all parameters, whole."""
        return {p["path"]: p["shape"] for p in self.params}

    def decide(self, device: torch.device = CPU) -> Decision:
        """Whether a run of this stage on this machine should compile its graphs."""
        known, optimizer = self.predicted(device), measured(self.compute, device).seconds(self.optimizer)
        step, graphs = step_seconds(known, self.calls, self.schedules), Work(**self.work["graphs"])
        seconds = optimizer + step.plain, optimizer + step.compiled
        slower = [n for n, s in known.items() if n in self.run_by_any and s.plain < s.compiled]
        files = self.compiled(slower)
        return decide(
            self.plan["compile"], seconds, graphs, len(files), self.spec.steps(), device, slower,
            beside=self.plan.get("kernels") != "triton" and not any(map(sends, files)),
        )  # fmt: skip

    def runs(self, actions: Sequence[Action]) -> set[str]:
        """The graphs that these actions run, by `body.part`; those of parameters, which hardly compute, are not among
        them."""
        return {f"{body}.{part}" for body, part in graph_calls(actions, self.calls)}

    @cached_property
    def run_by_any(self) -> set[str]:
        """The graphs that some rank of the pipeline runs."""
        return set().union(*map(self.runs, self.schedules))

    def compiled(self, plain: Collection[str] = ()) -> list[Path]:
        """The files of the graphs that some rank runs compiled, but for those that stay `plain`."""
        return [self.path / "graphs" / f"{name}.json" for name in sorted(self.run_by_any - set(plain))]

    def predicted(self, device: torch.device = CPU) -> Mapping[str, Seconds]:
        """Seconds of a call of each graph, by `body.part`: those that `specc tune` measured on such a machine, or else
        its work by the machine's rates."""
        tuned = tuned_of(self.path.parents[1], device)
        if tuned is not None and self.name in tuned.graphs:
            return tuned.graphs[self.name]
        rates = measured(self.compute, device)
        each = {f"{body}.{p}": Work(**w) for body, parts in self.work["parts"].items() for p, w in parts.items()}
        return {n: Seconds(rates.seconds(w), rates.seconds(w, compiled=True)) for n, w in each.items()}

    @property
    def optimizer(self) -> Work:
        return Work(**self.work["optimizer"])

    def executor(
        self, compiled: bool = False, coordinates: Sequence[Tensor] = (), wire: Wire | None = None,
        device: torch.device = CPU, plain: Collection[str] = (),
    ) -> Executor:  # fmt: skip
        """The stage's graphs, loaded; those that a step runs as C++ if `compiled`, but for those that stay `plain`.
        `coordinates` are a rank's place."""
        self.register_kernels()
        actions = self.schedules[wire.rank if wire else 0]
        faster = self.runs(actions) - set(plain) if compiled else set()
        bodies = {n: self._body(n, at, actions, faster, device) for n, at in self.graphs.items()}
        return Executor(
            self.calls, bodies, actions, self.facts["loss"], self.watched, frozenset(self.trainable()), self.compute,
            torch.float64 if self.compute == torch.float64 else torch.float32, coordinates, wire,
            device,
        )  # fmt: skip

    def register_kernels(self) -> None:
        """Register the ops of the kernels that the graphs may call."""
        if self.plan.get("kernels") == "triton":
            from specc.runtime.kernels import load_kernels  # late: it imports the compiler

            load_kernels(self.path.parents[1], self.spec, self.compute)

    def _body(
        self, name: str, layout: Mapping[str, Any], actions: list[Action], compiled: set[str], device: torch.device
    ) -> Compiled:  # fmt: skip
        used = parts_of(actions)
        text = {p: (self.path / "graphs" / f"{name}.{p}.json").read_text() for p in layout["parts"] if p in used}
        return body_of(layout, text, {p for p in used if f"{name}.{p}" in compiled}, device)


def sends(graph: Path) -> bool:
    """Whether a recorded graph talks to other ranks."""
    text = graph.read_text(encoding="utf-8")
    return any(f'"{space}' in text for space in SENT)


@dataclass(frozen=True)
class Build:
    """A verified build directory."""

    path: Path
    name: str
    manifest: Mapping[str, Any]
    stages: dict[str, Stage]


def open_build(path: Path) -> Build:
    """Check every file's hash, then read it; raises RunError if anything was changed."""
    manifest = _manifest(path)
    for name, digest in manifest["files"].items():
        file = path / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise RunError(f"{file} is missing or was changed since the build; build again")
    stages = {name: _stage(name, path / "stages" / name) for name in manifest["stages"]}
    order = sorted(stages, key=lambda n: _depth(stages, n))
    return Build(path, manifest["name"], manifest, {n: stages[n] for n in order})


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise RunError(f"{path} is not a build (no manifest.json)")
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        found = None
    sections = {"name": str, "files": dict, "stages": dict}
    if not isinstance(found, dict) or any(not isinstance(found.get(k), kind) for k, kind in sections.items()):
        raise RunError(f"{file} was changed since the build; build again")
    return found


def _depth(stages: Mapping[str, Stage], name: str) -> int:
    return max((1 + _depth(stages, parent) for parent in stages[name].spec.parents), default=0)


def _stage(name: str, path: Path) -> Stage:
    facts = json.loads((path / "stage.json").read_text())
    wiring = json.loads((path / "calls.json").read_text())
    return Stage(
        name, facts["hash"], path, StageSpec.model_validate(facts["spec"]), facts["plan"], facts,
        json.loads((path / "params.json").read_text()), calls_of(wiring), wiring["graphs"],
        read_schedules(path), json.loads((path / "work.json").read_text()),
        json.loads((path / "pipeline.json").read_text()) if (path / "pipeline.json").is_file() else {},
    )  # fmt: skip
