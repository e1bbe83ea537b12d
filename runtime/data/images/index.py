"""The index of a source's pictures: where each of them is, its class, its caption and its hash, kept beside the build.

It holds the bytes of pictures in Parquet and Arrow. An index appears at once and whole, as a store of tokens does. It
is good as long as the pictures that rows name have the sizes and times that they had when it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from specc.runtime.data.images.find import Found, Stamp, read_part, stamp
from specc.runtime.data.noise import Ints
from specc.runtime.data.store import FACTS, flush, intact, mapped
from specc.runtime.errors import RunError

FILE, OFFSET, LENGTH, CLASS, BEGIN, END, WHERE = range(7)  # columns of the table; -1: it has none
KINDS = {"table": np.int64, "digests": np.uint8, "texts": np.uint8, "wheres": np.uint8, "bytes": np.uint8}


@dataclass(frozen=True)
class Album:
    """An index: table [N 7], SHA-256 of the pictures' bytes [N 32]; captions, places and pictures in bytes.

    Classes are numbers of `names`, or numbers as they were given where there are no names."""

    folder: Path
    files: Sequence[str]
    names: Sequence[str]
    unreadable: Sequence[str]  # what was left out, and why
    table: Ints
    digests: NDArray[np.uint8]
    texts: NDArray[np.uint8]
    wheres: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.table)

    def read(self, i: int) -> bytes:
        """The bytes of a picture; raises RunError if they are not those that the index is of."""
        file, offset, length = (int(n) for n in self.table[i, :CLASS])
        path = self.folder / "bytes" if file < 0 else Path(self.files[file])
        raw = read_part(path, offset, length, self.where(i))
        if hashlib.sha256(raw).digest() != self.digests[i].tobytes():
            raise RunError(f"{self.where(i)} has changed since the run began; run again")
        return raw

    def where(self, i: int) -> str:
        """Its file, with the member or the row that it is of one of many."""
        begin, *rest = self.table[i : i + 2, WHERE].tolist()
        return self.wheres[begin : rest[0] if rest else None].tobytes().decode()

    def text(self, i: int) -> str | None:
        """Its caption."""
        begin, end = self.table[i, BEGIN:WHERE]
        return None if begin < 0 else self.texts[begin:end].tobytes().decode()

    def held(self, share: float) -> NDArray[np.bool_]:
        """Which of them [N] belong to the validation set: a function of their bytes alone."""
        if share >= 1:
            return np.ones(len(self), dtype=bool)
        first = np.ascontiguousarray(self.digests[:, :8]).view(">u8")[:, 0]
        return np.asarray(first < int(share * (1 << 64)))


@dataclass
class Writer:
    """Writes an index into a folder, a picture at a time; used in a `with`, which puts all of it on the disk."""

    folder: Path
    files: dict[str, int] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    kinds: set[type] = field(default_factory=set)
    outs: dict[str, BinaryIO] = field(default_factory=dict)
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of pictures that rows name

    def __enter__(self) -> Writer:
        self.outs = {name: (self.folder / name).open("wb") for name in KINDS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        for out in self.outs.values():
            out.close()
        if kind is None:
            self._finish()

    def add(self, one: Found, digest: bytes, size: int) -> None:
        """A picture of so many bytes with this SHA-256."""
        self.kinds |= set() if one.label is None else {type(one.label)}
        if len(self.kinds) > 1:
            raise RunError(f"{one.where}: its class is {one.label!r}; some are names, and some are numbers")
        if one.raw is not None:
            where = [-1, self._put("bytes", one.raw), size]
        else:
            where = [self.files.setdefault(str(one.file.absolute()), len(self.files)), one.offset, size]
        label = self.names.setdefault(one.label, len(self.names)) if isinstance(one.label, str) else one.label
        text = [-1, -1] if one.text is None else [self._put("texts", one.text.encode()), self.outs["texts"].tell()]
        told = self._put("wheres", one.where.encode("utf-8", "replace"))
        row = [*where, -1 if label is None else label, *text, told]
        self._put("table", np.asarray(row, dtype=np.int64).tobytes())
        self._put("digests", digest)

    def _put(self, name: str, raw: bytes) -> int:
        """Where in the file it begins."""
        begin = self.outs[name].tell()
        self.outs[name].write(raw)
        return begin

    def _finish(self) -> None:
        """The files' hashes, on the disk before the folder gets its name."""
        hashes: dict[str, dict[str, object]] = {}
        for name in KINDS:
            with (self.folder / name).open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            hashes[name] = {"sha256": digest, "bytes": (self.folder / name).stat().st_size}
            flush(self.folder / name)
        facts = {"files": [*self.files], "names": [*self.names], "unreadable": self.unreadable, "hashes": hashes,
                 "stamps": self.stamps}  # fmt: skip
        (self.folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        flush(self.folder / FACTS)


def read(path: Path) -> Album | None:
    """The index, or None if it is not there, its files are not those that were written, or pictures have changed."""
    try:
        facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
        good = all(stamp(Path(file)) == seen for file, seen in facts["stamps"].items())
        good = good and all(intact(path / name, facts["hashes"][name]) for name in KINDS)
        files, names, bad = facts["files"], facts["names"], facts["unreadable"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not good:
        return None
    table, digests, texts, wheres, _ = (mapped(path / name, kind) for name, kind in KINDS.items())
    return Album(path, files, names, bad, table.reshape(-1, WHERE + 1), digests.reshape(-1, 32), texts, wheres)
