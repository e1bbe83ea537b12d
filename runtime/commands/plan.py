"""`specc plan`: the fastest ways to share a model out among the devices of a cluster, and why others lose."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from specc.compiler.cost import n_params
from specc.compiler.foresight.ask import cluster, none_fits, question
from specc.compiler.foresight.planned import own_plan
from specc.compiler.foresight.reasons import Reason, mesh_text, reasons
from specc.compiler.foresight.search import SEARCHED, Asked, Plan, search
from specc.compiler.foresight.tell import details, mfu, plan_text, table, told
from specc.compiler.hardware.tables import hardware
from specc.compiler.placement.mesh import is_open, mesh_of
from specc.compiler.stated import stated
from specc.compiler.units import count, size
from specc.spec.errors import Diagnostic, SpecError
from specc.spec.plan import Cluster as ClusterSpec
from specc.spec.spec import load
from specc.spec.stage import StageSpec

NUMBERS = ("tp", "cp", "ep", "pp", "dp", "microbatch", "chunks")
PIN = re.compile(rf"({'|'.join(NUMBERS)})=[1-9][0-9]*|zero=[0-3]|schedule=({'|'.join(SEARCHED)})|recompute=(none|full)")
CLUSTER = re.compile(r"([1-9][0-9]*)x(.+)")


def run(args: argparse.Namespace) -> int:
    spec = load(args.spec, args.overrides)
    found = stated(spec, args.stage)
    devices, device = cluster_of(args.cluster, spec.plan.cluster)
    tables = hardware(Path(args.hardware) if args.hardware else None)
    asked = question(found, devices, cluster(device, args.software, tables), pins_of(args.pins))
    plans = search(asked)
    if not plans.fit:
        raise none_fits(plans, asked)
    best, why = plans.fit[: args.top], list(reasons(plans, asked))
    is_for_these = not is_open(spec.plan) and mesh_of(spec.plan).size == devices > 1
    own = own_plan(found, asked) if is_for_these else None
    if args.json:
        print(json.dumps(as_data(best, why, asked), indent=1))
        return 0
    model = f"{spec.name}, stage {found.name}: {count(n_params(found.program))} parameters"
    print(f"{model}, {step_text(spec.stages[found.name], asked)} a step")
    print(f"{devices} x {device}, {size(asked.capacity)} each, with the software '{args.software}'")
    print(f"{len(plans.fit) + len(plans.over)} plans, of which {len(plans.fit)} fit", end="\n\n")
    print("\n".join([*table(best, own, asked), "", *details(best[0], asked), "", "why not", *map(told, why), ""]))
    print("\n".join(plan_text(best[0], asked, device, found.name)))
    return 0


def step_text(stage: StageSpec, asked: Asked) -> str:
    """What a step takes."""
    if not stage.of_images:
        return f"{asked.sequences} sequences of {asked.tokens} tokens"
    return f"{asked.sequences} images" + (f" with captions of {asked.tokens} tokens" if asked.tokens > 1 else "")


def cluster_of(text: str | None, said: ClusterSpec) -> tuple[int, str]:
    """Devices and their name, of the option or else of the plan."""
    if text is None:
        if said.devices == "auto":
            hint = "--cluster 64xh100-sxm, or plan.cluster: {devices: 64, device: h100-sxm}"
            raise SpecError(Diagnostic("S541", "the plan does not say how many devices there are", None, hint))
        return said.devices, said.device
    match = CLUSTER.fullmatch(text)
    if match is None:
        raise SpecError(Diagnostic("S541", f"a cluster reads NUMBERxDEVICE, got '{text}'", None, "64xh100-sxm, say"))
    return int(match[1]), match[2]


def pins_of(texts: Sequence[str]) -> dict[str, int | str]:
    """What the user holds fixed."""
    found: dict[str, int | str] = {}
    for text in texts:
        if not PIN.fullmatch(text):
            why = f"a pin holds {', '.join(NUMBERS)}, zero, schedule or recompute, got '{text}'"
            raise SpecError(
                Diagnostic("S541", why, None, "--pin tp=8, --pin schedule=1f1b or --pin recompute=full, say")
            )
        name, _, value = text.partition("=")
        if name in found:
            raise SpecError(Diagnostic("S541", f"two pins hold '{name}'", None, "give one of them"))
        found[name] = int(value) if value.isdigit() else value
    return found


def as_data(plans: list[Plan], why: list[Reason], asked: Asked) -> dict[str, Any]:
    """All of it as JSON."""
    return {"plans": [_plan_data(p, asked) for p in plans], "reasons": [_reason_data(r) for r in why]}


def _plan_data(plan: Plan, asked: Asked) -> dict[str, Any]:
    causal, full = mfu(plan, asked)
    known = {"seconds": plan.forecast.seconds, "mfu": {"causal": causal, "full": full}}
    return {**asdict(plan.recipe), **known, **asdict(plan.forecast)}


def _reason_data(r: Reason) -> dict[str, Any]:
    return {"choice": r.choice, "slower": r.slower, "bytes_over": r.over, "mesh": mesh_text(r.plan.recipe)}
