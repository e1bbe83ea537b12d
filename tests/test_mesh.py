"""The plan section as a mesh: its axes in order, `auto` filled in, and every mistake with the smallest change."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.compiler.placement.mesh import mesh_mistakes, mesh_of, options_of
from specc.spec.plan import PlanSpec
from specc.spec.spec import Spec, load

STAGE = """
stages:
  pretrain:
    data: {sources: [{path: notes}], seq_len: 62}
    tokenizer: {vocab: 1000}
    batch: {sequences: 12, microbatch: 6}
    budget: {steps: 1}
"""


def plan(text: str) -> PlanSpec:
    return Spec.from_yaml(f"specc: 1\nuse: models/llama\nplan: {text}").plan


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{}", "one process"),
        ("{mesh: auto, cluster: {devices: 1}}", "one process"),
        ("{mesh: {tp: 2, dp: 3}}", "tp=2 dp=3"),
        ("{mesh: {dp: 2, tp: 1}}", "dp=2"),
        ("{mesh: {dp: auto, tp: 2}, cluster: {devices: 8}}", "dp=4 tp=2"),
        ("{mesh: {dp: 2, tp: 4}, cluster: {devices: 8}}", "dp=2 tp=4"),
    ],
)
def test_axes_are_in_the_order_of_the_plan(text: str, shown: str) -> None:
    assert str(mesh_of(plan(text))) == shown


def test_names_give_roles() -> None:
    mesh = mesh_of(plan("{mesh: {dp_replicate: 2, dp: 2, cp: 2, ring: 2, ep: 2, tp: 2}}"))
    assert [a.role for a in mesh.axes] == ["batch", "batch", "sequence", "sequence", "experts", "free"]
    assert mesh.size == 64


def test_options_are_the_placers() -> None:
    options = options_of(plan("{zero: 3, sequence_parallel: on, context: ring, precision: {compute: bf16}}"))
    assert (options.zero, options.sequence_parallel, options.context, options.itemsize) == (3, True, "ring", 2)
    assert options_of(plan("{}")).sequence_parallel is None


@pytest.mark.parametrize(
    ("text", "code", "message", "hint"),
    [
        ("{mesh: {tpp: 2}}", "S520", "no axis 'tpp'", "did you mean 'tp'?"),
        ("{pins: {'layers.*': {model: H}}}", "S520", "no axis 'model'", "known: cp, dp,"),
        ("{mesh: {dp: 2, tp: 2}, cluster: {devices: 8}}", "S521", "4 ranks (dp 2 x tp 2), the cluster 8", "dp: 4, or"),
        ("{mesh: {dp: 3, tp: 5}, cluster: {devices: 8}}", "S521", "15 ranks", "cluster.devices: 15"),
        ("{mesh: {dp: auto, tp: 3}, cluster: {devices: 8}}", "S521", "do not divide by tp 3", "cluster.devices: 9"),
        ("{mesh: {dp: auto}}", "S521", "their number is not given", "cluster.devices: N"),
        ("{mesh: {dp: auto, tp: auto}, cluster: {devices: 8}}", "S521", "2 axes are auto", "dp: auto, and a size"),
        ("{mesh: {dp: 4}}", "S522", "6 sequences, which do not divide over dp=4", "batch.microbatch: 4"),
        ("{mesh: {dp: 5}}", "S522", "6 sequences", "batch.microbatch: 10 with batch.sequences: 10"),
        ("{mesh: {cp: 4}}", "S523", "62 tokens, which do not divide over cp=4", "data.seq_len: 64"),
    ],
)
def test_a_mistake_has_a_code_a_place_and_a_change(
    text: str, code: str, message: str, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"specc: 1\nuse: models/llama\nplan: {text}\n{STAGE}")
    (found,) = mesh_mistakes(load(path))
    assert found.code == code
    assert message in found.message
    assert hint in found.hint
    assert found.mark is not None
