"""What `specc diff` says of two builds."""

from __future__ import annotations

from pathlib import Path

import pytest

import specc
from specc.compiler.build import build_spec
from specc.compiler.compare import compare
from specc.runtime.cli import main

TINY = Path(__file__).parent.parent / "examples" / "tiny.yaml"


def built(folder: Path, *overrides: str) -> Path:
    build_spec(specc.load(TINY, ["model.dims.L=2", "plan.mesh.dp=2", *overrides]), folder)
    return folder


def test_a_build_is_the_same_as_itself(tmp_path: Path) -> None:
    a = built(tmp_path / "a")
    assert compare(a, a) == "pretrain: the same"


def test_zero_3_keeps_parameters_in_parts_for_collectives_and_less_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = built(tmp_path / "a"), built(tmp_path / "b", "plan.zero=3")
    assert main(["diff", str(a), str(b)]) == 0
    text = capsys.readouterr().out
    assert "  plan.zero: 0 -> 3" in text
    assert "  layers.*.attention.q.weight: kept whole -> dp:S(D) (2 of them)" in text
    assert "  memory, optimizer: " in text
    # stem and head once, two layers forward and backward: 1 table, 2 in the head, 8 of a layer
    assert "all_gather_into_tensor on specc_dp: 0 of 0 B in all -> 36 of " in text


def test_a_build_that_was_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = built(tmp_path / "a")
    (a / "stages" / "pretrain" / "memory.json").write_text("{}")
    assert main(["diff", str(a), str(a)]) == 1
    assert "was changed since the build" in capsys.readouterr().err
