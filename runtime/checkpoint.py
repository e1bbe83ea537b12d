"""Checkpoints: a new directory a step, safetensors and a manifest with SHA-256, visible only when COMMIT is there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from specc.runtime.errors import RunError

MANIFEST, COMMIT = "manifest.json", "COMMIT"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's tensors by file (`weights`, `optimizer`) and its facts; `skipped` says which were not good."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    skipped: list[str]


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint; it appears at once, whole, by a rename."""
    root.mkdir(parents=True, exist_ok=True)
    check_space(root, tensors)
    final, temporary = root / f"step_{step:08d}", root / f".tmp-step_{step:08d}-{os.getpid()}"
    try:
        temporary.mkdir()
        files: dict[str, Any] = {}
        for name, group in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({k: t.detach().contiguous() for k, t in group.items()}, path)
            sync(path)
            files[path.name] = {"sha256": digest(path), "bytes": path.stat().st_size}
        manifest = {"step": step, "files": files, "facts": dict(facts)}
        write(temporary / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        write(temporary / COMMIT, digest(temporary / MANIFEST) + "\n")
        sync(temporary)
        if final.exists():
            shutil.rmtree(final)  # of an earlier attempt at this step, by a run that was resumed before it
        os.rename(temporary, final)
        sync(root)
    except OSError as e:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"cannot save {final}: {e.strerror or e}") from None
    return final


def check_space(root: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    need = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
    stat = os.statvfs(root)
    free = stat.f_bavail * stat.f_frsize
    if need * 1.01 > free:
        raise RunError(f"{root} has {free / 1e6:.0f} MB free, a checkpoint needs {need / 1e6:.0f} MB")


def load_newest(root: Path) -> Loaded | None:
    """The newest checkpoint that is whole and whose hashes agree."""
    skipped: list[str] = []
    for path in sorted(root.glob("step_*"), reverse=True) if root.is_dir() else []:
        try:
            return load(path, skipped)
        except (RunError, OSError, ValueError, KeyError, TypeError) as e:
            skipped.append(f"{path.name}: {e}")
    if skipped:
        raise RunError("no checkpoint is good: " + "; ".join(skipped))
    return None


def load(path: Path, skipped: list[str] | None = None) -> Loaded:
    """Verify and read one checkpoint."""
    if not (path / COMMIT).is_file():
        raise RunError(f"{path.name} is not complete")
    if (path / COMMIT).read_text().strip() != digest(path / MANIFEST):
        raise RunError(f"{path.name}/{MANIFEST} was changed")
    manifest = json.loads((path / MANIFEST).read_text())
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, facts in manifest["files"].items():
        if Path(name).name != name:
            raise RunError(f"{path.name} names a file outside itself")
        if digest(path / name) != facts["sha256"]:
            raise RunError(f"{path.name}/{name} was changed")
        tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    return Loaded(int(manifest["step"]), tensors, manifest["facts"], skipped or [])


def prune(root: Path, keep: int, keep_every: int | None) -> None:
    """Keep the newest `keep`, and every `keep_every`-th step; clear what a killed run left half written."""
    found = sorted(root.glob("step_*"))
    for path in found[:-keep]:
        if not keep_every or int(path.name[5:]) % keep_every:
            shutil.rmtree(path)
    for path in root.glob(".tmp-*"):
        shutil.rmtree(path, ignore_errors=True)


def digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    sync(path)


def sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
