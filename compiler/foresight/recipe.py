"""How a model is trained on a cluster: the numbers that a plan comes down to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from specc.spec.hardware import Format

ITEMSIZE: Mapping[Format, int] = {"fp8": 2, "bf16": 2, "fp32": 4, "fp64": 8}  # of values; fp8 is for products alone
Recompute = Literal["none", "attention", "half-products", "half-layers", "full"]


@dataclass(frozen=True)
class Again:
    """The shares of a layer's forward that are done again in the backward."""

    products: float = 0.0
    attention: float = 0.0
    rows: float = 0.0
    messages: float = 0.0


AGAIN: Mapping[Recompute, Again] = {
    "none": Again(),
    "attention": Again(attention=1.0),
    "half-products": Again(products=0.5, rows=1.0),
    "half-layers": Again(0.5, 0.5, 0.5, 0.5),
    "full": Again(1.0, 1.0, 1.0, 1.0),
}


@dataclass(frozen=True)
class Recipe:
    """`dp` ranks of data parallelism, of which `shards` share what ZeRO splits. A microbatch has `microbatch` sequences
    a data parallel rank, a step `microbatches` of them. A pipeline rank has `chunks` stages. In the host's memory
    wait the share `on_host` of what calls save for their backward, and the optimizer's moments if `moments_on_host`."""

    dp: int = 1
    shards: int = 1
    pp: int = 1
    chunks: int = 1
    cp: int = 1
    ep: int = 1
    tp: int = 1
    zero: int = 0
    microbatch: int = 1
    microbatches: int = 1
    schedule: str = "1f1b"
    recompute: Recompute = "none"
    on_host: float = 0.0
    moments_on_host: bool = False
    sequence_parallel: bool | None = None
    format: Format = "bf16"

    @property
    def expert_shards(self) -> int:
        """Ranks that share what ZeRO splits of an expert: those of expert parallelism have other experts."""
        return max(1, self.shards // self.ep)

    @property
    def devices(self) -> int:
        return self.dp * self.pp * self.cp * self.tp
