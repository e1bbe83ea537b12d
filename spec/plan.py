"""The `plan:` section: devices, mesh, precision and compilation. This version runs on one process."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from specc.spec.node import Node


class Cluster(Node):
    devices: int = Field(1, ge=1)
    device: Literal["cpu"] = "cpu"


class Precision(Node):
    """What is computed in, what the optimizer keeps, and what gradients are summed in."""

    compute: Literal["fp32", "bf16", "fp64"] = "fp32"
    master: Literal["fp32", "fp64"] = "fp32"
    reduce: Literal["fp32", "fp64"] = "fp32"


class PlanSpec(Node):
    cluster: Cluster = Cluster()
    mesh: Literal["auto"] | dict[str, int | Literal["auto"]] = "auto"
    precision: Precision = Precision()
    compile: Literal["auto", "on", "off"] = "auto"
    recompute: Literal["auto", "none"] = "auto"
    threads: int | Literal["auto"] = "auto"

    @model_validator(mode="after")
    def _one_process(self) -> PlanSpec:
        sizes = self.mesh.values() if isinstance(self.mesh, dict) else []
        if self.cluster.devices > 1 or any(n not in (1, "auto") for n in sizes):
            raise ValueError("this version runs on one device; a mesh over several is not built yet")
        return self
