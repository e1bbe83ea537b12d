"""The pictures of a source: found, looked at once, and known by an index from then on.

Making the index reads and decodes every picture. It is named by the names, sizes and times of the files, so that later
runs need not read them all again; those of pictures that rows name stand in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from specc.runtime.data.corpus import Document
from specc.runtime.data.images.decode import Unreadable, opened
from specc.runtime.data.images.find import Found, Stamp, files_of, first_of_classes, pictures, stamp
from specc.runtime.data.images.index import CLASS, WHERE, Album, Writer, read
from specc.runtime.data.store import kept
from specc.runtime.errors import RunError
from specc.spec.data import Source

VERSION = 2  # of what an index holds; part of its name
AT_ONCE = 256  # pictures that are in memory together while an index is made
THREADS = min(8, os.cpu_count() or 1)  # that decode; Pillow lets others run meanwhile


@dataclass
class Pictures:
    """The pictures of a source, of which a `share` is held out; the index is below `cache`."""

    source: Source
    base: Path
    share: float
    cache: Path
    limit: int | None = None
    skips: bool = False  # those that cannot be read
    touch: Callable[[], None] = lambda: None  # called for each picture that is looked at
    known: Album | None = None

    def __iter__(self) -> Iterator[Document]:
        """Their captions, as a tokenizer is trained on them."""
        album = self.album()
        texts = map(album.text, range(len(album)))
        return (Document(t) for t in texts if t)

    @property
    def name(self) -> str:
        return str(self.source.path)

    @property
    def path(self) -> Path:
        return self.base / self.name

    def found(self) -> Iterator[Found]:
        """The pictures as their files give them, as many as `limit` says."""
        files = files_of(self.source, self.path)
        if self.limit is not None and files[0][1] == "image":
            files = first_of_classes(files, self.path, self.limit)
        return islice(pictures(self.source, self.path, files), self.limit)

    def digest(self) -> str:
        """SHA-256 over pictures, classes and captions."""
        album = self.album()
        total = hashlib.sha256(json.dumps([*album.names]).encode())
        for part in (album.digests, album.table[:, CLASS:WHERE], album.texts):
            total.update(np.ascontiguousarray(part).tobytes())
        return total.hexdigest()

    def album(self) -> Album:
        """The index, made if there is none; raises RunError for pictures that cannot be read."""
        if self.known is None:
            self.known = kept(self.cache, self._key(), self._write, read)
        if not len(self.known):
            why = f": {self.known.unreadable[0]}" if self.known.unreadable else ""
            raise RunError(f"{self.path} has no pictures{why}")
        return self.known

    def _key(self) -> str:
        """Of the files as they are on the disk, and of how they are read."""
        seen = []
        for file, form in files_of(self.source, self.path):
            also = [file.with_suffix(".txt")] if form == "image" else []
            seen += [
                (str(f.absolute()), (at := f.stat()).st_size, at.st_mtime_ns) for f in (file, *also) if f.is_file()
            ]
        s = self.source
        asked = [s.image, s.label, s.field, s.format, self.limit, self.skips]
        made_of = [VERSION, str(self.path.absolute()), *asked, seen]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()

    def _write(self, folder: Path) -> None:
        """Look at every picture; raises RunError for one that cannot be read, unless these are left out."""
        known = {file for file, _ in files_of(self.source, self.path)}
        with Writer(folder) as index:
            for one, at, digest, size, trouble in _looked_at(self.found()):
                self.touch()
                if one.raw is None and one.file not in known:
                    index.stamps[str(one.file.absolute())] = at
                if not trouble:
                    index.add(one, digest, size)
                elif self.skips:
                    index.unreadable.append(f"{one.where}: {trouble}")
                else:
                    hint = "remove it, or say data.image.unreadable: skip"
                    raise RunError(f"{one.where} is no picture: {trouble}; {hint}")


def _looked_at(found: Iterator[Found]) -> Iterator[tuple[Found, Stamp, bytes, int, str]]:
    """Each picture with its file's stamp, the SHA-256 and the number of its bytes, and what is wrong with it."""
    with ThreadPoolExecutor(THREADS, thread_name_prefix="pictures") as pool:
        while group := list(islice(found, AT_ONCE)):
            yield from zip(group, *zip(*pool.map(_look, group), strict=True), strict=True)


def _look(one: Found) -> tuple[Stamp, bytes, int, str]:
    at = None if one.raw is not None else stamp(one.file)
    if one.raw is None and at is None:
        return at, b"", 0, "there is no such file"
    raw = one.read()
    try:
        opened(raw)
    except Unreadable as e:
        return at, b"", 0, str(e)
    return at, hashlib.sha256(raw).digest(), len(raw), ""
