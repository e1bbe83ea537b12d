"""Predicted seconds of published training runs; the rows with their sources stand in tests/foresight/rows.json."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from specc.compiler.elaborate import elaborate
from specc.compiler.foresight.calls import Cluster
from specc.compiler.foresight.model import Model
from specc.compiler.foresight.network import Group, collective
from specc.compiler.foresight.pipeline import IDLE, StageTime, bubble, busiest, simulated_bubble
from specc.compiler.foresight.recipe import Recipe
from specc.compiler.foresight.stages import passed
from specc.compiler.foresight.step import call_times, forecast, transfer
from specc.compiler.hardware.tables import hardware
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.schedule.schedules import SCHEDULES, pipeline
from specc.compiler.schedule.simulate import simulate
from specc.spec.hardware import Link
from specc.spec.spec import load
from tests.foresight.compare import Compared, compare, summary
from tests.foresight.ranking import rank_correlation

ROWS = json.loads((Path(__file__).parent / "foresight" / "rows.json").read_text(encoding="utf-8"))["rows"]
TABLES = hardware()


@cache
def found() -> dict[str, Compared]:
    return {c.case.name: c for c in compare(ROWS, TABLES)[0]}


def cluster(device: str, software: str) -> Cluster:
    row = TABLES.devices[device]
    return Cluster(row, TABLES.links[row.near], TABLES.links[row.far], TABLES.software[software])


def llama(size: str, seq: int = 8192) -> Model:
    whole = elaborate(load(f"examples/llama3-{size}.yaml"), None, "causal_lm")
    return Model(fuse_linear_cross_entropy(prune(whole, [])), lambda n: {"B": n, "S": seq})


def seconds(*names: str) -> list[float]:
    return [found()[n].forecast.seconds for n in names]


def test_every_row_is_predicted() -> None:
    assert set(found()) == {row["id"] for row in ROWS}


@pytest.mark.parametrize("name", [row["id"] for row in ROWS])
def test_steps_are_predicted_within_an_eighth(name: str) -> None:
    assert abs(found()[name].error) < 0.125


def test_compiled_is_faster_than_eager_and_fp8_faster_still() -> None:
    eager, compiled, fp8 = seconds("torchtitan-0000", "torchtitan-0001", "torchtitan-0002")
    assert eager > compiled > fp8


def test_selective_recompute_beats_full() -> None:
    full, selective = seconds("korthikanti-0744", "korthikanti-0745")
    assert full > selective


def test_zero_bubble_beats_interleaved_beats_1f1b() -> None:
    zero, plain, interleaved = seconds("zero-bubble-0823", "zero-bubble-0829", "zero-bubble-0832")
    assert plain > interleaved > zero


def test_tensor_parallelism_beside_products_is_faster() -> None:
    plain, beside = seconds("torchtitan-0010", "torchtitan-0011")
    assert plain > beside


def test_interleaving_is_faster_for_405b_on_512_devices() -> None:
    """100 and 128 tokens a second in torchtitan's table 5; a microbatch a pipeline rank, which is its default."""
    plain = Recipe(dp=8, shards=8, pp=8, tp=8, zero=3, microbatch=4, microbatches=8, recompute="full", format="fp8")
    interleaved = replace(plain, schedule="interleaved", chunks=2)
    on = cluster("h100-sxm-500w", "torch-async-tp")
    slow, fast = (forecast(llama("405b"), recipe, on).seconds for recipe in (plain, interleaved))
    assert slow > fast


def test_a_million_tokens_need_context_parallelism() -> None:
    """26.5 and 536 TFLOPs a device in NeMo's table of long sequences, Llama 2 7B on 1,024 devices."""
    along = Recipe(dp=4, shards=128, cp=32, tp=8, zero=1, microbatches=1, format="fp8")
    without = Recipe(dp=4, shards=4, pp=32, tp=8, zero=1, microbatches=1, recompute="full", format="fp8")
    model = llama("8b", seq=1 << 20)
    fast, slow = (forecast(model, recipe, cluster("h100-sxm", "megatron-2024")).seconds for recipe in (along, without))
    assert slow > 5 * fast


def test_plans_that_are_nearly_as_fast_rank_alike() -> None:
    assert rank_correlation([1.0, 1.005, 2.0], [1.0, 1.002, 9.0]) == pytest.approx(1.0)
    assert rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)
    assert rank_correlation([1.0, 1.0, 1.0], [3.0, 2.0, 1.0]) == 0


def test_the_parts_of_a_step_are_the_step() -> None:
    for c in found().values():
        f = c.forecast
        assert f.seconds == f.work + f.sent + f.bubble + f.optimizer
        assert min(f.work, f.sent, f.bubble, f.optimizer) >= 0


def test_calibration_and_held_out_rows_are_told_apart() -> None:
    lines = "\n".join(summary(list(found().values())))
    assert "torchtitan, held out" in lines
    assert "dgxc-benchmarking, calibration" in lines


def test_pipelines_wait_as_long_as_published() -> None:
    gaps = [c.bubble_gap for c in found().values() if c.bubble_gap is not None]
    assert len(gaps) == 3
    assert max(map(abs, gaps)) < 0.02


@pytest.mark.parametrize("name", sorted(set(IDLE) & set(SCHEDULES)))
def test_formulas_of_bubbles_are_those_of_the_simulation(name: str) -> None:
    """Forward, and both halves of the backward, take as long; no transfer takes time."""
    chunks = SCHEDULES[name].least
    recipe = Recipe(pp=4, chunks=chunks, microbatches=16, schedule=name)
    stages = [StageTime(1.0, 2.0, 1.0)] * (4 * chunks)
    assert bubble(stages, recipe) == simulated_bubble(stages, recipe, lambda source, target: 0.0)


@pytest.mark.parametrize("name", ["1f1b", "interleaved", "zb-h1", "zb-v"])
def test_waits_of_many_microbatches_follow_from_those_of_some(name: str) -> None:
    """What neighbours send back and forth is waited for each time, however many microbatches there are."""
    chunks, microbatches = SCHEDULES[name].least, 48
    recipe = Recipe(pp=4, chunks=chunks, microbatches=microbatches, schedule=name)
    stages = [StageTime(1.0, 2.0, 1.0)] * (4 * chunks)
    table, where = pipeline(name, 4, microbatches, chunks)
    took = {"F": 1.0, "B": 2.0, "I": 1.0, "W": 1.0}
    whole = simulate(table, where, lambda slot: took[slot.kind], lambda source, target: 0.1).seconds
    waits = whole - microbatches * 3.0 * chunks
    assert simulated_bubble(stages, recipe, lambda source, target: 0.1) == pytest.approx(waits, abs=0.05)


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("dualpipe-v", (0.98, 1.05, 0.92, 0.92, 1.07, 0.96, 0.97, 1.02)),
        ("interleaved", (1.02, 1.14, 0.93, 1.17, 0.81, 0.89, 0.8, 0.81)),
    ],
)
def test_stages_that_are_uneven_do_not_win_time_by_waiting(name: str, seconds: tuple[float, ...]) -> None:
    """The first rounds wait more than all together: ranks with less to do catch up."""
    stages = [StageTime(s, 2 * s, s) for s in seconds]
    table, where = pipeline(name, 4, 256, 2)
    took = [{"F": s, "B": 2 * s, "I": s, "W": s} for s in seconds]
    whole = simulate(table, where, lambda slot: took[slot.stage][slot.kind], lambda source, target: 0.1).seconds
    waits = whole - 256 * busiest(stages, 4, where)
    recipe = Recipe(pp=4, chunks=2, microbatches=256, schedule=name)
    found = simulated_bubble(stages, recipe, lambda source, target: 0.1)
    assert -0.1 < found - waits < 0.5  # of 256 x 8 s of work


def test_a_message_to_one_device_goes_at_the_rate_of_a_pair() -> None:
    near, far = Link(bandwidth=100, latency=1, pair=0.25), Link(bandwidth=10, latency=5)
    of = transfer(1e9, Recipe(pp=16), replace(cluster("h100-sxm", "specc"), near=near, far=far))
    assert of(0, 1) == pytest.approx(0.04 + 1e-6)
    assert of(7, 8) == pytest.approx(0.1 + 5e-6)


def test_stages_take_calls_until_they_have_passed_their_share() -> None:
    assert passed([0.0, *[1.0] * 16, 4.0], 2) == [0, 12]  # ten layers are no more than half
    assert passed([0.0, *[1.0] * 16, 2.0], 4) == [0, 6, 11, 15]
    assert passed([9.0, 1.0, 1.0], 3) == [0, 1, 2]


def data_parallel(zero: int, **says: object) -> tuple[float, float, Cluster]:
    """What a step of 32 ranks sends and does not hide, without buckets or waits but for what is said; and 4 bytes for
    each number."""
    on = cluster("h100-efa", "nanotron")
    on = replace(on, software=on.software.model_copy(update={"bucket": 0.0, "hidden_data": 0.0, "host": 0.0, **says}))
    model, recipe = llama("8b", 1024), Recipe(dp=32, shards=32, zero=zero)
    return forecast(model, recipe, on).sent, 4 * sum(model.works(recipe)[n].weights for n in model.calls), on


def test_zero_1_of_nanotron_sums_all_gradients_and_puts_each_slice_in_place() -> None:
    plain, nbytes, on = data_parallel(1, sums_whole=False)
    whole, _, _ = data_parallel(1)
    more = on.seconds("all-reduce", nbytes, 32, 1) - on.seconds("reduce-scatter", nbytes, 32, 1)
    slices = 32 * (32 * 6 + 3)  # of queries, keys and values; out; gate and up; down; two norms; and of three tables
    assert whole - plain == pytest.approx(more + slices * on.device.launch * 1e-6)


def test_gradients_are_summed_in_buckets_and_hidden_beside_the_backward_alone() -> None:
    """Each bucket waits for the steps of a collective; none is sent beside the forward."""
    whole, nbytes, on = data_parallel(0)
    assert whole == pytest.approx(on.seconds("all-reduce", nbytes, 32, 1))
    buckets, _, _ = data_parallel(0, bucket=nbytes / 4e6 / 99.5)
    assert buckets == pytest.approx(100 * on.seconds("all-reduce", nbytes / 100, 32, 1))
    hidden, _, _ = data_parallel(0, hidden_data=1.0)
    times = call_times(llama("8b", 1024), Recipe(dp=32), on)
    backward = sum(times[n].backward for n in llama("8b", 1024).calls)
    assert hidden == pytest.approx(whole - backward)
    assert hidden > 0


def test_all_ranks_clip_what_they_have_and_update_what_is_theirs() -> None:
    on = cluster("h100-efa", "nanotron")
    model, recipe = llama("8b", 1024), Recipe(dp=32, shards=32, zero=1)
    numbers = sum(model.works(recipe)[n].weights for n in model.calls)
    moved = (28 + 6) * numbers / 32 + (4 + 8 + 4) * numbers
    assert forecast(model, recipe, on).optimizer == pytest.approx(moved / (0.8 * 3350e9))


def test_sums_between_nodes_go_round_a_ring_or_over_a_tree() -> None:
    near, far = Link(bandwidth=100, latency=1), Link(bandwidth=25, latency=10)
    group, steps = Group(32, 4, 8), 2 * (16 * 1 + 15 * 10) * 1e-6
    large = 2 * 31 / 32 * 1e9 / 50e9
    assert collective("all-reduce", 1e9, group, near, far) == pytest.approx(large + steps)
    small = large / 1000
    assert collective("all-reduce", 1e6, group, near, far) == pytest.approx(small / 0.644 + 14 * 10e-6)


def test_rings_are_as_slow_as_they_are_long() -> None:
    near, far = Link(bandwidth=100, latency=1), Link(bandwidth=100, latency=10)
    assert collective("all-gather", 0, Group(32, 1, 8), near, far) == pytest.approx(58e-6)
    assert collective("all-gather", 0, Group(8, 1, 8), near, far) == pytest.approx(7e-6)
    assert collective("all-reduce", 0, Group(1024, 1, 8), near, far) == pytest.approx(190e-6)
