"""The `plan:` section: devices, mesh, how weights and sequences are split, precision and compilation."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from specc.spec.node import Node

Share = Annotated[float, Field(ge=0, lt=1)]
AxisSize = PositiveInt | Literal["auto"]


class Cluster(Node):
    devices: AxisSize = Field("auto", description="processes in all; auto: as many as the mesh has")
    device: str = Field("cpu", description="what placements are priced for, a name of the tables; cpu: an h100-sxm")
    memory: PositiveFloat | None = Field(
        None, description="GiB that a rank may fill; default: what the device has, and no bound on a cpu"
    )

    @property
    def limit(self) -> float:
        """Bytes that the plan says a rank may fill."""
        return math.inf if self.memory is None else self.memory * 2**30


class Precision(Node):
    """What is computed in, what the optimizer keeps, and what gradients are summed in."""

    compute: Literal["fp32", "bf16", "fp64"] = "fp32"
    master: Literal["fp32", "fp64"] = "fp32"
    reduce: Literal["fp32", "fp64"] = "fp32"


class ScheduleSpec(Node):
    """The order of a pipeline's stages along the axis pp."""

    kind: Literal["gpipe", "1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe-v"] = "1f1b"
    chunks: PositiveInt | None = Field(None, description="stages of a rank; default: the fewest that the schedule has")


class Offload(Node):
    """What is kept in the host's memory while a device does not need it."""

    activations: float = Field(0.0, ge=0, le=1, description="share of the bytes that blocks save for their backward")
    optimizer: bool = Field(False, description="moments, but for those of the parameter that is updated")


class PlanSpec(Node):
    cluster: Cluster = Cluster()
    mesh: Literal["auto"] | dict[str, AxisSize] = Field(
        "auto",
        description="axes and their sizes, outermost first: pp (stages), dp_replicate, dp (batch), cp, ring "
        "(sequence), ep (experts), tp (weights); one may be auto: what is left of the devices; all of it auto: the "
        "fastest plan for cluster.devices",
    )
    schedule: ScheduleSpec = ScheduleSpec()
    zero: Literal[0, 1, 2, 3] = Field(
        0, description="what the batch axes split: 1 moments, 2 gradients too, 3 weights too"
    )
    sequence_parallel: Literal["auto", "on", "off"] = Field("auto", description="tp splits sequences between blocks")
    context: Literal["auto", "ulysses", "ring", "gather"] = Field("auto", description="attention along cp")
    pins: dict[str, dict[str, str]] = Field({}, description="a path's dim to split along an axis: {layers.*: {tp: H}}")
    precision: Precision = Precision()
    compile: Literal["auto", "on", "off"] = "auto"
    kernels: Literal["auto", "emit", "triton", "aten"] = Field(
        "auto",
        description="generated kernels: emit writes them and compiles them for all GPUs, triton also uses them, aten "
        "makes none; auto: for a GPU they are written and compiled for it, else none",
    )
    recompute: Literal["auto", "none", "full"] | Share = Field(
        "auto",
        description="what blocks save for their backward: all but what is cheap (none), a share of that, nothing "
        "(full: they run forward again); auto: as much as cluster.memory allows",
    )
    offload: Offload = Offload()
    threads: int | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _something_to_offload(self) -> PlanSpec:
        if self.recompute == "full" and self.offload.activations:
            raise ValueError("'offload.activations' has no effect on 'recompute: full', which keeps nothing to offload")
        return self
