"""`mesh: auto` on several devices: the plan that is foretold to be the fastest is written into the spec."""

from __future__ import annotations

import pytest

import specc
from specc.compiler.foresight.choose import chosen
from specc.compiler.placement.mesh import mesh_mistakes, mesh_of
from specc.spec.spec import Spec

SPEC = """
specc: 1
use: models/llama
model:
  dims: {D: 4096, L: 8, H: 32, K: 8, F: 14336, V: 32000}
plan:
  cluster: {devices: 8, device: a100-40gb}
  precision: {compute: bf16}
stages:
  pretrain:
    data: {sources: [{path: texts}], seq_len: 4096}
    tokenizer: {vocab: 32000}
    batch: {sequences: 64}
    budget: {steps: 10}
"""


def spec(*changes: str) -> Spec:
    return Spec.from_yaml(SPEC).changed(*changes)


def test_a_mesh_that_is_said_or_is_of_one_process_stays() -> None:
    for said in (spec("plan.mesh={dp: 4, tp: 2}"), spec("plan.cluster.devices=1"), spec("plan.cluster.devices=auto")):
        assert chosen(said) is said


def test_a_plan_for_all_devices_is_found() -> None:
    found = chosen(spec())
    assert mesh_of(found.plan).size == 8
    assert found.plan.zero >= 1  # 2.0 B parameters: their state fits on no device of 40 GB whole
    assert not mesh_mistakes(found)
    assert found.stages["pretrain"].batch.microbatch is not None


def test_what_the_spec_says_is_held() -> None:
    found = chosen(spec("plan.zero=3", "plan.recompute=full", "stages.pretrain.batch.microbatch=32"))
    assert (found.plan.zero, found.plan.recompute, found.stages["pretrain"].batch.microbatch) == (3, "full", 32)


def test_a_tight_memory_changes_the_plan() -> None:
    roomy, tight = chosen(spec()), chosen(spec("plan.cluster.memory=10"))
    assert tight.plan != roomy.plan


def test_the_host_is_used_where_the_device_is_too_small() -> None:
    found = chosen(spec("plan.cluster={devices: 1, device: a100-40gb, memory: 24}", "plan.mesh={dp: auto}"))
    assert found.plan.offload == spec().plan.offload, "a mesh that is said stays"
    found = chosen(spec("plan.cluster={devices: 2, device: a100-40gb, memory: 20}"))
    assert found.plan.offload.optimizer or found.plan.offload.activations
    held = chosen(spec("plan.cluster.memory=20", "plan.offload={activations: 1.0}"))
    assert (held.plan.offload.activations, held.plan.offload.optimizer) == (1.0, False)


def test_no_plan_at_all_is_said_with_what_is_missing() -> None:
    with pytest.raises(specc.SpecError, match="no plan fits: the smallest takes"):
        chosen(spec("plan.cluster.memory=1"))
    with pytest.raises(specc.SpecError, match="plans that fit is as the spec says"):
        chosen(spec("plan.cluster.devices=2", "stages.pretrain.batch.microbatch=64"))
    with pytest.raises(specc.SpecError, match="do not divide into a plan"):
        chosen(spec("stages.pretrain.batch.sequences=2", "plan.cluster.devices=7"))
