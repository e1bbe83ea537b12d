"""The tables of devices, links and software, and a user's own rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.compiler.hardware.tables import hardware, row_of
from specc.spec.errors import SpecError

TABLES = hardware()


def test_every_device_has_its_links_and_the_kernels_of_all_software() -> None:
    for device in TABLES.devices.values():
        assert {device.near, device.far} <= set(TABLES.links)
        assert {s.attention for s in TABLES.software.values()} - {"unfused"} <= set(device.attention)
        assert set(device.peak) <= set(device.product)


def test_a_row_takes_from_the_one_that_it_is_like() -> None:
    a, b = TABLES.devices["a100-40gb"], TABLES.devices["a100-80gb"]
    assert (a.memory, a.bandwidth) == (40, 1555)
    assert a.peak == b.peak


def test_a_file_adds_a_device_and_replaces_a_link(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("devices:\n  mine: {like: h200-sxm, memory: 100}\nlinks:\n  nvlink4: {bandwidth: 1, latency: 2}\n")
    found = hardware(file)
    assert found.devices["mine"].bandwidth == TABLES.devices["h200-sxm"].bandwidth
    assert found.links["nvlink4"].bandwidth == 1
    assert found.devices["a100-80gb"] == TABLES.devices["a100-80gb"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("devices:\n  mine: {like: h101}\n", "S540"),
        ("devices:\n  a: {like: b}\n  b: {like: a}\n", "S540"),
        ("devices:\n  mine: {like: h100-sxm, memry: 1}\n", "S101"),
        ("devices:\n  mine: {like: h100-sxm, stream: 2}\n", "S103"),
        ("gpus: {}\n", "S101"),
    ],
)
def test_mistakes_in_a_file_have_a_code(text: str, code: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SpecError) as raised:
        hardware(file)
    assert raised.value.codes == (code,)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match="h100-sxm"):
        row_of(TABLES.devices, "h100-smx", "device")
