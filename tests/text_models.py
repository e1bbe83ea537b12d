"""Small language models for tests: programs with drawn weights, and builds of the library's models on real rows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import specc
from specc.compiler.elaborate import elaborate_model
from specc.compiler.program import Program
from specc.runtime.built import Build
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

SMALL = {
    "gpt2": {"D": 32, "L": 2, "H": 2, "V": 512, "CTX": 48},
    "bert": {"D": 32, "L": 2, "H": 2, "F": 64, "V": 512, "CTX": 48},
    "glm": {"D": 32, "L": 2, "H": 2, "V": 512, "CTX": 48},
    "t5": {"D": 32, "LE": 2, "LD": 2, "H": 2, "E": 16, "F": 48, "V": 512},
}
OBJECTIVES = {"gpt2": "causal_lm", "bert": "masked_lm", "glm": "blank_infilling", "t5": "span_corruption"}
STAGE = """
specc: 1
use: {name}
set:
{dims}
stages:
  pretrain:
    objective: {objective}
    data: {{sources: [{{path: notes}}], seq_len: 48, validation: 0.3}}
    tokenizer: {{vocab: 400}}
    batch: {{sequences: 4, microbatch: 2}}
    optimizer: {{lr: 1e-2}}
    budget: {{steps: 30}}
    sample: {{prompts: ["the cat"], tokens: 4}}
"""
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "ran", "home"]


def model(**sections: Any) -> Program:
    return elaborate_model(ModelSpec.model_validate(sections), "m")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=FP64)


def random_params(program: Program) -> dict[str, Tensor]:
    return {n: drawn(*p.type.shape({}), seed=i) * 0.3 for i, (n, p) in enumerate(program.params.items())}


def built(folder: Path, name: str, *overrides: str) -> Build:
    """The build of a stage of a small model of the library with its objective; its texts are words in any order."""
    (folder / "notes").mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for i in range(16):
        (folder / "notes" / f"{i}.md").write_text(" ".join(draw.choices(WORDS, k=120)))
    dims = "\n".join(f"  model.dims.{d}: {n}" for d, n in SMALL[name].items())
    text = STAGE.format(name=name, dims=dims, objective=OBJECTIVES[name])
    (folder / "x.yaml").write_text(text)
    return specc.build(folder / "x.yaml", folder / "build", overrides)
