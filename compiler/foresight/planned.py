"""The recipe that a spec's own plan comes down to."""

from __future__ import annotations

from specc.compiler.foresight.ask import cluster, question
from specc.compiler.foresight.recipe import Recipe, Recompute
from specc.compiler.foresight.search import Asked, Plan
from specc.compiler.foresight.step import forecast
from specc.compiler.hardware.tables import hardware
from specc.compiler.placement.mesh import mesh_of
from specc.compiler.schedule.schedules import SCHEDULES
from specc.compiler.stated import Stated, stated
from specc.spec.plan import PlanSpec
from specc.spec.spec import Spec
from specc.spec.stage import StageSpec


def recipe_of(plan: PlanSpec, stage: StageSpec, over_context: bool = False) -> Recipe:
    """`recompute: auto` counts as none, for it does something where memory is short alone; and so does a share, which
    is not priced. `over_context`: ZeRO splits over `cp` too, which specc's own does not."""
    sizes = {a.name: a.size for a in mesh_of(plan).axes}
    pp, ep, tp = (sizes.get(axis, 1) for axis in ("pp", "ep", "tp"))
    cp, shared = sizes.get("cp", 1) * sizes.get("ring", 1), sizes.get("dp", 1) * ep
    dp = shared * sizes.get("dp_replicate", 1)
    schedule = SCHEDULES[plan.schedule.kind]
    recompute: Recompute = "full" if plan.recompute == "full" else "none"
    return Recipe(
        dp=dp, shards=shared * (cp if over_context else 1), pp=pp, chunks=plan.schedule.chunks or schedule.least,
        cp=cp, ep=ep, tp=tp, zero=plan.zero, microbatch=stage.batch.size // dp, microbatches=stage.batch.microbatches,
        schedule=plan.schedule.kind, recompute=recompute, format=plan.precision.compute,
        on_host=plan.offload.activations, moments_on_host=plan.offload.optimizer,
        sequence_parallel={"auto": None, "on": True, "off": False}[plan.sequence_parallel],
    )  # fmt: skip


def predicted(spec: Spec, name: str, software: str) -> Plan:
    """What a step of a stage takes on the devices of the spec's own plan."""
    found = stated(spec, name)
    on = cluster(spec.plan.cluster.device, software, hardware())
    return own_plan(found, question(found, mesh_of(spec.plan).size, on, {}))


def own_plan(found: Stated, asked: Asked) -> Plan:
    """The plan of the spec itself, with what it takes."""
    recipe = recipe_of(found.spec.plan, found.spec.stages[found.name], asked.cluster.software.zero_over_context)
    return Plan(recipe, forecast(asked.model, recipe, asked.cluster))
