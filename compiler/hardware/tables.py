"""The tables of devices, links and software; a file of the user's may add rows, or replace some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from specc.spec.errors import Diagnostic, SpecError, did_you_mean
from specc.spec.hardware import Device, Hardware, HardwareFile
from specc.spec.loader import Document, load_text, validate
from specc.spec.plan import Cluster
from specc.spec.use import read_file

FILES = ("devices.yaml", "links.yaml", "software.yaml")
HOST_RESERVE = 0.25  # of the host's memory that the system, its file cache and the loading of data take
RESERVE = 0.06  # of a device's memory that libraries, collectives and gaps between tensors take
Row = TypeVar("Row")


def hardware(extra: Path | None = None) -> Hardware:
    """All rows. Raises SpecError for a file that is not such a table."""
    if extra is None:
        return _shipped()
    more = load_text(read_file(extra), str(extra))
    validate(more, HardwareFile)
    return _joined([*_documents(), more])


@cache
def _shipped() -> Hardware:
    return _joined(_documents())


def _documents() -> list[Document]:
    texts = {name: files("specc.compiler.hardware").joinpath(name).read_text(encoding="utf-8") for name in FILES}
    return [load_text(text, name) for name, text in texts.items()]


def _joined(documents: Sequence[Document]) -> Hardware:
    """One table; what stands in a later document replaces rows of the earlier ones."""
    rows: dict[str, dict[str, Any]] = {table: {} for table in Hardware.model_fields}
    for document in documents:
        for table, found in document.data.items():
            rows[table] |= found
    whole = {table: {name: _whole(found, name) for name in found} for table, found in rows.items()}
    return validate(Document(whole, documents[-1].marks), Hardware)


def capacity(cluster: Cluster) -> float:
    """Bytes that a rank may fill: as many as the plan says, or what its device can; no bound on a processor."""
    if cluster.memory is not None or cluster.device == "cpu":
        return cluster.limit
    return usable(row_of(hardware().devices, cluster.device, "device"))


def usable(device: Device) -> float:
    """Bytes of a device that a plan may take."""
    return device.memory * 2**30 * (1 - RESERVE)


def usable_host(device: Device) -> float:
    """Bytes of the host's memory that a device's rank may take; no bound where the row has none."""
    return math.inf if device.host_memory is None else device.host_memory * 2**30 * (1 - HOST_RESERVE)


def row_of(table: Mapping[str, Row], name: str, what: str) -> Row:
    """A row by name."""
    if name not in table:
        raise SpecError(Diagnostic("S540", f"no {what} is called '{name}'", None, did_you_mean(name, table)))
    return table[name]


def _whole(table: Mapping[str, Any], name: str, after: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row with what it takes from the one that it is like."""
    row = dict(table[name])
    other = row.pop("like", None)
    if other is None:
        return row
    if other not in table or other in after:
        why = "is like itself" if other in after else f"is like '{other}', which is no row"
        raise SpecError(Diagnostic("S540", f"the row '{name}' {why}", None, did_you_mean(str(other), table)))
    return _whole(table, other, (*after, name)) | row
