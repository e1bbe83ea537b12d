"""A tiny spec, built and begun in this process, for tests of training."""

from __future__ import annotations

import json
import random
from pathlib import Path

from specc.compiler.build import build_spec
from specc.runtime.built import Build, open_build
from specc.runtime.loop import Run
from specc.runtime.train import begin, stage_folder
from specc.spec.spec import load

SPEC = """
specc: 1
use: models/llama
model:
  dims: {D: 16, L: 2, H: 2, K: 1, F: 24, V: 512}
stages:
  pretrain:
    data: {sources: [{path: TEXTS}], seq_len: 16, validation: 0.3}
    tokenizer: {vocab: 320}
    batch: {sequences: 4, microbatch: 2}
    optimizer: {lr: 1e-2}
    budget: {steps: 6}
    eval: {every: 3, batches: 100}
    checkpoint: {every: 1, keep: 10}
"""
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "ran", "home"]


def write_spec(folder: Path, more: str = "") -> Path:
    """The spec, with more sections, and its texts."""
    texts = folder / "texts"
    texts.mkdir(parents=True)
    draw = random.Random(0)
    for i in range(12):
        (texts / f"{i:02d}.txt").write_text(" ".join(draw.choices(WORDS, k=draw.randrange(20, 60))))
    (folder / "tiny.yaml").write_text(SPEC.replace("TEXTS", json.dumps(str(texts))) + more + "\n")
    return folder / "tiny.yaml"


def made(folder: Path, *overrides: str, name: str = "tiny") -> Build:
    """The spec's build with these overrides; the texts and the spec are written at the first call."""
    spec = folder / "tiny.yaml"
    if not spec.is_file():
        write_spec(folder)
    build_spec(load(spec, [f"stages.pretrain.{o}" for o in overrides]), folder / "build" / name)
    return open_build(folder / "build" / name)


def begun(build: Build, say: list[str] | None = None) -> Run:
    """The first stage, ready for its first step."""
    stage = next(iter(build.stages.values()))
    folder = stage_folder(build, stage)
    folder.mkdir(parents=True, exist_ok=True)
    return begin(build, stage, folder, Path.cwd(), (say if say is not None else []).append)
