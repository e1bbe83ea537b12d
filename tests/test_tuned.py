"""`specc tune BUILD`: the graphs of a build are measured, and what a step takes is predicted by that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.fused import groups
from specc.compiler.graphs import from_json, to_json
from specc.compiler.lower.grouped import grouped_mm
from specc.compiler.schedule.actions import PARTS
from specc.runtime import cli
from specc.runtime.built import open_build
from specc.runtime.compile import decide
from specc.runtime.measure import Clock, given_what_is_sent, graph_seconds
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


def text() -> str:
    """The graph of [16 8] and [8 8] in fp32, as a build has it."""
    return to_json(make_fx(two_kernels, tracing_mode="fake")(torch.ones(16, 8), torch.ones(8, 8)))


def test_row_wise_ops_between_products_are_one_kernel() -> None:
    names = [[str(n.target) for n in group] for group in groups(from_json(text()))]
    assert names == [["aten.add.Tensor", "aten.relu.default"], ["aten.mul.Tensor", "aten.add.Tensor"]]


def test_equal_ops_are_measured_once() -> None:
    clock = Clock(CPU)
    assert graph_seconds(text(), clock, compiles=False).plain > 0
    known = dict(clock.known)
    graph_seconds(text(), clock, compiles=False)
    assert clock.known == known
    assert clock.rows["aten.mm"] == 2


def grouped(rows: Tensor, weight: Tensor, ends: Tensor, order: Tensor) -> tuple[Tensor]:
    return (grouped_mm(rows[order], weight, ends),)


class Given(Clock):
    """Keeps what ops were measured with."""

    args: dict[str, tuple[Any, ...]]

    def op(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        self.args = {**getattr(self, "args", {}), str(node.target): args}
        return super().op(node, args, kwargs)


def test_rows_of_experts_are_shared_out_and_come_in_any_order() -> None:
    whole = (torch.ones(12, 4), torch.ones(3, 4, 5), torch.ones(3).long(), torch.ones(12).long())
    clock = Given(CPU)
    graph_seconds(to_json(make_fx(grouped, tracing_mode="fake")(*whole)), clock, compiles=False)
    assert clock.args["specc.grouped_mm.default"][2].tolist() == [4, 8, 12]
    (order,) = clock.args["aten.index.Tensor"][1]
    assert order.unique().numel() > 1
    assert 0 <= order.min() <= order.max() < 12


def test_a_graph_is_measured_as_it_is_and_compiled() -> None:
    found = graph_seconds(text(), Clock(CPU))
    assert found.plain > 0
    assert found.compiled > 0
    assert found.compiled != found.plain


def test_what_other_ranks_send_is_an_operand() -> None:
    def of_two(x: Tensor) -> tuple[Tensor]:
        sent = torch.ops._c10d_functional.all_reduce(x + 1.0, "sum", "tp")
        return (torch.ops._c10d_functional.wait_tensor(sent) * 2.0,)

    gm = given_what_is_sent(from_json(to_json(make_fx(of_two, tracing_mode="fake")(torch.ones(4)))))
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_function"] == ["aten.add.Tensor", "aten.mul.Tensor"]
    x, sent, come = torch.zeros(4), torch.zeros(4), torch.full((4,), 3.0)
    given, sends = gm(x, sent, come)
    assert torch.equal(given, torch.full((4,), 6.0))
    assert torch.equal(sends, torch.ones(4)), "what it computes for others is computed"


@pytest.mark.parametrize("mesh", ["{dp: 1}", "{tp: 2}", "{ring: 2}", "{pp: 2}"])
def test_every_graph_of_a_step_is_measured(tmp_path: Path, mesh: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = built(tmp_path, f"plan.mesh={mesh}", "plan.compile=off")
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


def test_graphs_that_compiling_makes_slower_stay_as_they_are(tmp_path: Path) -> None:
    path = built(tmp_path, "plan.compile=on")
    stage = open_build(path).stages["pretrain"]
    graphs = {f"{body}.{part}": Seconds(2.0, 1.0) for body in stage.graphs for part in ("fwd", "bwd")}
    graphs["layers.bwd"] = Seconds(2.0, 3.0)
    save(Tuned("cpu", torch.get_num_threads(), {"pretrain": graphs}, []), path)
    decision = stage.decide()
    assert decision.plain == ["layers.bwd"]
    assert "not layers.bwd" in decision.why
    compiled: list[fx.GraphModule] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specc.runtime.compile._compiled_here", lambda gm, folder: compiled.append(gm))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        stage.executor(True)
        n = len(compiled)
        stage.executor(True, plain=decision.plain)
    assert len(compiled) == 2 * n - 1


def test_the_file_is_none_of_the_build(tmp_path: Path) -> None:
    path = built(tmp_path)
    (path / FILE).write_text(json.dumps({"device": "tpu", "threads": 1, "graphs": {}, "ops": []}))
    open_build(path)  # its hashes are those of the build's own files
    assert tuned_of(path, CPU) is None
