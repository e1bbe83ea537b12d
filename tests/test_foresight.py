"""Predicted seconds of published training runs; the rows with their sources stand in tests/foresight/rows.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specc.compiler.hardware.tables import hardware
from tests.foresight.compare import Compared, compare, summary

ROWS = json.loads((Path(__file__).parent / "foresight" / "rows.json").read_text(encoding="utf-8"))["rows"]
FOUND = {c.case.name: c for c in compare(ROWS, hardware())[0]}


def seconds(*names: str) -> list[float]:
    return [FOUND[n].forecast.seconds for n in names]


def test_every_row_is_predicted() -> None:
    assert set(FOUND) == {row["id"] for row in ROWS}


@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
def test_steps_are_predicted_within_an_eighth(found: Compared) -> None:
    assert abs(found.error) < 0.125


def test_compiled_is_faster_than_eager_and_fp8_faster_still() -> None:
    eager, compiled, fp8 = seconds("torchtitan-0000", "torchtitan-0001", "torchtitan-0002")
    assert eager > compiled > fp8


def test_selective_recompute_beats_full() -> None:
    full, selective = seconds("korthikanti-0744", "korthikanti-0745")
    assert full > selective


def test_zero_bubble_beats_interleaved_beats_1f1b() -> None:
    zero, plain, interleaved = seconds("zero-bubble-0823", "zero-bubble-0829", "zero-bubble-0832")
    assert plain > interleaved > zero


def test_the_parts_of_a_step_are_the_step() -> None:
    for c in FOUND.values():
        f = c.forecast
        assert f.seconds == f.work + f.sent + f.bubble + f.optimizer
        assert min(f.work, f.sent, f.bubble, f.optimizer) >= 0


def test_calibration_and_held_out_rows_are_told_apart() -> None:
    lines = "\n".join(summary(list(FOUND.values())))
    assert "torchtitan, held out" in lines
    assert "dgxc-benchmarking, calibration" in lines


def test_pipelines_wait_as_long_as_published() -> None:
    gaps = [c.bubble_gap for c in FOUND.values() if c.bubble_gap is not None]
    assert len(gaps) == 3
    assert max(map(abs, gaps)) < 0.025
