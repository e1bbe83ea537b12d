"""What a user may say about a placement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from specc.compiler.placement.cost import H100, NVLINK, Device, Links
from specc.compiler.placement.roles import Context

Zero = Literal[0, 1, 2, 3]


@dataclass(frozen=True)
class Options:
    """`zero` is the ZeRO stage over the batch axes; `auto`: the lowest that fits into the memory.

    `sequence_parallel` says whether free axes split sequences between blocks; None: what is cheaper. `context` is how
    attention goes along sequence axes. `capacity` are the bytes of a rank; None: no bound, or that of the device if
    `zero` is `auto`. `pins` gives the equations of a path their strategy along an axis: {"layers.attention.q":
    {"tp": "split:H"}}. On free axes named in `split_weights` weights are used split: tensor parallelism.
    `recompute` says that only values between calls wait for the backward."""

    zero: Zero | Literal["auto"] = 0
    sequence_parallel: bool | None = None
    context: Context = "auto"
    capacity: float | None = None
    itemsize: int = 4
    pins: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    split_weights: tuple[str, ...] = ("tp",)
    recompute: bool = False
    device: Device = H100
    links: Links = NVLINK


DEFAULTS = Options()
