"""`mesh: auto` on several devices: the fastest plan that is foretold for them, written into the spec."""

from __future__ import annotations

from collections.abc import Iterator

from specc.compiler.foresight.ask import cluster, none_fits, question, row_tokens
from specc.compiler.foresight.reasons import mesh_text, offload_text
from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.search import search
from specc.compiler.hardware.tables import hardware
from specc.compiler.placement.mesh import is_open, mesh_mistakes
from specc.compiler.stated import stated
from specc.spec.errors import Diagnostic, SpecError, in_order
from specc.spec.spec import Spec
from specc.spec.stage import StageSpec

SOFTWARE = "specc"  # a row of the table


def chosen(spec: Spec) -> Spec:
    """The spec with a plan for its devices, if it leaves the mesh open; what it says of the rest is held.

    The plan is that of the stage with the most tokens a step, among those that all stages' batches divide over."""
    if not is_open(spec.plan) or not spec.stages:
        return spec
    name = max(spec.stages, key=lambda n: spec.stages[n].batch.sequences * row_tokens(spec, spec.stages[n]))
    plan, stage = spec.plan, spec.stages[name]
    assert isinstance(plan.cluster.devices, int)
    pins = {"zero": plan.zero} if "zero" in plan.model_fields_set else {}
    on = cluster(plan.cluster.device, SOFTWARE, hardware())
    asked = question(stated(spec, name), plan.cluster.devices, on, pins)
    found = search(asked)
    mistakes: list[Diagnostic] = []
    for each in found.fit:
        if _holds(each.recipe, spec, stage):
            made = spec.changed(*_said(each.recipe, name))
            mistakes = mesh_mistakes(made)
            if not mistakes:
                return made
    if mistakes:
        raise SpecError(*in_order(mistakes))
    if found.fit:
        text = (
            f"none of the {len(found.fit)} plans that fit is as the spec says (zero, schedule, recompute, microbatch)"
        )
        raise SpecError(Diagnostic("S542", text, spec.mark(("plan",)), "leave one of these out, or say plan.mesh"))
    raise none_fits(found, asked)


def _holds(r: Recipe, spec: Spec, stage: StageSpec) -> bool:
    """Whether a plan is as the spec says where it says something."""
    plan, said = spec.plan, spec.plan.model_fields_set
    schedule = r.pp == 1 or "schedule" not in said or (
        r.schedule == plan.schedule.kind and plan.schedule.chunks in (None, r.chunks)
    )  # fmt: skip
    recompute = plan.recompute == "auto" or r.recompute == ("full" if plan.recompute == "full" else "none")
    return schedule and recompute and (stage.batch.microbatch is None or r.microbatch * r.dp == stage.batch.size)


def _said(r: Recipe, stage: str) -> Iterator[str]:
    """A plan as overrides of a spec."""
    yield f"plan.mesh={{{mesh_text(r)}}}"
    yield f"plan.zero={r.zero}"
    yield f"stages.{stage}.batch.microbatch={r.microbatch * r.dp}"
    if r.pp > 1:
        yield f"plan.schedule={{kind: {r.schedule}, chunks: {r.chunks}}}"
    if r.recompute == "full":
        yield "plan.recompute=full"
    if r.on_host or r.moments_on_host:
        yield f"plan.offload={{{offload_text(r)}}}"
