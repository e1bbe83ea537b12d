"""From a spec to what a search for plans is asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from specc.compiler.foresight.calls import Cluster
from specc.compiler.foresight.model import Model
from specc.compiler.foresight.reasons import mesh_text
from specc.compiler.foresight.recipe import ITEMSIZE
from specc.compiler.foresight.search import Asked, Found
from specc.compiler.hardware.tables import row_of
from specc.compiler.stated import Stated
from specc.compiler.training import stage_sizes
from specc.compiler.units import size
from specc.spec.errors import Diagnostic, SpecError
from specc.spec.hardware import Hardware
from specc.spec.spec import Spec, takes_text
from specc.spec.stage import StageSpec


def cluster(device: str, software: str, tables: Hardware) -> Cluster:
    """The rows of the tables by name."""
    row = row_of(tables.devices, device, "device")
    near, far = (row_of(tables.links, link, "link") for link in (row.near, row.far))
    host = row_of(tables.links, row.host, "link") if row.host else None
    return Cluster(row, near, far, row_of(tables.software, software, "software"), host)


def question(found: Stated, devices: int, on: Cluster, pins: Mapping[str, int | str]) -> Asked:
    """What to search for: a step of the stage."""
    stage, plan = found.spec.stages[found.name], found.spec.plan
    form = plan.precision.compute
    lengths = stage.lengths()
    sizes = partial(stage_sizes, found.program, lengths=lengths)
    model = Model(found.program, sizes, found.rows, ITEMSIZE[form], stage.optimizer)
    if form not in on.device.peak or form not in on.device.product:
        hint = f"peak: {{{form}: TFLOP/s}} and product: {{{form}: share}} in its row, or another plan.precision.compute"
        raise SpecError(Diagnostic("S540", f"the device's row has no figures for products in {form}", None, hint))
    offload = plan.offload if "offload" in plan.model_fields_set else None
    held = (offload.activations, offload.optimizer) if offload else None
    tokens = row_tokens(found.spec, stage)
    return Asked(model, on, devices, stage.batch.sequences, tokens, form, pins, plan.cluster.limit, held)


def row_tokens(spec: Spec, stage: StageSpec) -> int:
    """Tokens of a row of a stage's inputs; 1 for a picture without a caption."""
    return max(stage.lengths().values()) if takes_text(spec, stage) else 1


def none_fits(plans: Found, asked: Asked) -> SpecError:
    """Why there is no plan at all."""
    if not plans.over:
        pinned = " with " + ", ".join(f"{k} {n}" for k, n in asked.pins.items()) if asked.pins else ""
        text = f"{asked.devices} devices and {asked.sequences} sequences a step do not divide into a plan{pinned}"
        hint = "batch.sequences: a multiple of the devices, say"
        if plans.refused:
            text = f"no plan of {asked.devices} devices{pinned} divides the model's dims"
            hint = f"dims (heads, sequence) that are multiples of the axes, and pp at most {len(asked.model.calls)}"
        elif pinned:
            hint = f"pins whose product divides the devices, {hint}"
        return SpecError(Diagnostic("S542", text, None, hint))
    least = plans.over[0]
    takes = f"the smallest takes {size(least.forecast.nbytes)} of {size(asked.capacity)}"
    text = f"no plan fits: {takes} ({mesh_text(least.recipe)})"
    return SpecError(Diagnostic("S542", text, None, "more devices, or devices with more memory"))
