"""Kernels in a build: when they are made, what is said of them, and that graphs which call them train the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from specc.compiler.build import build_spec
from specc.compiler.kernels import emit
from specc.compiler.kernels.aot import DEVICES, TARGETS, Figures, gate, targets_of
from specc.compiler.kernels.cross_entropy import Head, make_cross_entropy
from specc.compiler.kernels.emit import summary
from specc.compiler.kernels.load import load_kernel
from specc.compiler.report import render
from specc.compiler.report.gather import read_build
from specc.runtime.built import Build, open_build
from specc.runtime.errors import RunError
from specc.runtime.kernels import load_kernels
from specc.runtime.seat import Seat, first_values
from specc.spec.errors import SpecError
from specc.spec.spec import load
from tests.kernels.regions import ODD, cases, loaded
from tests.test_placed_build import batch_of
from tests.training import write_spec

pytestmark = pytest.mark.slow
GPU = ("plan.kernels=triton", "plan.cluster.device=h100-sxm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The builds 'aten' and 'triton' of one spec; the second one is compiled for an H100."""
    home = tmp_path_factory.mktemp("builds")
    spec = write_spec(home)
    build_spec(load(spec), home / "aten")
    build_spec(load(spec, list(GPU)), home / "triton")
    return home


def one_step(build: Build) -> tuple[list[float], dict[str, torch.Tensor]]:
    stage = next(iter(build.stages.values()))
    params = first_values(stage, Seat(), torch.float32)
    result = stage.executor().step(params, [batch_of(0), batch_of(1)], [0.5, 0.5])
    return [float(x) for x in result.losses], result.grads


def test_a_build_for_a_cpu_has_no_kernels(folder: Path) -> None:
    assert not (folder / "aten" / "kernels").exists()
    assert summary(folder / "aten" / "kernels") == ""


def test_the_build_says_what_kernels_replace(folder: Path) -> None:
    covers = json.loads((folder / "triton" / "stages" / "pretrain" / "kernels.json").read_text())
    assert set(covers) == {"stem", "layers", "head"}
    for block, c in covers.items():
        assert c["ops"][1] < c["ops"][0], block
        assert c["bytes"][1] < c["bytes"][0], block
    page = render(read_build(folder / "triton"))
    assert "ops with kernels" in page
    assert all(name in page for name in json.loads((folder / "triton" / "kernels" / "aot.json").read_text()))


def test_graphs_that_call_kernels_give_the_same_gradients(folder: Path) -> None:
    losses, grads = one_step(open_build(folder / "triton"))
    expected, reference = one_step(open_build(folder / "aten"))
    assert losses == pytest.approx(expected, rel=1e-6)
    assert grads.keys() == reference.keys()
    for name, g in grads.items():
        torch.testing.assert_close(g, reference[name], rtol=1e-5, atol=1e-6)


def test_graphs_call_the_kernels(folder: Path) -> None:
    graphs = folder / "triton" / "stages" / "pretrain" / "graphs"
    assert "specc.expr_rms_norm_" in (graphs / "layers.fwd.txt").read_text()
    assert "_backward.default" in (graphs / "layers.bwd.txt").read_text()


def test_the_build_says_what_each_kernel_takes_of_the_device(folder: Path) -> None:
    rows = json.loads((folder / "triton" / "kernels" / "aot.json").read_text())
    assert {r["used"] for r in rows.values()} == {"triton"}
    assert {f["target"] for r in rows.values() for f in r["figures"]} == {"sm90"}
    assert summary(folder / "triton" / "kernels") == "7 kernels: 7 pass on sm90; 7 are used"
    assert any(place.startswith("llama.yaml:") for r in rows.values() for place in r["from"])


def test_a_kernel_that_is_not_what_specc_makes_is_not_run(folder: Path, tmp_path: Path) -> None:
    stage = open_build(folder / "triton").stages["pretrain"]
    (tmp_path / "kernels").mkdir()
    (tmp_path / "spec.yaml").write_text((folder / "triton" / "spec.yaml").read_text())
    (tmp_path / "kernels" / "aot.json").write_text((folder / "triton" / "kernels" / "aot.json").read_text())
    for file in (folder / "triton" / "kernels").glob("*.py"):
        (tmp_path / "kernels" / file.name).write_text(file.read_text() + "\nprint('more')\n")
    with pytest.raises(RunError, match="is not what this version of specc makes"):
        load_kernels(tmp_path, stage.spec, stage.compute)


def test_kernels_in_fp64_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as error:
        build_spec(load(write_spec(tmp_path), [*GPU, "plan.precision.compute=fp64"]), tmp_path / "build")
    assert error.value.codes == ("S562",)


def test_kernels_are_refused_where_triton_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError) as error:
        build_spec(load(write_spec(tmp_path), GPU), tmp_path / "build")
    assert error.value.codes == ("S560",)


def test_every_architecture_takes_a_norm_behind_a_residual_sum(tmp_path: Path) -> None:
    """The core of the gate; `python -m tests.kernels aot` compiles everything for all of them."""
    case = next(c for c in cases(torch.bfloat16, {"llama": ODD["llama"]}) if c.made.name.startswith("expr_rms_norm"))
    file = tmp_path / f"{case.made.name}.py"
    file.write_text(case.made.source)
    found = gate(case.made, load_kernel(file))
    assert {(f.target, f.kernel) for f in found} == {(t, k) for t in TARGETS for k in ("forward", "backward")}
    assert [f for f in found if f.problem()] == []
    assert all(f.wide_loads for f in found)


@pytest.mark.parametrize(("entries", "is_wide"), [(16032, True), (16033, False)])  # a row of the latter is no 16 bytes
def test_every_architecture_takes_a_part_of_a_vocabulary(tmp_path: Path, entries: int, is_wide: bool) -> None:
    made = make_cross_entropy(Head(entries, True, "a head"), torch.float32)
    found = gate(made, loaded(made, tmp_path))
    assert {(f.target, f.kernel) for f in found} == {(t, k) for t in TARGETS for k in ("terms", "gradient")}
    assert [f for f in found if f.problem()] == []
    assert all(bool(f.wide_loads) == is_wide for f in found)


def test_a_kernel_that_spills_or_is_too_large_or_reads_narrowly_is_not_used() -> None:
    good = Figures("forward", "gfx942", 0, {"BLOCK_R": 4}, 4, 64, 0, 64 * 1024, 3, 3)
    assert good.problem() == ""
    assert "spills" in Figures("forward", "gfx942", 0, {"BLOCK_R": 4}, 4, 64, 8, 0, 3, 3).problem()
    assert "spills" in Figures("forward", "sm90", 0, {"BLOCK_R": 4}, 4, 255, 8, 0, 3, 3).problem()
    assert "spills" in Figures("forward", "sm90", 0, {"BLOCK_R": 4}, 16, 128, 8, 0, 3, 3).problem()
    assert "spills" in Figures("forward", "sm90", 0, {"BLOCK_R": 4}, 4, 80, 64, 0, 3, 3).problem()
    assert Figures("forward", "sm90", 0, {"BLOCK_R": 4}, 4, 80, 8, 0, 3, 3).problem() == "", "registers are left"
    assert "128 bits" in Figures("forward", "gfx942", 0, {"BLOCK_R": 4}, 4, 64, 0, 0, 3, 0).problem()
    assert Figures("forward", "gfx942", 0, {"BLOCK_R": 4}, 4, 64, 0, 0, 3, 0, "it reads pairs").problem() == ""
    assert "shared" in Figures("forward", "gfx942", 0, {"BLOCK_R": 4}, 4, 64, 0, 64 * 1024 + 1, 3, 3).problem()


def test_a_known_device_is_compiled_for_alone() -> None:
    assert list(targets_of("b200-sxm", True)) == ["sm100"]
    assert list(targets_of("b200-sxm", False)) == list(targets_of("cpu", True)) == list(TARGETS)
    assert set(DEVICES.values()) == set(TARGETS)
