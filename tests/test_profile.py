"""`specc profile`: on one process and on a mesh."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specc.runtime.cli import main
from specc.runtime.profile import Profile, Span, from_json, trace
from specc.runtime.tuned import Op

TINY = Path(__file__).parent.parent / "examples" / "tiny.yaml"
SMALL = ["--set", "model.dims.L=2", "--set", "stages.pretrain.batch.sequences=4", "--steps", "2"]

IMAGES = """\
specc: 1
use: dit
set: {model.dims.L: 2, model.dims.D: 32, model.dims.H: 2, model.dims.Y: 8}
stages:
  pretrain:
    data: {sources: [{corpus: python-stdlib}], seq_len: 8}
    tokenizer: {vocab: 300}
    batch: {sequences: 2}
    budget: {steps: 1}
"""


def profile(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> list[Profile]:
    assert main(["profile", str(TINY), "-o", str(folder / "b"), *SMALL, "--json", *more]) == 0
    said = capsys.readouterr().out
    return [from_json(json.dumps(p)) for p in json.loads(said[said.index("[{") :])]


def test_each_action_has_its_seconds_and_memory_is_as_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = profile(capsys, tmp_path)
    assert len(found.steps) == 2
    typical = found.typical()
    assert {what: n for what, (n, _) in typical.items()} == {
        "UNSHARD": 1, "F stem": 1, "F layers": 2, "F head": 1, "B head": 1, "B layers": 2, "B stem": 1, "REDUCE": 1,
        "STEP": 1, "optimizer": 1,
    }  # fmt: skip
    assert found.predicted.keys() >= {"F stem", "F layers", "F head", "B layers"}
    assert 0 < sum(seconds for _, seconds in typical.values()) <= found.seconds() * 1.5
    assert abs(found.predicted_peak / found.peak - 1) < 0.05
    assert "aten::mm" in {o.name for o in found.ops}


def test_ranks_of_a_mesh_are_processes_of_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace.json"
    found = profile(capsys, tmp_path, "--set", "plan.mesh.pp=2", "--trace", str(file))
    assert [p.rank for p in found] == [0, 1]
    assert {"F stem"} <= found[0].typical().keys() - found[1].typical().keys()
    events = json.loads(file.read_text())["traceEvents"]
    assert {e["pid"] for e in events if e["ph"] == "X" and e["name"].startswith("RECV")} == {0, 1}


def test_the_table_shows_predicted_beside_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(TINY), "-o", str(tmp_path / "b"), *SMALL]) == 0
    said = capsys.readouterr().out
    assert "predicted" in said
    assert "tensors alive at most: " in said


def test_models_of_images_are_profiled_on_drawn_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = tmp_path / "x.yaml"
    spec.write_text(IMAGES)
    assert main(["profile", str(spec), "-o", str(tmp_path / "b"), "--steps", "1", "--json"]) == 0
    said = capsys.readouterr().out
    (found,) = (from_json(json.dumps(p)) for p in json.loads(said[said.index("[{") :]))
    assert {"F layers", "B layers"} <= found.typical().keys()


def test_spans_become_events_in_microseconds() -> None:
    span = Span("F layers", 2.0, 0.5, 1, 0)
    _, event = trace([Profile(3, [[span]], {}, [Op("aten::mm", 1, 0.1)], 1, 1)])["traceEvents"]
    assert (event["pid"], event["ts"], event["dur"]) == (3, 2e6, 5e5)
    assert event["args"] == {"tile": 1, "microbatch": 0}
