"""A published checkpoint on disk, in Hugging Face's layout: its config, and its tensors read one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from specc.runtime.convert.config import CONFIG, INDEX, TENSORS, read_json
from specc.runtime.errors import RunError

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: its file, its name there, and its shape."""

    file: str
    name: str
    shape: tuple[int, ...]


class Folder:
    """The tensors of a checkpoint's files, which are opened and looked through at once, and read when they are wanted.

    `prefix` is that of all names; a file of the model without its head may leave it out."""

    def __init__(self, path: Path, prefix: str = "") -> None:
        self.path = path
        self.open: dict[str, Any] = {}
        self.places: dict[str, Place] = {}
        with ExitStack() as opening:
            for file in _files(path):
                self._look(file, opening)
            self.stack = opening.pop_all()
        if prefix and not any(n.startswith(prefix) for n in self.places):
            self.places = {prefix + n: at for n, at in self.places.items()}

    def __enter__(self) -> Folder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def _look(self, file: str, opening: ExitStack) -> None:
        """Open a file and note its tensors."""
        try:
            opened = opening.enter_context(safe_open(self.path / file, framework="pt"))
            self.open[file] = opened
            for name in opened.keys():  # noqa: SIM118  (it is no mapping)
                stored = opened.get_slice(name)
                if stored.get_dtype() in FLOATS:  # others are buffers, such as masks
                    self.places[name] = Place(file, name, tuple(stored.get_shape()))
        except (SafetensorError, OSError) as e:
            raise RunError(f"{self.path / file} is not a safetensors file: {e}") from None

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        at = self.places[name]
        try:
            found: Tensor = self.open[at.file].get_tensor(at.name)
        except SafetensorError as e:
            raise RunError(f"cannot read '{at.name}' in {self.path / at.file}: {e}") from None
        return found


def look_of(path: Path) -> str:
    """What tells a folder from one that took its place: its config, and name, size and time of each file of tensors."""
    files = [(f, (path / f).stat().st_size, (path / f).stat().st_mtime_ns) for f in _files(path)]
    return f"{(path / CONFIG).read_text(encoding='utf-8')} {files}"


def _files(path: Path) -> list[str]:
    """The files with tensors: those that an index names, or the one."""
    if (path / TENSORS).is_file():
        return [TENSORS]
    if not (path / INDEX).is_file():
        raise RunError(f"{path} has neither {TENSORS} nor {INDEX}")
    named = read_json(path / INDEX).get("weight_map")
    if not isinstance(named, Mapping) or not all(isinstance(f, str) and Path(f).name == f for f in named.values()):
        raise RunError(f"{path / INDEX} does not say which file of the folder has which tensor")
    files = sorted(set(named.values()))
    if missing := [f for f in files if not (path / f).is_file()]:
        raise RunError(f"{path} has no {missing[0]}, which {INDEX} names")
    return files
