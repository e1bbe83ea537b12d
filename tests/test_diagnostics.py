"""What a person reads: all independent mistakes at once, in order, and shapes with both their places."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.compiler.elaborate import elaborate
from specc.runtime.commands.check import check_file
from specc.spec.errors import Diagnostic, Mark, SpecError
from specc.spec.spec import Spec

TOP = """specc: 1
model:
  dims: {D: 8, H: 2, E: D // H, F: 12, V: 16, L: 3}
  inputs: {tokens: 'int[B S]'}
  blocks:
    layer:
      in: {x: [B S D]}
      steps:
        - rms_norm
        - linear: {out: D}
  steps:
    - embedding: {rows: V, out: D, from: tokens, as: x}
"""


def found(text: str) -> list[tuple[str, int]]:
    with pytest.raises(SpecError) as caught:
        elaborate(Spec.from_yaml(text, "m.yaml"))
    return [(d.code, d.mark.line if d.mark else 0) for d in caught.value.diagnostics]


def test_mistakes_in_separate_places_are_found_together() -> None:
    text = TOP.replace("H: 2", "H: Q").replace("- rms_norm", "- rms_norm: {epss: 1, from: y}")
    text += "    - linear: {out: D, bais: true, inti: zeros}\n    - nothing: {from: x}\n    - layer: {from: x}\n"
    assert found(text) == [("S111", 3), ("S102", 9), ("S102", 13), ("S102", 13), ("S106", 14)]


def test_what_follows_from_a_mistake_is_not_reported() -> None:
    text = TOP + "    - linear: {out: Q, as: y}\n    - rms_norm: {from: y, as: z}\n    - expr: y + z\n    - layer\n"
    assert found(text) == [("S111", 13)]


def test_a_name_with_a_mistake_is_reported_once() -> None:
    text = TOP.replace("D: 8", "D: 8 +").replace("tokens: 'int[B S]'", "tokens: 'int[B S]', y: 'floaty[B S]'")
    assert found(text + "    - linear: {out: [H, E], from: y}\n    - layer: {from: x}\n") == [("S104", 3), ("S110", 4)]


def test_dims_in_a_circle_are_named() -> None:
    assert found(TOP.replace("H: 2", "H: F + 1").replace("F: 12", "F: H")) == [("S112", 3)]


def test_a_block_is_read_behind_a_mistake() -> None:
    text = TOP.replace("- rms_norm", "- rms_nrm") + "    - linear: {out: Q}\n    - repeat: {block: layer, times: L}\n"
    assert found(text) == [("S106", 9), ("S111", 13)]


def test_both_unmatched_patterns_are_found() -> None:
    text = TOP + "    - layer\n  freeze: [layr.*, embedding.*]\n  train: [nothing]\n"
    assert found(text) == [("S108", 14), ("S108", 15)]


def test_each_output_is_looked_up() -> None:
    assert found(TOP + "  outputs: {a: x, b: y, c: z}\n  loss: w\n") == [("S105", 13), ("S105", 13), ("S105", 14)]


def test_a_shape_error_names_the_dims_the_op_and_both_places() -> None:
    text = TOP + "    - glu: {hidden: F, name: glu}\n    - linear: {out: F}\n    - layer\n"
    with pytest.raises(SpecError) as caught:
        elaborate(Spec.from_yaml(text, "m.yaml"))
    want = "`layer` at m.yaml:15 needs the last dim `D`=8 of its input 'x', got `F`=12 from `linear` at :14"
    assert caught.value.diagnostics[0].message == want
    related = [f"{mark.line}: {text}" for mark, text in caught.value.diagnostics[0].related]
    assert related == ["14: `linear` makes float[B S F=12]", "7: `layer` declares its input here"]


def test_operands_that_do_not_fit_name_each_other() -> None:
    text = TOP + "    - linear: {out: F, as: y}\n    - expr: x + y\n"
    with pytest.raises(SpecError) as caught:
        elaborate(Spec.from_yaml(text, "m.yaml"))
    assert [m.line for m, _ in caught.value.diagnostics[0].related] == [12, 13]


def test_a_long_line_is_cut_around_its_caret() -> None:
    mark = Mark("a.yaml", 1, 5001, 3, "x" * 5000 + "yyy" + "z" * 5000)
    lines = str(Diagnostic("S101", "m" * 5000, mark, "h" * 5000)).splitlines()
    assert max(map(len, lines)) < 800
    assert lines[1][lines[2].index("^") :].startswith("yyy")


BROKEN = """specc: 1
use: models/llama
modle: 3
model:
  dims: {D: 64, L: 2, H: Q}
  outputs: {a: nope}
plan: {compile: maybe}
stages:
  pre:
    data: {sources: [{corpus: python-stdlib}]}
    tokenizer: {vocab: 10}
    budget: {steps: 3}
"""


def checked(text: str, folder: Path) -> list[tuple[str, int]]:
    path = folder / "a.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        check_file(path, [])
    return [(d.code, d.mark.line if d.mark else 0) for d in caught.value.diagnostics]


def test_mistakes_of_form_and_of_meaning_are_found_together(tmp_path: Path) -> None:
    assert checked(BROKEN, tmp_path) == [("S101", 3), ("S111", 5), ("S105", 6), ("S103", 7), ("S103", 11)]


def test_a_step_that_cannot_be_read_does_not_hide_others(tmp_path: Path) -> None:
    text = TOP + "    - {linear: {out: D}, rms_norm: {}, as: y}\n    - expr: x + y\n    - linear: {out: Q, from: x}\n"
    assert checked(text, tmp_path) == [("S103", 13), ("S111", 15)]


STAGE = """stages:
  pre:
    data: {sources: [{corpus: python-stdlib}]}
    tokenizer: {vocab: 300}
    budget: {steps: 3}
    optimizer: {no_decay: [nothing], groups: [{match: none}]}
"""


def test_patterns_of_the_optimizer_match_parameters(tmp_path: Path) -> None:
    assert checked("specc: 1\nuse: models/llama\n" + STAGE, tmp_path) == [("S108", 8), ("S108", 8)]


@pytest.mark.parametrize(("rows", "classes"), [("ROWS", "V"), ("V", "390")])
def test_tables_and_losses_have_room_for_all_tokens_whatever_their_dims_are_called(
    rows: str, classes: str, tmp_path: Path
) -> None:
    text = f"""specc: 1
model:
  dims: {{D: 8, V: 512, ROWS: 390}}
  inputs: {{tokens: 'int[B S]', labels: 'int[B S]'}}
  steps:
    - embedding: {{rows: {rows}, out: D, from: tokens}}
    - linear: {{out: {classes}, as: logits}}
    - cross_entropy: {{from: [logits, labels], as: loss}}
  loss: loss
stages:
  pre:
    data: {{sources: [{{corpus: python-stdlib}}]}}
    tokenizer: {{vocab: 400}}
    budget: {{steps: 3}}
"""
    assert checked(text, tmp_path) == [("S309", 13)]
    if rows == "ROWS":
        turned = (
            "- rearrange: {pattern: 'b s -> b s', from: tokens, as: t}\n    - embedding: {rows: ROWS, out: D, from: t}"
        )
        assert checked(text.replace("- embedding: {rows: ROWS, out: D, from: tokens}", turned), tmp_path) == [
            ("S309", 14)
        ]
    (tmp_path / "fits.yaml").write_text(text.replace("vocab: 400", "vocab: 380"), encoding="utf-8")
    check_file(tmp_path / "fits.yaml", [])


def test_a_stage_needs_a_loss_and_a_known_model(tmp_path: Path) -> None:
    text = TOP + "    - layer\n" + STAGE.replace("    optimizer: {no_decay: [nothing], groups: [{match: none}]}\n", "")
    assert checked(text, tmp_path) == [("S307", 2), ("S309", 17)]
    assert checked(text.replace("  pre:\n", "  pre:\n    model: mdoel\n"), tmp_path) == [("S301", 16)]
