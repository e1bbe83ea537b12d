"""Checkpoints: a new directory a step, safetensors and a manifest with SHA-256, visible only when COMMIT is there."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from specc.runtime.errors import RunError
from specc.runtime.tensorfile import read_tensors, size_of, write_tensors

MANIFEST, COMMIT = "manifest.json", "COMMIT"
STEP = re.compile(r"step_(\d{8,})")
TEMPORARY, BAD = ".tmp-", "bad-"
FULL = {errno.ENOSPC, errno.EDQUOT}
MARGIN = 1 << 16  # bytes of the manifest, headers and folders


class SaveError(RunError):
    """A checkpoint could not be written; the older ones are as they were."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's tensors by file (`weights`, `optimizer`) and its facts; `skipped` says which were not good."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    skipped: dict[str, str] = field(default_factory=dict)


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint; it appears at once, whole, by a rename. Raises SaveError."""
    final, temporary = root / f"step_{step:08d}", root / f"{TEMPORARY}step_{step:08d}-{os.getpid()}"
    need = sum(size_of(group) for group in tensors.values()) + MARGIN
    try:
        if not root.is_dir():
            root.mkdir(parents=True)
            sync(root.parent)
        if need > free_bytes(root):
            raise SaveError(no_room(final, need))
        write_all(temporary, step, tensors, facts)
        if final.exists():  # of an earlier attempt at this step
            remove(final)
        os.rename(temporary, final)
        sync(root)
    except OSError as e:
        shutil.rmtree(temporary, ignore_errors=True)
        full = e.errno in FULL
        raise SaveError(no_room(final, need) if full else f"cannot save {final}: {e.strerror or e}") from None
    return final


def no_room(final: Path, need: int) -> str:
    free = free_bytes(final.parent)
    return (
        f"cannot save {final}: the disk or the quota is full ({free / 1e6:.1f} MB free, {need / 1e6:.1f} MB needed); "
        "free space or lower checkpoint.keep, then run again"
    )


def free_bytes(root: Path) -> int:
    stat = os.statvfs(root)
    return stat.f_bavail * stat.f_frsize


def write_all(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]
) -> None:  # fmt: skip
    """The files of a checkpoint, each on the disk before the one that vouches for it."""
    folder.mkdir()
    files: dict[str, Any] = {}
    for name, group in tensors.items():
        sha, size = write_tensors(folder / f"{name}.safetensors", group)
        files[f"{name}.safetensors"] = {"sha256": sha, "bytes": size}
    manifest = json.dumps({"step": step, "files": files, "facts": dict(facts)}, indent=1, sort_keys=True)
    write(folder / MANIFEST, manifest)
    write(folder / COMMIT, hashlib.sha256(manifest.encode()).hexdigest() + "\n")
    sync(folder)


def steps(root: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder by step, good or not; a folder that cannot be read is an error, not an empty one."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise RunError(f"cannot read the checkpoints in {root}: {e.strerror or e}") from None
    return sorted((int(m[1]), root / n) for n in names if (m := STEP.fullmatch(n)))


def load_newest(root: Path, build: str | None = None) -> Loaded | None:
    """The newest checkpoint that is whole, whose hashes agree and that is of this build; None if there is none at all.

    Raises RunError if there are checkpoints but none is good: a run never begins anew by itself."""
    skipped: dict[str, str] = {}
    for _, path in reversed(steps(root)):
        try:
            return load(path, build, skipped)
        except (RunError, OSError, ValueError, KeyError, TypeError) as e:
            skipped[path.name] = reason(e, path)
    if skipped:
        told = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise RunError(f"no checkpoint in {root} is good ({told}); move the folder away to begin anew")
    return None


def reason(e: Exception, path: Path) -> str:
    if isinstance(e, OSError):
        name = Path(os.fsdecode(e.filename)).name if isinstance(e.filename, str | bytes) else path.name
        return f"{name}: {e.strerror or e}"
    return str(e) if isinstance(e, RunError) else f"{MANIFEST} or a file cannot be read ({e})"


def load(path: Path, build: str | None = None, skipped: Mapping[str, str] | None = None) -> Loaded:
    """Verify and read one checkpoint."""
    if not (path / COMMIT).is_file():
        raise RunError(f"not complete (no {COMMIT})")
    if (path / COMMIT).read_bytes().strip() != digest(path / MANIFEST).encode():
        raise RunError(f"{MANIFEST} was changed")
    manifest = json.loads((path / MANIFEST).read_bytes())
    if build is not None and manifest["facts"]["hash"] != build:
        raise RunError(f"it is of the build {manifest['facts']['hash'][:12]}, not of this one ({build[:12]})")
    if manifest["step"] != int(path.name.removeprefix("step_")):
        raise RunError(f"it is of step {manifest['step']}")
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, facts in manifest["files"].items():
        if Path(name).name != name:
            raise RunError("it names a file outside itself")
        if not (path / name).is_file():
            raise RunError(f"{name} is missing")
        if digest(path / name) != facts["sha256"]:
            raise RunError(f"{name} was changed")
        tensors[name.removesuffix(".safetensors")] = read_tensors(path / name)
    return Loaded(int(manifest["step"]), tensors, manifest["facts"], dict(skipped or {}))


def set_aside(root: Path, names: Mapping[str, str]) -> None:
    """Rename checkpoints that are not good, so that they neither count as kept nor stand in a later one's way."""
    for name in names:
        aside = root / f"{BAD}{name}"
        if aside.exists():
            remove(aside)
        os.rename(root / name, aside)
    sync(root)


def prune(root: Path, keep: int, keep_every: int | None) -> None:
    """Keep the newest `keep`, and every `keep_every`-th step; clear what a killed run left half written."""
    for step, path in steps(root)[:-keep]:
        if not keep_every or step % keep_every:
            remove(path)
    for path in root.glob(f"{TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a checkpoint so that a kill half-way leaves nothing that looks like one."""
    if not path.is_dir():
        path.unlink()
        return
    gone = path.with_name(f"{TEMPORARY}old-{path.name}-{os.getpid()}")
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write(path: Path, text: str) -> None:
    """Write a small file and fsync it."""
    with path.open("w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())


def sync(path: Path) -> None:
    """fsync a folder, so that the names in it last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
