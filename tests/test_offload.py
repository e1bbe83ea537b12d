"""Saved values that wait on the host: which, from when to when, that nothing changes by it, and what it frees."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specc.compiler.build import build_spec
from specc.compiler.schedule.actions import Action, one_rank
from specc.compiler.schedule.ledger import HOST
from specc.compiler.schedule.offload import offloaded
from specc.runtime.built import open_build
from specc.runtime.device import CPU
from specc.runtime.executor import Executor
from specc.runtime.host import Host
from specc.runtime.loop import one_step
from specc.runtime.optimizer import Updater
from specc.spec.spec import load
from tests.grid.models import TRACERS, inputs_of, weights_of
from tests.grid.run import Case, artifact, body_of
from tests.training import begun, made, write_spec


def text(actions: list[Action]) -> str:
    return " | ".join(map(str, actions))


def test_what_waits_longest_leaves_and_comes_back_while_the_action_before_its_backward_runs() -> None:
    actions = one_rank(4, 1, {0, 1, 2, 3})
    assert text(offloaded(actions, lambda call: 10, 0.5)) == (
        "UNSHARD | F c0 m0 | OFFLOAD c0 m0 | F c1 m0 | OFFLOAD c1 m0 | F c2 m0 | F c3 m0 | B c3 m0 | FETCH c1 m0"
        " | B c2 m0 | FETCH c0 m0 | B c1 m0 | B c0 m0 | REDUCE | STEP"
    )


def test_what_is_needed_again_at_once_stays() -> None:
    actions = one_rank(3, 2, {0, 1, 2})
    moved = offloaded(actions, lambda call: 10, 1.0)
    assert {(a.call, a.microbatch) for a in moved if a.kind == "OFFLOAD"} == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert offloaded(actions, lambda call: 10, 0.0) == actions


def test_values_come_back_as_they_were_and_views_of_one_memory_share_one() -> None:
    base = torch.randn(4, 6)
    weight = torch.randn(3)
    saved = [base, base.t(), base[1:, ::2], None, weight, torch.ones(1).expand(5)]
    host = Host(CPU)
    away = host.away(saved, {weight.untyped_storage().data_ptr()})
    assert len(away.memories) == 2
    assert away.saved[4] is weight
    back = host.back(away).saved
    for x, y in zip(saved, back, strict=True):
        if x is None:
            assert y is None
            continue
        assert isinstance(y, Tensor)
        assert (x.shape, x.stride(), x.dtype) == (y.shape, y.stride(), y.dtype)
        assert torch.equal(x, y)
    assert back[0].untyped_storage().data_ptr() == back[2].untyped_storage().data_ptr() != base.data_ptr()


@pytest.mark.parametrize("name", ["llama", "deepseek_v2"])
def test_gradients_are_the_same_bit_by_bit(name: str) -> None:
    def step(case: Case) -> dict[str, Tensor]:
        a, tracer = artifact(case), TRACERS[case.model]
        bodies = {n: body_of(*each) for n, each in a.graphs.items()}
        run = Executor(a.calls, bodies, a.actions[0], a.loss, {}, a.trainable, torch.float32)
        program = tracer.program()
        batches = [inputs_of(program, tracer.sizes, torch.float32, m) for m in range(2)]
        return run.step(weights_of(program, torch.float32), batches, [0.5, 0.5]).grads

    plain, moved = (step(Case(name, plan, 1, torch.float32)) for plan in ("alone", "alone-offload"))
    assert plain.keys() == moved.keys()
    assert all(torch.equal(g, moved[n]) for n, g in plain.items())


def test_a_build_foretells_what_the_device_and_the_host_hold(tmp_path: Path) -> None:
    spec, found = write_spec(tmp_path), {}
    for share in (0, 1):
        build = build_spec(load(spec, ["model.dims.L=8", f"plan.offload.activations={share}"]), tmp_path / str(share))
        found[share] = build[0].memory
        told = json.loads((tmp_path / str(share) / "stages" / "pretrain" / "memory.json").read_text())
        assert (HOST in told) == bool(share)
    assert found[1]["peak"] < found[0]["peak"]
    stages = [open_build(tmp_path / name).stages["pretrain"] for name in ("0", "1")]
    assert stages[0].hash == stages[1].hash  # a run may go on with what it did not begin with


def test_moments_on_the_host_give_the_same_weights(tmp_path: Path) -> None:
    write_spec(tmp_path)
    runs = [begun(made(tmp_path, name=name)) for name in ("here", "there")]
    runs[1].optimizer = Updater(runs[1].stage.spec.optimizer, runs[1].optimizer.params, on_host=True)
    for run in runs:
        for run.step in range(3):
            one_step(run, 3)
    here, there = (run.params for run in runs)
    assert all(torch.equal(x, there[n]) for n, x in here.items())
    assert runs[0].optimizer.state().keys() == runs[1].optimizer.state().keys()


def test_moments_on_the_host_are_not_the_devices(tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    plain, moved = (
        build_spec(load(spec, [f"plan.offload.optimizer={on}"]), tmp_path / on)[0].memory for on in ("false", "true")
    )
    assert moved["optimizer"] == 0 < plain["optimizer"] == moved[HOST]
