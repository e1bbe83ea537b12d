"""What `specc tune` measures is a hardware file that plans are predicted with."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.compiler.hardware.tables import hardware
from specc.runtime import cli


@pytest.mark.dist
@pytest.mark.slow
def test_a_measured_machine_is_a_row_of_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "here.yaml"
    assert cli.main(["tune", "--ranks", "2", "--name", "here", "--out", str(file)]) == cli.OK
    tables = hardware(file)
    device = tables.devices["here"]
    assert device.node == 2
    assert all(1e-4 < rate < 100 for rate in device.peak.values())
    assert 0.1 < device.bandwidth < 10_000
    assert tables.links["here"].bandwidth > 0
    assert "--cluster 2xhere" in capsys.readouterr().out
