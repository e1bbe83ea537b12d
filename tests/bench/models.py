"""What is measured: five models, their batches, and how all sides train them (AdamW, clipping)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FACTS = "facts.json"  # what a model lowered has beside its graphs
LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 0.1, 1.0
Draw = Callable[["Model", torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Model:
    """A model of the library at these sizes. `sets` are overrides beside its dims, `units` what a step counts."""

    library: str
    dims: Mapping[str, int]
    batch: int
    draw: Draw
    length: int = 0  # tokens of a text
    sets: Mapping[str, Any] | None = None
    unit: str = "tokens"

    @property
    def units(self) -> int:
        return self.batch * (self.length or 1)


@dataclass(frozen=True)
class Setting:
    """One comparison."""

    model: str = "decoder-25m"
    dtype: str = "fp32"  # or bf16: weights stay fp32, products are in bf16
    threads: int = 2
    device: str = "cpu"  # or cuda

    @property
    def row(self) -> Model:
        return MODELS[self.model]

    def batch(self, by: torch.Generator) -> dict[str, Tensor]:
        """The inputs of a step."""
        return {n: x.to(self.device) for n, x in self.row.draw(self.row, by).items()}


def text(model: Model, by: torch.Generator) -> dict[str, Tensor]:
    return {"tokens": torch.randint(model.dims["V"], (model.batch, model.length), generator=by)}


def image(model: Model, by: torch.Generator) -> dict[str, Tensor]:
    d = model.dims
    pixels = torch.randn(model.batch, d["C"], d["Y"], d["Y"], generator=by)
    return {"image": pixels, "class": torch.randint(d["CLASSES"], (model.batch,), generator=by)}


def latents(model: Model, by: torch.Generator) -> dict[str, Tensor]:
    d, batch = model.dims, model.batch
    shape = (batch, d["C"], d["Y"], d["Y"])
    return {
        "x_t": torch.randn(shape, generator=by), "noise": torch.randn(shape, generator=by),
        "t": torch.randint(1000, (batch,), generator=by).float(),
        "class": torch.randint(d["CLASSES"], (batch,), generator=by),
    }  # fmt: skip


# Unpacked text under a plain causal mask.
PLAIN = {"attributes": {}, "masks": {"objective": "causal"}}
TIED = {**PLAIN, "steps.3.linear.tie": "embed"}
COMPARED = ("decoder-25m", "decoder-125m", "dit-s-2", "vit-s", "moe")
MODELS: Mapping[str, Model] = {
    "decoder-25m": Model(
        "llama", {"D": 512, "L": 8, "H": 8, "K": 4, "F": 1280, "V": 8192}, 8, text, length=512, sets=TIED
    ),
    "decoder-125m": Model(
        "llama", {"D": 768, "L": 12, "H": 12, "K": 12, "F": 2048, "V": 50304}, 8, text, length=512, sets=TIED
    ),
    "dit-s-2": Model(
        "dit", {"D": 384, "L": 12, "H": 6, "C": 4, "Y": 32, "P": 2, "CLASSES": 1000}, 16, latents, unit="images"
    ),
    "vit-s": Model(
        "vit", {"D": 384, "L": 12, "H": 6, "F": 1536, "C": 3, "Y": 224, "P": 16, "CLASSES": 1000}, 16, image,
        unit="images",
    ),
    "moe": Model(
        "mixtral", {"D": 512, "L": 6, "H": 8, "K": 4, "F": 768, "EXPERTS": 8, "USED": 2, "V": 8192}, 8, text,
        length=512, sets={**PLAIN, "loss": "lm"},
    ),
    # Llama-3.2-1B.
    "decoder-1b": Model(
        "llama", {"D": 2048, "L": 16, "H": 32, "K": 8, "F": 8192, "V": 128256}, 2, text, length=4096, sets=TIED
    ),
    # No smaller than what the quickstart trains, and small enough that the executor's own work shows.
    "decoder-3m": Model(
        "llama", {"D": 192, "L": 4, "H": 6, "K": 2, "F": 512, "V": 4096}, 16, text, length=256, sets=TIED
    ),
}  # fmt: skip
