"""Tokens on disk: written once for a text and a tokenizer, checked by their hashes, and mapped into memory.

A store is a folder named by the hash of all that it was made from. It appears at once (a rename), so of two runs
that make the same store one comes second and uses the first's. A damaged store is made anew."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from specc.runtime.errors import RunError

Ints = NDArray[np.int64]
FACTS = "facts.json"
KINDS = {"tokens": np.uint32, "answers": np.uint8, "starts": np.int64}
Piece = tuple[Sequence[int], Sequence[bool]]
T = TypeVar("T")


@dataclass(frozen=True)
class Store:
    """Documents one after the other: tokens [T], which of them are answers [T], where documents start [N + 1]."""

    tokens: NDArray[np.uint32]
    answers: NDArray[np.uint8]
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1


def stored(root: Path, key: str, pieces: Callable[[], Iterable[Piece]]) -> Store:
    """The store `key` below `root`, made of `pieces` (tokens and answers of documents) if it is not there or bad."""
    return kept(root, key, lambda folder: write(folder, pieces()), read)


def kept(root: Path, key: str, write: Callable[[Path], None], read: Callable[[Path], T | None]) -> T:
    """What `read` finds in the folder `key` below `root`; if that is None, what `write` puts into such a folder."""
    path = root / key
    found = read(path)
    if found is not None:
        return found
    root.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{key[:12]}.", dir=root))
    try:
        write(work)
        if path.exists() and read(path) is None:
            damaged = Path(tempfile.mkdtemp(prefix=".damaged.", dir=root))
            path.rename(damaged / key)
            shutil.rmtree(damaged, ignore_errors=True)
        try:
            work.rename(path)
        except OSError:
            if read(path) is None:  # nobody else made it in the meantime: a true failure
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    found = read(path)
    if found is None:
        raise RunError(f"what was just written to {path} is not good: files have changed meanwhile; run again")
    return found


def write(folder: Path, pieces: Iterable[Piece]) -> None:
    """The files of a store; a document at a time, so that memory does not grow with the text."""
    starts, hashes = [0], {name: hashlib.sha256() for name in KINDS}
    sizes: dict[str, int] = {}
    with (folder / "tokens").open("wb") as tokens, (folder / "answers").open("wb") as answers:
        for ids, is_answer in pieces:
            starts.append(starts[-1] + len(ids))
            for name, file, values in (("tokens", tokens, ids), ("answers", answers, is_answer)):
                raw = np.asarray(values, dtype=KINDS[name]).tobytes()
                hashes[name].update(raw)
                file.write(raw)
    raw = np.asarray(starts, dtype=KINDS["starts"]).tobytes()
    hashes["starts"].update(raw)
    (folder / "starts").write_bytes(raw)
    for name in KINDS:
        sizes[name] = (folder / name).stat().st_size
        flush(folder / name)
    facts = {n: {"sha256": h.hexdigest(), "bytes": sizes[n]} for n, h in hashes.items()}
    (folder / FACTS).write_text(json.dumps(facts) + "\n")
    flush(folder / FACTS)


def flush(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def read(path: Path) -> Store | None:
    """The store, or None if it is not there or its files are not those that were written."""
    try:
        facts = json.loads((path / FACTS).read_text())
        good = all(intact(path / name, facts[name]) for name in KINDS)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not good:
        return None
    tokens, answers, starts = (mapped(path / name, kind) for name, kind in KINDS.items())
    return Store(tokens, answers, starts)


def intact(file: Path, facts: dict[str, object]) -> bool:
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return file.stat().st_size == facts["bytes"] and digest == facts["sha256"]


def mapped(file: Path, kind: type) -> np.ndarray:
    if not file.stat().st_size:
        return np.zeros(0, dtype=kind)  # an empty file cannot be mapped
    return np.memmap(file, dtype=kind, mode="r")
