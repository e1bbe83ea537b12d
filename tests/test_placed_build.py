"""A build for a mesh: what it says of the mesh, and that its ranks train as one process does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from specc.compiler.build import build_spec
from specc.compiler.placement.types import Axis, Mesh
from specc.runtime.built import Build, open_build
from specc.runtime.groups import InputLayout, cut, cut_inputs, join, whole
from specc.runtime.seat import Seat, first_values, layout_of
from specc.spec.spec import load
from tests.grid.processes import spawn
from tests.training import made

MESHED = ("plan.mesh={dp: 2, cp: 2}", "plan.zero=3", "plan.context=ring")


def build_of(folder: Path, *overrides: str, name: str = "mesh") -> Build:

    made(folder, name="first")  # writes the spec and its texts
    out = folder / "build" / name
    build_spec(load(folder / "tiny.yaml", list(overrides)), out)
    return open_build(out)


def batch_of(seed: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 320, (2, 17), generator=draw)
    doc, pos = torch.randint(0, 2, (2, 16), generator=draw).cumsum(-1) // 4, torch.arange(16).expand(2, 16)
    return {"tokens": tokens[:, :-1], "labels": tokens[:, 1:].contiguous(), "doc": doc, "pos": pos}


def one_step(rank: int, path: str, compiled: bool = False) -> tuple[list[float], dict[str, list[float]]]:
    """Losses of two microbatches, and the whole gradients, from a build alone."""
    stage = next(iter(open_build(Path(path)).stages.values()))
    mesh = Mesh(tuple(Axis(**a) for a in stage.facts.get("mesh", [])))
    layouts = {p["path"]: layout_of(p.get("layout", [])) for p in stage.params}
    inputs = {
        n: InputLayout(layout_of(at["layout"]), tuple(at["zigzag"]))
        for n, at in stage.facts.get("input_layouts", {}).items()
    }
    params, batches = first_values(stage, Seat(), torch.float32), [batch_of(0), batch_of(1)]
    coordinates: list[Tensor] = []
    if mesh.axes:
        coordinates = join(mesh, rank)
        params = {n: cut(x, layouts[n], mesh, rank) for n, x in params.items()}
        batches = [cut_inputs(b, inputs, mesh, rank) for b in batches]
    result = stage.executor(compiled, coordinates=coordinates).step(params, batches, [0.5, 0.5])
    grads = {n: (whole(g, layouts[n], mesh) if mesh.axes else g) for n, g in result.grads.items()}
    return [float(x) for x in result.losses], {n: g.flatten().tolist() for n, g in grads.items()}


def test_a_build_says_how_its_mesh_keeps_parameters_and_takes_inputs(tmp_path: Path) -> None:
    build = build_of(tmp_path, *MESHED)
    folder = build.path / "stages" / "pretrain"
    facts = json.loads((folder / "stage.json").read_text())
    assert facts["mesh"] == [{"name": "dp", "size": 2, "role": "batch"}, {"name": "cp", "size": 2, "role": "sequence"}]
    assert facts["input_layouts"]["tokens"] == {"layout": ["S0", "S1"], "zigzag": [0, 2]}
    assert facts["input_layouts"]["doc"] == {"layout": ["S0", "R"], "zigzag": [0, 2]}
    embed = next(p for p in json.loads((folder / "params.json").read_text()) if p["path"] == "embed.weight")
    assert embed["shape"] == [512, 16]
    assert embed["layout"] == ["S0", "R"]
    assert (folder / "placed.txt").read_text().startswith("placed tiny on dp=2 cp=2")
    assert {"layers.unshard_start.json", "layers.reduce_start.json"} <= {p.name for p in (folder / "graphs").iterdir()}


def test_a_stage_is_the_same_on_any_mesh(tmp_path: Path) -> None:
    assert build_of(tmp_path, name="one").manifest["stages"] == build_of(tmp_path, *MESHED).manifest["stages"]


@pytest.mark.dist
@pytest.mark.parametrize(("compute", "rel"), [("fp32", 1e-5), ("bf16", 2e-2)])
def test_ranks_of_a_build_train_as_one_process(tmp_path: Path, compute: str, rel: float) -> None:
    precision = f"plan.precision.compute={compute}"
    alone = one_step(0, str(build_of(tmp_path, precision, name="one").path))
    for losses, grads in spawn(one_step, 4, str(build_of(tmp_path, precision, *MESHED).path)):
        assert losses == pytest.approx(alone[0], rel=rel)
        for name, g in alone[1].items():
            assert grads[name] == pytest.approx(g, rel=rel, abs=rel * max(map(abs, g))), name


@pytest.mark.dist
@pytest.mark.slow
def test_graphs_with_collectives_compile(tmp_path: Path) -> None:
    path = str(build_of(tmp_path, "plan.mesh={dp: 2}", "plan.zero=3").path)
    plain, compiled = (spawn(one_step, 2, path, c, seconds=400.0) for c in (False, True))
    assert compiled[0][0] == pytest.approx(plain[0][0], rel=1e-5)
