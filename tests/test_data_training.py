"""Each objective from real text to a trained model: build, run, stop, go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from specc.runtime.api import run
from specc.runtime.errors import RunError
from specc.runtime.make import build

LAYER = """
    layer:
      args: {mask: mask}
      in: {x: [... D]}
      steps:
        - rms_norm: {name: attention_norm}
        - attention: {heads: 2, head_dim: 16, mask: mask}
        - {expr: x + _, as: x}
        - rms_norm: {name: mlp_norm}
        - mlp: {hidden: 64}
        - expr: x + _
"""
BERT = f"""
  dims: {{D: 32, V: 512}}
  inputs: {{tokens: "int[B S]", labels: "int[B S]", segment: "int[B S]"}}
  attributes: {{doc: "int[B S]", pos: "int[B S]"}}
  blocks:{LAYER}
  steps:
    - embedding: {{rows: V, out: D, from: tokens, name: embed, as: x}}
    - embedding: {{rows: 64, out: D, from: pos, name: positions, as: p}}
    - embedding: {{rows: 2, out: D, from: segment, name: segments, as: g}}
    - {{expr: x + p + g, as: x}}
    - repeat: {{block: layer, times: 2, name: layers, args: {{mask: objective}}, from: x}}
    - linear: {{out: V, name: head, as: logits}}
    - cross_entropy: {{from: [logits, labels], as: loss}}
  outputs: {{logits: logits}}
  loss: loss
"""
GLM = (
    BERT.replace('doc: "int', 'part: "int[B S]", doc: "int')
    .replace("segment", "block_pos")
    .replace("rows: 2", "rows: 64")
)
T5 = f"""
  dims: {{D: 32, V: 512}}
  inputs: {{enc_tokens: "int[B T]", tokens: "int[B S]", labels: "int[B S]"}}
  attributes: {{enc_doc: "int[B T]", doc: "int[B S]", pos: "int[B S]"}}
  masks:
    encoder: q.enc_doc == k.enc_doc
    cross: k.enc_doc == 0
  blocks:{LAYER}
    writer:
      in: {{y: [B S D], memory: [B T D]}}
      steps:
        - layer: {{mask: objective, name: self, from: y, as: y}}
        - linear: {{out: [2, 16], name: q, from: y, as: q}}
        - linear: {{out: [2, 16], name: k, from: memory, as: k}}
        - linear: {{out: [2, 16], name: v, from: memory, as: v}}
        - attend: {{mask: cross, from: [q, k, v]}}
        - linear: {{out: D, over: [2, 16], name: out}}
        - {{expr: y + _, as: y}}
  steps:
    - embedding: {{rows: V, out: D, from: enc_tokens, name: embed, as: x}}
    - repeat: {{block: layer, times: 2, name: encoder, args: {{mask: encoder}}, from: x, as: memory}}
    - embedding: {{rows: V, out: D, from: tokens, tie: embed.weight, as: y}}
    - writer: {{from: [y, memory]}}
    - linear: {{out: V, name: head, as: logits}}
    - cross_entropy: {{from: [logits, labels], as: loss}}
  outputs: {{logits: logits}}
  loss: loss
"""
CAUSAL = BERT.replace('segment: "int[B S]"', 'part: "int[B S]"').replace("segment", "part")
MODELS = {"causal_lm": CAUSAL, "masked_lm": BERT, "blank_infilling": GLM, "span_corruption": T5}
SPEC = """
specc: 1
model:{model}
stages:
  pretrain:
    objective: {objective}
    {settings}
    data:
      sources: [{{corpus: python-stdlib, weight: 3}}, {{path: notes}}]
      seq_len: 48
      limit: 12
      validation: 0.3
    tokenizer: {{vocab: 400}}
    batch: {{sequences: 4, microbatch: 2}}
    optimizer: {{lr: 1e-2}}
    budget: {{steps: {steps}}}
    eval: {{every: 5, batches: 4}}
    checkpoint: {{every: 5}}
"""


def built(folder: Path, objective: str, steps: int, settings: str = "") -> Path:
    (folder / "notes").mkdir(parents=True)
    for i in range(10):
        words = [f"word{(i * j) % 13}" for j in range(120)]
        (folder / "notes" / f"{i}.md").write_text(f"note {i}: " + " ".join(words))
    text = SPEC.format(model=MODELS[objective], objective=objective, settings=settings, steps=steps)
    (folder / "x.yaml").write_text(text)
    return build(folder / "x.yaml", folder / "build").path


def losses(folder: Path) -> list[float]:
    file = next(folder.glob("build.runs/*/metrics.jsonl"))
    return [json.loads(line)["loss"] for line in file.read_text().splitlines() if "loss" in json.loads(line)]


@pytest.mark.parametrize("objective", list(MODELS))
def test_each_objective_trains_and_its_second_run_uses_the_tokens_of_the_first(objective: str, tmp_path: Path) -> None:
    path = built(tmp_path, objective, 30)
    said: list[str] = []
    run(path, base=tmp_path, say=said.append)
    seen = losses(tmp_path)
    assert len(seen) == 30
    assert all(map(math.isfinite, seen))
    assert np.mean(seen[-5:]) < np.mean(seen[:3]) - 0.4, seen
    stores = sorted(p.name for p in tmp_path.glob("build.tokens/*"))
    assert len(stores) == 4  # two sources, each for training and validation
    times = [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("build.tokens/*/tokens"))]
    next(tmp_path.glob("build.runs/*")).rename(tmp_path / "first")
    run(path, base=tmp_path, say=said.append)
    assert losses(tmp_path) == seen
    assert [p.stat().st_mtime_ns for p in sorted(tmp_path.glob("build.tokens/*/tokens"))] == times


def test_settings_of_an_objective_reach_the_data(tmp_path: Path) -> None:
    """Half of the texts as one long blank at the end; two thirds of the tokens hidden in the others."""
    path = built(tmp_path, "blank_infilling", 2, "blank_infilling: {density: 0.66, document: 0.5}")
    run(path, base=tmp_path, say=lambda _: None)
    assert all(map(math.isfinite, losses(tmp_path)))


def test_a_vocabulary_without_room_for_the_sentinels_is_told(tmp_path: Path) -> None:
    path = built(tmp_path, "span_corruption", 2)
    text = (tmp_path / "x.yaml").read_text().replace("vocab: 400", "vocab: 300").replace("seq_len: 48", "seq_len: 1024")
    (tmp_path / "x.yaml").write_text(text)
    path = build(tmp_path / "x.yaml", tmp_path / "build").path
    with pytest.raises(RunError, match="special tokens and 256 bytes need room"):
        run(path, base=tmp_path, say=lambda _: None)
