"""The search for plans: what it finds divides, fits and is fastest; and what the command prints can be built."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from specc.compiler.build import build_spec
from specc.compiler.elaborate import elaborate
from specc.compiler.foresight.ask import row_tokens
from specc.compiler.foresight.calls import Cluster as On
from specc.compiler.foresight.flops import step_flops
from specc.compiler.foresight.model import Model
from specc.compiler.foresight.planned import recipe_of
from specc.compiler.foresight.reasons import reasons
from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.search import Asked, Found, Plan, search
from specc.compiler.foresight.step import forecast
from specc.compiler.foresight.tell import plan_text
from specc.compiler.hardware.tables import capacity, hardware
from specc.compiler.placement.mesh import mesh_mistakes, mesh_of
from specc.runtime import cli
from specc.runtime.commands.plan import pins_of
from specc.spec.dump import dump
from specc.spec.errors import SpecError
from specc.spec.plan import Cluster
from specc.spec.spec import load
from tests.pictures import CLIP, VIT, spec_of

LLAMA = "examples/llama3-8b.yaml"
TABLES = hardware()
SEQ = 8192


def asked(
    devices: int = 64, sequences: int = 256, memory: float | None = None, layers: int = 8, host: str | None = None
) -> Asked:
    device = TABLES.devices["h100-sxm"]
    if memory is not None:
        device = device.model_copy(update={"memory": memory})
    on = On(device, TABLES.links[device.near], TABLES.links[device.far], TABLES.software["megatron-2024"],
                 TABLES.links[host] if host else None)  # fmt: skip
    program = elaborate(load(LLAMA, [f"model.dims.L={layers}"]), None, "causal_lm")
    return Asked(Model(program, lambda n: {"B": n, "S": SEQ}), on, devices, sequences, SEQ)


@pytest.fixture(scope="module")
def question() -> Asked:
    return asked()


@pytest.fixture(scope="module")
def found(question: Asked) -> Found:
    return search(question)


def test_plans_divide_the_devices_and_the_sequences(question: Asked, found: Found) -> None:
    for plan in (*found.fit, *found.over):
        r = plan.recipe
        assert r.dp * r.cp * r.tp * r.pp == question.devices
        assert r.dp * r.microbatch * r.microbatches == question.sequences


def test_the_best_plan_fits_and_no_other_that_was_looked_at_is_faster(question: Asked, found: Found) -> None:
    best = found.fit[0].forecast
    assert best.nbytes <= question.capacity
    for plan in found.fit[:10]:
        assert forecast(question.model, plan.recipe, question.cluster).seconds >= best.seconds


def test_less_memory_makes_a_plan_slower(found: Found) -> None:
    narrow = search(asked(memory=12)).fit[0].forecast
    assert narrow.seconds > found.fit[0].forecast.seconds
    assert narrow.nbytes < 12 * 2**30


def test_the_host_takes_what_does_not_fit_and_only_that(found: Found) -> None:
    assert search(asked(host="pcie5")).fit[0] == found.fit[0]
    bare, tight = (search(asked(2, 16, 28, host=link)) for link in (None, "pcie5"))
    assert tight.fit[0].forecast.seconds < bare.fit[0].forecast.seconds
    taken = tight.fit[0].recipe
    assert taken.on_host or taken.moments_on_host
    assert tight.fit[0].forecast.host >= 0


@pytest.mark.parametrize(("share", "moments"), [(0.5, False), (1.0, False), (0.0, True), (1.0, True)])
def test_the_host_takes_seconds_for_bytes(share: float, moments: bool) -> None:
    question = asked(host="pcie5")
    plain = Recipe(dp=8, shards=8, tp=8, zero=1, microbatch=4, microbatches=8)
    moved = replace(plain, on_host=share, moments_on_host=moments)
    slow, fast = (
        forecast(question.model, moved, replace(question.cluster, host=TABLES.links[link]))
        for link in ("ethernet-100", "nvlink-c2c")
    )
    before = forecast(question.model, plain, question.cluster)
    assert slow.nbytes == fast.nbytes < before.nbytes
    assert slow.seconds > fast.seconds >= before.seconds
    assert slow.seconds - slow.host == pytest.approx(before.seconds)


def test_an_offload_that_is_asked_for_is_in_every_plan(question: Asked) -> None:
    plans = search(replace(question, offload=(0.5, True)))
    assert {(p.recipe.on_host, p.recipe.moments_on_host) for p in (*plans.fit, *plans.over)} == {(0.5, True)}


def test_zero_splits_over_the_ranks_that_the_software_has_it_split_over(question: Asked) -> None:
    specc = replace(question.cluster, software=TABLES.software["specc"])
    for cluster, share in ((question.cluster, 4), (specc, 1)):
        plans = search(replace(question, cluster=cluster, pins={"cp": 4, "pp": 1, "tp": 1}))
        assert {p.recipe.shards / p.recipe.dp for p in (*plans.fit, *plans.over)} == {share}


def test_pins_hold(question: Asked) -> None:
    pinned = replace(question, pins={"tp": 4, "pp": 2, "zero": 1})
    assert {(p.recipe.tp, p.recipe.pp, p.recipe.zero) for p in search(pinned).fit} == {(4, 2, 1)}
    pinned = replace(question, pins={"pp": 2, "dp": 4, "microbatch": 2, "schedule": "1f1b", "recompute": "full"})
    found = {(p.recipe.dp, p.recipe.microbatch, p.recipe.schedule, p.recipe.recompute) for p in search(pinned).fit}
    assert found == {(4, 2, "1f1b", "full")}


def test_reasons_name_every_choice_that_was_not_taken(question: Asked, found: Found) -> None:
    told = {r.choice: r for r in reasons(found, question)}
    best = found.fit[0].recipe
    assert f"tp {best.tp}" not in told
    assert {f"tp {n}" for n in (1, 2, 4, 8) if n != best.tp} <= set(told)
    assert told["recompute full"].slower > 0


def test_flops_are_those_of_palm() -> None:
    """6 N + 12 L H Q T a token, N without the embedding: arXiv:2204.02311 appendix B."""
    program = asked(layers=32).model.program
    n = sum(p.type.numel({}) for path, p in program.params.items() if len(p.type.dims) > 1 and path != "embed.weight")
    found = step_flops(program, {"B": 1, "S": SEQ})
    attention = 12 * 32 * 32 * 128 * SEQ
    assert found.full / SEQ == 6 * n + attention
    assert found.causal / SEQ == 6 * n + attention / 2


@pytest.mark.parametrize("recipe", [
    Recipe(dp=8, pp=4, chunks=2, tp=2, zero=1, microbatch=2, microbatches=16, schedule="interleaved"),
    Recipe(dp=4, ep=2, cp=4, tp=4, zero=3, microbatch=1, microbatches=64),
])  # fmt: skip
def test_what_is_printed_is_a_plan_of_a_spec(recipe: Recipe, question: Asked, found: Found, tmp_path: Path) -> None:
    plan = Plan(recipe, found.fit[0].forecast)
    *section, batch = plan_text(plan, question, "h100-sxm", "pretrain")
    file = tmp_path / "planned.yaml"
    file.write_text("\n".join(["specc: 1", "use: models/llama", *section]), encoding="utf-8")
    spec = load(file)
    assert mesh_of(spec.plan).size == question.devices
    assert not mesh_mistakes(spec)
    assert batch.endswith(f"{{sequences: 256, microbatch: {recipe.dp * recipe.microbatch}}}")


def test_the_recipe_of_a_plan_is_the_one_that_it_was_printed_from(
    question: Asked, found: Found, tmp_path: Path
) -> None:
    recipe = Recipe(
        dp=8, shards=8, pp=4, chunks=2, tp=2, zero=1, microbatch=2, microbatches=16, schedule="interleaved",
        on_host=0.5, moments_on_host=True,
    )  # fmt: skip
    *section, _ = plan_text(Plan(recipe, found.fit[0].forecast), question, "h100-sxm", "pretrain")
    file = tmp_path / "planned.yaml"
    text = (
        Path(LLAMA).read_text(encoding="utf-8").replace("sequences: 8, microbatch: 1", "sequences: 256, microbatch: 16")
    )
    file.write_text(text.replace("plan:", "\n".join(section), 1), encoding="utf-8")
    spec = load(file)
    assert recipe_of(spec.plan, spec.stages["pretrain"]) == recipe


def test_the_command_tells_plans_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    sets = {"stages.pretrain.batch.sequences": 8, "model.dims.L": 2, "stages.pretrain.data.seq_len": 1024}
    words = [word for path, value in sets.items() for word in ("--set", f"{path}={value}")]
    assert cli.main(["plan", LLAMA, "--cluster", "4xh100", *words, "--top", "2", "--pin", "tp=2", "--json"]) == cli.OK
    told = json.loads(capsys.readouterr().out)
    assert [plan["tp"] for plan in told["plans"]] == [2, 2]
    assert 0.2 < told["plans"][0]["mfu"]["causal"] < 0.8
    assert told["reasons"]


@pytest.mark.parametrize(
    ("model", "dims", "told"),
    [("vit", VIT, "8 images a step"), ("clip", CLIP, "8 images with captions of 16 tokens a step")],
)
def test_a_step_of_pictures_is_told_in_images(
    model: str, dims: dict[str, int], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = {"tokenizer": {"vocab": 300}, "data": {"seq_len": 16}} if model == "clip" else {}
    (tmp_path / "x.yaml").write_text(dump(spec_of(model, dims, "images", **text)))
    assert cli.main(["plan", str(tmp_path / "x.yaml"), "--cluster", "2xh100"]) == cli.OK
    assert f"parameters, {told}\n" in capsys.readouterr().out


def test_a_mesh_that_is_searched_for_is_that_of_the_stage_of_most_tokens() -> None:
    """A picture counts as one: `data.seq_len` says nothing of it."""
    spec = load("examples/digits.yaml")
    assert row_tokens(spec, spec.stages["train"]) == 1
    text = load(LLAMA)
    assert row_tokens(text, text.stages["pretrain"]) == text.stages["pretrain"].data.seq_len


def test_pins_are_read_by_their_names() -> None:
    assert pins_of(["dp=8", "schedule=zb-v", "zero=0"]) == {"dp": 8, "schedule": "zb-v", "zero": 0}
    for wrong in ("tp=0", "zero=4", "schedule=1f2b", "recompute=half", "model=2", "tp"):
        with pytest.raises(SpecError, match=f"got '{wrong}'"):
            pins_of([wrong])


@pytest.mark.parametrize("words", [["--cluster", "many"], ["--cluster", "8xh100", "--pin", "tp=0"]])
def test_options_that_do_not_read_are_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", LLAMA, *words]) == cli.WRONG_SPEC
    assert "error[S541]" in capsys.readouterr().err


def test_a_device_without_figures_for_the_format_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "h.yaml").write_text("devices: {mine: {like: h100, peak: {fp32: 10}}}\n")
    assert cli.main(["plan", LLAMA, "--cluster", "8xmine", "--hardware", str(tmp_path / "h.yaml")]) == 2
    assert "error[S540]: the device's row has no figures for products in bf16" in capsys.readouterr().err


@pytest.mark.parametrize(("device", "memory"), [("a100-40gb", 40), ("h100", 80)])
def test_a_build_holds_what_its_device_has(device: str, memory: float, tmp_path: Path) -> None:
    assert capacity(Cluster(device=device)) == memory * 0.94 * 2**30
    assert capacity(Cluster(device=device, memory=3)) == 3 * 2**30
    with pytest.raises(SpecError) as e:
        build_spec(load(LLAMA, [f"plan.cluster.device={device}"]), tmp_path / "b")
    assert e.value.codes == ("S504",)


def test_no_plan_takes_more_of_the_host_than_there_is() -> None:
    def found(host_memory: float | None) -> Found:
        q = asked(8, 128, memory=20, host="pcie5")
        device = q.cluster.device.model_copy(update={"host_memory": host_memory})
        return search(replace(q, cluster=replace(q.cluster, device=device)))

    free, bound, none = found(None), found(24), found(1e-6)
    most = [max(p.forecast.on_host for p in each.fit) / 2**30 for each in (free, bound, none)]
    assert most[0] > 24 * 0.75 > most[1] > 0
    assert most[2] == 0


def test_a_processor_has_no_bound() -> None:
    assert capacity(Cluster()) == math.inf


def test_a_build_says_what_steps_take_on_its_devices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["build", "examples/tiny.yaml", "-o", str(tmp_path / "b")]
    assert cli.main(args) == 0
    assert "a step here" in capsys.readouterr().out
    assert cli.main([*args, "--set", "plan.cluster.device=h100"]) == 0
    out = capsys.readouterr().out
    assert "a step on 1 x h100" in out
    assert "a step here" not in out
