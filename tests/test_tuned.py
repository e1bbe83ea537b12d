"""`specc tune BUILD`: each op of a build's graphs is measured, and what a step takes is predicted by that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.fused import fused_bytes, groups
from specc.compiler.graphs import from_json, to_json
from specc.compiler.schedule.actions import PARTS
from specc.runtime import cli
from specc.runtime.built import open_build
from specc.runtime.compile import decide
from specc.runtime.measure import Clock, graph_seconds
from specc.runtime.tuned import FILE, Seconds, Tuned, save, tuned_of

TINY = Path(__file__).parent.parent / "examples" / "tiny.yaml"
SMALL = ["model.dims.L=2", "stages.pretrain.batch.sequences=4"]
CPU = torch.device("cpu")


def built(folder: Path, *more: str) -> Path:
    words = [word for change in (*SMALL, *more) for word in ("--set", change)]
    assert cli.main(["build", str(TINY), "-o", str(folder / "b"), *words]) == cli.OK
    return folder / "b"


def two_kernels(x: Tensor, w: Tensor) -> tuple[Tensor]:
    y = torch.relu(x + 1.0)
    return ((y @ w) * 2.0 + y,)


def graph() -> fx.GraphModule:
    """[16 8] and [8 8] in fp32, as a build has it."""
    return from_json(to_json(make_fx(two_kernels, tracing_mode="fake")(torch.ones(16, 8), torch.ones(8, 8))))


def test_row_wise_ops_between_products_are_one_kernel() -> None:
    names = [[str(n.target) for n in group] for group in groups(graph())]
    assert names == [["aten.add.Tensor", "aten.relu.default"], ["aten.mul.Tensor", "aten.add.Tensor"]]
    x = 16 * 8 * 4
    assert fused_bytes(graph()) == [2 * x, 3 * x]


def test_a_value_used_through_views_is_written_once() -> None:
    def of_views(x: Tensor, w: Tensor) -> tuple[Tensor]:
        y = x * 2.0
        return (y.view(8, 16).t() @ w + y.view(16, 8)[:, :1],)

    gm = from_json(to_json(make_fx(of_views, tracing_mode="fake")(torch.ones(16, 8), torch.ones(8, 8))))
    x = 16 * 8 * 4
    assert fused_bytes(gm) == [2 * x, x + 16 * 4 + x]


def test_equal_ops_are_measured_once() -> None:
    clock = Clock(CPU)
    found = graph_seconds(graph(), clock)
    assert found.plain > 0
    assert found.compiled > 0
    known = dict(clock.known)
    assert graph_seconds(graph(), clock).plain == pytest.approx(found.plain)
    assert clock.known == known
    assert clock.rows["aten.mm"] == 2


@pytest.mark.parametrize("mesh", ["{dp: 1}", "{tp: 2}", "{ring: 2}", "{pp: 2}"])
def test_every_graph_of_a_step_is_measured(tmp_path: Path, mesh: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = built(tmp_path, f"plan.mesh={mesh}")
    assert cli.main(["tune", str(path), "--device", "cpu"]) == cli.OK
    said = capsys.readouterr().out
    assert "aten.mm" in said
    stage = open_build(path).stages["pretrain"]
    tuned = tuned_of(path, CPU)
    assert tuned is not None
    wanted = {
        f"{stage.calls[a.call].body}.{PARTS[a.kind]}" for each in stage.schedules for a in each if a.kind in PARTS
    }
    assert wanted <= tuned.graphs["pretrain"].keys()
    assert stage.predicted() == tuned.graphs["pretrain"]


def test_a_run_is_predicted_by_what_was_measured_here(tmp_path: Path) -> None:
    path = built(tmp_path)
    stage = open_build(path).stages["pretrain"]
    before = stage.decide().step_seconds
    graphs = {f"{body}.{part}": Seconds(20.0, 1.0) for body in stage.graphs for part in ("fwd", "bwd")}
    threads = torch.get_num_threads()
    calls = len(stage.calls)
    save(Tuned("cpu", threads, {"pretrain": graphs}, []), path)
    assert stage.decide().step_seconds == pytest.approx(2 * calls * stage.spec.batch.microbatches, rel=0.01)
    for other in (
        Tuned("cuda", threads, {"pretrain": graphs}, []),
        Tuned("cpu", threads + 1, {"pretrain": graphs}, []),
    ):
        save(other, path)
        assert tuned_of(path, CPU) is None
        assert stage.decide().step_seconds == pytest.approx(before)


def test_what_is_measured_decides_whether_to_compile() -> None:
    from specc.compiler.work import Work

    assert not decide("auto", (1.0, 1.2), Work(nodes=100), 3, 10**6).compiled, "compiled is slower"
    assert decide("auto", (1.2, 1.0), Work(nodes=100), 3, 10**6).compiled


def test_the_file_is_none_of_the_build(tmp_path: Path) -> None:
    path = built(tmp_path)
    (path / FILE).write_text(json.dumps({"device": "tpu", "threads": 1, "graphs": {}, "ops": []}))
    open_build(path)  # its hashes are those of the build's own files
    assert tuned_of(path, CPU) is None
