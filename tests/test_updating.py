"""What an update takes, as foretold: moments, memory and FLOPs of each kind, against what runs and closed forms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from specc.compiler.build import build_spec
from specc.compiler.elaborate import elaborate
from specc.compiler.foresight.ask import cluster, question
from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.step import Forecast, forecast
from specc.compiler.hardware.tables import hardware
from specc.compiler.moments import Matrix, orthogonalised
from specc.compiler.placement.options import Options
from specc.compiler.placement.place import place
from specc.compiler.placement.types import Axis, Mesh
from specc.compiler.program import Program
from specc.compiler.stated import stated
from specc.compiler.training import trained
from specc.compiler.updating import Part, iteration, parts_of, update_of
from specc.runtime.loop import one_step, save
from specc.runtime.optimizer import Updater
from specc.runtime.profile import most_allocated
from specc.spec.optimizer import OptimizerSpec
from specc.spec.spec import load
from tests.training import begun, made, write_spec

PLAIN, EXPERTS = Matrix((), (0,), (1,)), Matrix((0,), (1,), (2,))
SHAPES = {"a": (96, 160), "b": (96, 160), "c": (96, 160), "d": (2, 64, 48), "e": (300, 40), "f": (40,)}
MATRICES = {"a": PLAIN, "b": PLAIN, "c": PLAIN, "d": EXPERTS}
MOMENTS = {"adamw": 2, "lion": 1, "sgd": 1, "plain": 0}


def optimizer(kind: str) -> OptimizerSpec:
    settings = {"kind": "sgd", "momentum": 0} if kind == "plain" else {"kind": kind}
    return TypeAdapter[OptimizerSpec](OptimizerSpec).validate_python(settings)


def ready(kind: str, dtype: torch.dtype) -> tuple[Updater, dict[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    params = {n: torch.randn(shape, generator=g) for n, shape in SHAPES.items()}
    return Updater(optimizer(kind), params, matrices=MATRICES, dtype=dtype), {n: p.clone() for n, p in params.items()}


def parts(kind: str) -> dict[str, Part]:
    return {n: Part(shape, shape, MATRICES.get(n) if kind == "muon" else None) for n, shape in SHAPES.items()}


@pytest.mark.parametrize("kind", ["adamw", "muon", "lion", "sgd", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_and_the_memory_of_an_update_are_those_of_the_allocator(kind: str, dtype: torch.dtype) -> None:
    ours, grads = ready(kind, dtype)
    told = update_of(optimizer(kind), parts(kind), 4, dtype.itemsize)
    state = ours.state()
    assert {n: sum(t.nbytes for k, t in state.items() if k.endswith(f"/{n}") and t.ndim) for n in SHAPES} == told.kept
    ours.step({n: x.clone() for n, x in grads.items()}, 1e-3)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        ours.step(grads, 1e-3)
    assert most_allocated(found) == pytest.approx(told.space, rel=0.05, abs=1024)


def test_flops_of_muon_are_those_that_torch_counts() -> None:
    ours, grads = ready("muon", torch.float32)
    with FlopCounterMode(display=False) as counter:
        ours.step(grads, 1e-3)
    assert update_of(optimizer("muon"), parts("muon"), 4, 4).flops == counter.get_total_flops() > 0


def test_ranks_that_share_matrices_work_on_some_each() -> None:
    """Three of them on two ranks: two on one."""
    whole = {n: Part(SHAPES[n], SHAPES[n], PLAIN) for n in "abc"}
    halves = {n: Part(SHAPES[n], (48, 160), PLAIN, ranks=2) for n in "abc"}
    all_, one = (update_of(optimizer("muon"), each, 4, 4) for each in (whole, halves))
    assert one.flops == all_.flops * 2 / 3
    assert sum(one.kept.values()) == sum(all_.kept.values()) / 2


@pytest.mark.parametrize(("kind", "plan"), [
    ("muon", "{}"), ("lion", "{}"), ("muon", "{mesh: {dp: 2}, zero: 3}"), ("sgd", "{mesh: {dp: 2}, zero: 1}"),
])  # fmt: skip
def test_a_build_counts_the_moments_of_its_kind(kind: str, plan: str, tmp_path: Path) -> None:
    spec = write_spec(tmp_path)
    found: dict[str, float] = {}
    for each in ("adamw", kind):
        sets = [f"stages.pretrain.optimizer.kind={each}", f"plan={plan}"]
        (facts,) = build_spec(load(spec, sets), tmp_path / each)
        found[each] = json.loads((tmp_path / each / "stages" / "pretrain" / "memory.json").read_text())["optimizer"]
        assert found[each] == facts.memory["optimizer"]
    params = json.loads((tmp_path / kind / "stages" / "pretrain" / "params.json").read_text())
    numbers = sum(torch.Size(p["shape"]).numel() for p in params)
    matrices = sum(torch.Size(p["shape"]).numel() for p in params if "matrix" in p)
    fewer = matrices if kind == "muon" else numbers
    assert bool(matrices) == (kind == "muon")
    if plan == "{}":
        assert (found["adamw"], found["adamw"] - found[kind]) == (8 * numbers, 4 * fewer)
    assert found[kind] / found["adamw"] == pytest.approx(1 - fewer / (2 * numbers), rel=1e-9)


def foretold(kind: str, tmp_path: Path, **more: object) -> Forecast:
    spec = load(write_spec(tmp_path / kind), ["plan.precision.compute=bf16", f"stages.pretrain.optimizer.kind={kind}"])
    asked = question(stated(spec), 1, cluster("h100", "specc", hardware()), {})
    recipe = replace(Recipe(zero=1, microbatch=2, microbatches=2), **more)  # type: ignore[arg-type]
    return forecast(asked.model, recipe, asked.cluster)


@pytest.mark.parametrize("shards", [1, 2])
def test_plans_count_the_moments_of_the_kind(shards: int, tmp_path: Path) -> None:
    """By hand: matrices of 2 layers with D 16, H 2, K 1, E 8, F 24, and a table, a head and norms beside them."""
    matrices = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24)
    numbers = matrices + 2 * 16 * 512 + 5 * 16
    told = {k: foretold(k, tmp_path / str(shards), dp=shards, shards=shards) for k in ("adamw", "muon", "lion", "sgd")}
    kept = {k: f.memory["optimizer"] for k, f in told.items()}
    assert kept == {
        "adamw": 12 * numbers / shards, "muon": (12 * numbers - 4 * matrices) / shards,
        "lion": 8 * numbers / shards, "sgd": 8 * numbers / shards,
    }  # fmt: skip
    host = {
        k: foretold(k, tmp_path / "host" / str(shards), dp=shards, shards=shards, moments_on_host=True) for k in told
    }
    assert {k: f.memory["optimizer"] for k, f in host.items()} == dict.fromkeys(told, 4 * numbers / shards)
    assert {k: f.on_host for k, f in host.items()} == {k: n - 4 * numbers / shards for k, n in kept.items()}


def test_plans_count_the_time_of_making_matrices_orthogonal(tmp_path: Path) -> None:
    muon, lion = (foretold(kind, tmp_path) for kind in ("muon", "lion"))
    device = hardware().devices["h100-sxm"]
    flops = 5 * 2 * (2 * iteration(16, 16) + 2 * iteration(8, 16) + 3 * iteration(16, 24))
    numbers = (lion.memory["optimizer"] - muon.memory["optimizer"]) / -4  # that have two moments
    moved = 8 * numbers / (device.bandwidth * 1e9 * device.stream)
    rate = device.peak["bf16"] * 1e12 * device.product["bf16"]
    assert muon.optimizer - lion.optimizer == pytest.approx(flops / rate + moved, rel=1e-9)


@pytest.mark.parametrize("shards", [3, 8])
def test_plans_count_whole_matrices_where_ranks_share_them(shards: int, tmp_path: Path) -> None:
    """As the ranks of such a mesh do: of 2 or 4 matrices one takes a whole one; what does not divide is not shared."""
    muon, lion = (foretold(kind, tmp_path, dp=shards, shards=shards) for kind in ("muon", "lion"))
    device, spec = hardware().devices["h100-sxm"], optimizer("muon")
    program, sizes = of_spec(tmp_path)
    placed = place(program, Mesh((Axis("dp", shards, "batch"),)), {**sizes, "B": 2 * shards}, Options(zero=1))
    found = update_of(spec, parts_of(program, placed, spec), 4, 2).flops
    each = {"q": iteration(16, 16), "k": iteration(8, 16), "up": iteration(16, 24)}
    hand = {3: 4 * each["q"] + 4 * each["k"] + 3 * each["up"], 8: 2 * each["q"] + each["k"] + 2 * each["up"]}
    assert found == 5 * hand[shards]
    numbers = (lion.memory["optimizer"] - muon.memory["optimizer"]) / -4
    moved = 8 * numbers / (device.bandwidth * 1e9 * device.stream)
    rate = device.peak["bf16"] * 1e12 * device.product["bf16"]
    assert muon.optimizer - lion.optimizer == pytest.approx(found / rate + moved, rel=1e-9)


@pytest.mark.parametrize("more", [
    {}, {"groups": [{"match": "layers.0.*", "lr_scale": 0.5}]}, {"no_decay": ["layers.1.glu.*"]},
])  # fmt: skip
@pytest.mark.parametrize("at_once", [1000, 1 << 24])
def test_units_that_wait_on_the_host_are_foretold(
    more: dict[str, object], at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specc.compiler.moments.AT_ONCE", at_once)
    spec = TypeAdapter[OptimizerSpec](OptimizerSpec).validate_python({"kind": "muon", **more})
    program, _ = of_spec(tmp_path)
    told = update_of(spec, parts_of(program, None, spec), 4, 4)
    params = {path: torch.zeros(p.type.shape({})) for path, p in program.params.items()}
    ours = Updater(spec, params, on_host=True, matrices=orthogonalised(spec, program))
    assert list(told.units) == [sum(m.nbytes for n in u.paths for m in ours.moments[n]) for u in ours.units]
    assert any(u.bucket and len(u.paths) > 1 for u in ours.units)


def of_spec(folder: Path) -> tuple[Program, Mapping[str, int]]:
    """What the spec's stage trains, and the sizes of a microbatch."""
    spec = load(write_spec(folder))
    return trained(elaborate(spec), spec.stages["pretrain"])


def test_another_kind_is_another_run(tmp_path: Path) -> None:
    """But AdamW is the kind of those that name none."""
    settings = {"none": "", "adamw": "kind: adamw, ", "muon": "kind: muon, "}
    found = {
        n: made(tmp_path, f"optimizer={{{kind}lr: 0.01}}", name=n).stages["pretrain"].hash
        for n, kind in settings.items()
    }
    assert found["none"] == found["adamw"] != found["muon"]


@pytest.mark.parametrize("kind", ["muon", "lion", "sgd"])
def test_a_run_goes_on_from_its_checkpoint_bit_by_bit(kind: str, tmp_path: Path) -> None:
    build, runs = made(tmp_path, f"optimizer={{kind: {kind}, lr: 0.01}}"), []
    for stops in ((6,), (3, 6)):
        for stop in stops:
            run = begun(build)
            assert run.step == (0 if stop == stops[0] else stops[0])
            for step in range(run.step, stop):
                run.step = step
                one_step(run, 6)
            run.step = stop
            save(run, must=True)
        runs.append(run)
        shutil.rmtree(run.folder)
    calm, stopped = (run.params | run.optimizer.state() for run in runs)
    assert any(n.startswith("exp_avg/" if kind == "lion" else "momentum/") for n in calm)
    assert all(torch.equal(x, stopped[n]) for n, x in calm.items())
