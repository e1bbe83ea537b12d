"""What a spec says in vain is told of specs as written, and of nothing that is derived from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.compiler.idle import idle
from specc.runtime.verify import shrunk
from specc.spec.spec import load

STAGE = """
stages:
  pretrain:
    data: {sources: [{path: notes}], seq_len: 64}
    tokenizer: {vocab: 1000}
    batch: {sequences: 8, microbatch: 2}
    budget: {steps: 1}
"""
OVER = "specc: 1\nuse: models/llama\n"


def found(tmp_path: Path, text: str, *overrides: str) -> list[tuple[str, str]]:
    path = tmp_path / "a.yaml"
    path.write_text(text, encoding="utf-8")
    return [(d.code, f"{d.mark.file if d.mark else ''}:{d.message}") for d in idle(load(path, overrides))]


@pytest.mark.parametrize(("model", "names"), [
    ("dims: {D: 64, H: 4}", []), ("dims: {HEADS: 4, W: D, D: 64}", ["HEADS", "W"]),
    ("dims: {heads: 4}", ["heads"]),  # an argument of a block has that name
    ("doc: of Z, dims: {Z: 4}", ["Z"]), ("numbers: {eps: 1e-6, thetta: 1.0}", ["thetta"]),
])  # fmt: skip
def test_sizes_under_names_that_a_model_of_the_library_does_not_have(
    model: str, names: list[str], tmp_path: Path
) -> None:  # fmt: skip
    wanted = [("S113", f"{tmp_path}/a.yaml:nothing in the model uses '{n}'") for n in names]
    assert found(tmp_path, f"{OVER}model: {{{model}}}\n") == wanted


def test_the_command_line_too(tmp_path: Path) -> None:
    assert found(tmp_path, OVER, "model.dims.LAYERS=4") == [("S113", "--set:nothing in the model uses 'LAYERS'")]


def test_the_command_line_has_names_of_a_model_of_ones_own_too(tmp_path: Path) -> None:
    own = "model:\n  dims: {D: 8, V: 16}\n  steps: [{embedding: {rows: V, out: D, from: tokens}}]\n"
    own += "  inputs: {tokens: 'int[B S]'}\n"
    assert found(tmp_path, "specc: 1\n" + own, "model.dims.D=4", "model.dims.W=4") == [
        ("S113", "--set:nothing in the model uses 'W'")
    ]


def test_a_model_of_ones_own_may_have_more(tmp_path: Path) -> None:
    steps = "steps: [{embedding: {rows: V, out: D, from: tokens}}, {linear: {out: V, name: head}}]"
    own = f"model:\n  dims: {{D: 8, V: 16, EXTRA: 3}}\n  inputs: {{tokens: 'int[B S]'}}\n  {steps}\n"
    assert found(tmp_path, "specc: 1\n" + own) == []
    assert found(tmp_path, OVER + f"model:\n  {steps}\n  outputs: _\n  loss: null\n") == []  # over the library's


def test_the_attribute_that_is_called_doc_uses_its_dim(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    steps = "steps: [{embedding: {rows: V, out: D, from: tokens}}]"
    own = f"{{dims: {{D: 8, V: 16, W: 4}}, inputs: {{tokens: 'int[B W]'}}, attributes: {{doc: 'int[B W]'}}, {steps}}}"
    base.write_text(f"specc: 1\nmodel: {own.replace('int[B W]', 'int[B S]', 1)}\n", encoding="utf-8")
    assert found(tmp_path, "specc: 1\nuse: base.yaml\nmodel: {dims: {W: 8, D: 16}}\n") == []


def test_settings_of_axes_that_a_mesh_leaves_out(tmp_path: Path) -> None:
    settings = 'schedule: {kind: zb-v}, context: ring, sequence_parallel: "on"'
    codes = [code for code, _ in found(tmp_path, f"{OVER}plan: {{mesh: {{dp: 2}}, {settings}}}\n")]
    assert codes == ["S529"] * 3
    assert found(tmp_path, f"{OVER}plan: {{mesh: {{pp: 1, cp: 1, tp: 2}}, {settings}}}\n") == []
    assert found(tmp_path, f"{OVER}plan: {{cluster: {{devices: 2}}, {settings}}}\n") == []


def test_a_small_plan_to_verify_may_lack_an_axis(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    plan = 'plan: {mesh: {dp: 2, cp: 2, tp: 2}, sequence_parallel: "on"}'
    path.write_text(f"{OVER}{plan}\n{STAGE}", encoding="utf-8")
    small, left = shrunk(load(path), "pretrain", 4)
    assert small.plan.mesh == {"dp": 2, "cp": 2}
    assert left


def test_a_small_plan_to_verify_has_patterns_of_tiles_that_are_there(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{OVER}plan: {{mesh: {{dp: 2}}}}\n{STAGE}", encoding="utf-8")
    last = "{rank: 2, alpha: 2, match: ['layers.7.attention.*']}"
    whole = load(path, ["model.dims.L=8", f"model.lora={last}", "model.train=['layers.5.glu.*']"])
    small, dims = shrunk(whole, "pretrain", 4)
    assert (dims["L"], small.model.lora.match, small.model.train) == (2, ["layers.1.attention.*"], ["layers.1.glu.*"])


def test_a_setting_that_the_command_line_decides_over_may_stand(tmp_path: Path) -> None:
    assert found(tmp_path, OVER + STAGE, "stages.pretrain.tokenizer.file=t.json") == []
    whole = [("S529", "--set:stages.pretrain.schedule.final has no effect: the learning rate is constant")]
    assert found(tmp_path, OVER + STAGE, "stages.pretrain.schedule={kind: constant, final: 0.5}") == whole
