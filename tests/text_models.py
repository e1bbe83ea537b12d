"""Small language models for tests: programs with drawn weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from specc.compiler.elaborate import elaborate_model
from specc.compiler.program import Program
from specc.spec.model import ModelSpec

FP64 = torch.float64

BY_DISTANCE: dict[str, Any] = {
    "dims": {"D": 6, "H": 2, "V": 11},
    "inputs": {"tokens": "int[B S]"},
    "steps": [
        {"relative_bucket": {"q": "S", "k": "S", "buckets": 6, "max_distance": 9, "bidirectional": False}},
        {"embedding": {"rows": 6, "out": "H", "name": "distances"}, "as": "far"},
        {"embedding": {"rows": "V", "out": "D", "name": "embed"}, "from": "tokens"},
        {"attention": {"heads": "H", "head_dim": 3, "mask": "causal", "score_bias": "far", "scale": 1.0}},
        {"linear": {"out": "V"}, "as": "logits"},
    ],
    "outputs": {"logits": "logits"},
}


def model(**sections: Any) -> Program:
    return elaborate_model(ModelSpec.model_validate(sections), "m")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FP64)


def random_params(program: Program) -> dict[str, Tensor]:
    return {n: drawn(*p.type.shape({}), seed=i) * 0.3 for i, (n, p) in enumerate(program.params.items())}
