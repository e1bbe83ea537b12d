"""Checkpoints: a new directory a step, safetensors and a manifest with SHA-256, visible only when COMMIT is there.

Every rank writes the pieces that it owns, and reads the pieces that meet its part, whichever mesh wrote them. One
process is a mesh of one rank: the format is the same."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from specc.runtime.errors import RunError
from specc.runtime.pieces import WHOLE, Piece, Sharding, covers, own_piece
from specc.runtime.team import ALONE, Team, say
from specc.runtime.tensorfile import CODES, Reader, bytes_of, write_tensors

T = TypeVar("T")
Groups = Mapping[str, Mapping[str, Tensor]]
MANIFEST, COMMIT = "manifest.json", "COMMIT"
STEP = re.compile(r"step_(\d{8,})")
TEMPORARY, BAD = ".tmp-", "bad-"
FULL = {errno.ENOSPC, errno.EDQUOT}
MARGIN = 1 << 16  # bytes of the manifest, headers and folders
DTYPES: dict[str, torch.dtype] = {code: dtype for dtype, code in CODES.items()}
NOT_GOOD = (RunError, OSError, ValueError, KeyError, TypeError, IndexError)  # what reading a damaged one can raise


class SaveError(RunError):
    """A checkpoint could not be written; the older ones are as they were."""


@dataclass(frozen=True)
class Loaded:
    """A checkpoint's tensors by group (`weights`, `optimizer`) and its facts; `skipped` says which were not good."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    facts: dict[str, Any]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def best(self) -> dict[str, Tensor]:
        """The weights that are sampled and handed on: moving averages where there are any."""
        return {**self.tensors["weights"], **self.tensors.get("ema", {})}


def folder_of(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def is_there(root: Path, step: int) -> bool:
    """Whether a checkpoint of this step was saved."""
    return folder_of(root, step).is_dir()


def save(
    root: Path, step: int, tensors: Groups, facts: Mapping[str, Any], sharding: Sharding = WHOLE, team: Team = ALONE
) -> Path:
    """Write a checkpoint; it appears at once, whole, by a rename. All ranks call it; all raise SaveError or none."""
    own = {g: {n: t for n, t in ts.items() if sharding.owns(n, t.ndim)} for g, ts in tensors.items()}
    told = say(team, [os.getpid(), sum(map(bytes_of, own.values()))])
    need = sum(size for _, size in told) + MARGIN
    final, temporary = folder_of(root, step), root / f"{TEMPORARY}step_{step:08d}-{told[0][0]}"
    lead = team.rank == 0
    try:
        together(team, final, need, lambda: begin(root, temporary, final, need) if lead else None)
        written = together(team, final, need, lambda: write_own(temporary, own, sharding, team))
        together(team, final, need, lambda: commit(temporary, final, step, written, facts) if lead else None)
    except SaveError:
        if lead:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def together(team: Team, final: Path, need: int, do: Callable[[], Any]) -> list[Any]:
    """Do a part of a save on all ranks; what each has to say of it. If one fails, all raise SaveError."""
    made, failed = None, ""
    try:
        made = do()
    except SaveError as e:
        failed = str(e)
    except OSError as e:
        failed = no_room(final, need) if e.errno in FULL else f"cannot save {final}: {e.strerror or e}"
    said = say(team, [failed, made])
    for rank, (why, _) in enumerate(said):
        if why:
            raise SaveError(why if team.size == 1 else f"rank {rank}: {why}")
    return [result for _, result in said]


def begin(root: Path, temporary: Path, final: Path, need: int) -> None:
    if not root.is_dir():
        root.mkdir(parents=True)
        sync(root.parent)
    if need > free_bytes(root):
        raise SaveError(no_room(final, need))
    temporary.mkdir()


def write_own(folder: Path, own: Groups, sharding: Sharding, team: Team) -> dict[str, Any]:
    """This rank's files, on the disk; what the manifest says of them."""
    if not folder.is_dir():
        raise SaveError(f"there is no {folder}: all ranks need a folder that they share")
    files: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for group, tensors in own.items():
        name = f"{group}.safetensors" if team.size == 1 else f"{group}.rank{team.rank:05d}.safetensors"
        if tensors or team.rank == 0:
            sha, size = write_tensors(folder / name, tensors)
            files[name] = {"sha256": sha, "bytes": size}
        found[group] = {}
        for path, t in tensors.items():
            shape, piece = own_piece(sharding, path, t, name)
            found[group][path] = {"dtype": CODES[t.dtype], "shape": shape, "pieces": [asdict(piece)]}
    return {"files": files, "tensors": found}


def commit(temporary: Path, final: Path, step: int, written: Sequence[Any], facts: Mapping[str, Any]) -> None:
    """Vouch for all files, and show the checkpoint."""
    files: dict[str, Any] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for part in written:
        files |= part["files"]
        for group, found in part["tensors"].items():
            known = tensors.setdefault(group, {})
            for name, t in found.items():
                if name in known:
                    known[name]["pieces"] += t["pieces"]
                else:
                    known[name] = t
    whole = {"step": step, "files": files, "tensors": tensors, "facts": dict(facts)}
    manifest = json.dumps(whole, indent=1, sort_keys=True)
    write(temporary / MANIFEST, manifest)
    write(temporary / COMMIT, hashlib.sha256(manifest.encode()).hexdigest() + "\n")
    sync(temporary)
    if final.exists():  # of an earlier attempt at this step
        remove(final)
    os.rename(temporary, final)
    sync(final.parent)


def no_room(final: Path, need: int) -> str:
    free = free_bytes(final.parent)
    return (
        f"cannot save {final}: the disk or the quota is full ({free / 1e6:.1f} MB free, {need / 1e6:.1f} MB needed); "
        "free space or lower checkpoint.keep, then run again"
    )


def free_bytes(root: Path) -> int:
    stat = os.statvfs(root)
    return stat.f_bavail * stat.f_frsize


def steps(root: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder by step, good or not; a folder that cannot be read is an error, not an empty one."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    except OSError as e:
        raise RunError(f"cannot read the checkpoints in {root}: {e.strerror or e}") from None
    return sorted((int(m[1]), root / n) for n in names if (m := STEP.fullmatch(n)))


def load_newest(
    root: Path, build: str | None = None, sharding: Sharding = WHOLE, team: Team = ALONE,
    only: Collection[str] | None = None,
) -> Loaded | None:  # fmt: skip
    """The newest checkpoint that is whole, whose hashes agree and that is of this build; None if there is none at all.

    Each rank gets its parts by `sharding`; `only` are the groups to read. All ranks call it and agree. Raises RunError
    if there are checkpoints but none is good: a run never begins anew by itself."""
    skipped: dict[str, str] = {}
    names = say(team, [path.name for _, path in steps(root)] if team.rank == 0 else [])[0]
    for name in reversed(names):
        try:
            return load(root / name, build, skipped, sharding, team, only)
        except RunError as e:
            skipped[name] = str(e)
    if skipped:
        told = "; ".join(f"{name}: {why}" for name, why in skipped.items())
        raise RunError(f"no checkpoint in {root} is good ({told}); move the folder away to begin anew")
    return None


def reason(e: Exception, path: Path) -> str:
    if isinstance(e, OSError):
        name = Path(os.fsdecode(e.filename)).name if isinstance(e.filename, str | bytes) else path.name
        return f"{name}: {e.strerror or e}"
    return str(e) if isinstance(e, RunError) else f"{MANIFEST} or a file cannot be read ({e})"


def load(
    path: Path, build: str | None = None, skipped: Mapping[str, str] | None = None, sharding: Sharding = WHOLE,
    team: Team = ALONE, only: Collection[str] | None = None,
) -> Loaded:  # fmt: skip
    """Verify and read one checkpoint; all ranks raise RunError, with the same reason, if any finds it not good."""
    manifest: dict[str, Any] = agreed(team, path, lambda: verified(path, build, team))
    tensors = agreed(team, path, lambda: read(path, manifest, sharding, only))
    return Loaded(int(manifest["step"]), tensors, manifest["facts"], dict(skipped or {}))


def agreed(team: Team, path: Path, do: Callable[[], T]) -> T:
    """What this rank's part gives, if no rank finds a fault."""
    made: list[T] = []
    why = ""
    try:
        made.append(do())
    except NOT_GOOD as e:
        why = reason(e, path)
    if faults := [x for x in say(team, why) if x]:
        raise RunError(faults[0])
    return made[0]


def verified(path: Path, build: str | None, team: Team) -> dict[str, Any]:
    """The manifest. Its word is checked by every rank, the files' hashes are shared out among the ranks."""
    if not (path / COMMIT).is_file():
        raise RunError(f"not complete (no {COMMIT})")
    if (path / COMMIT).read_bytes().strip() != digest(path / MANIFEST).encode():
        raise RunError(f"{MANIFEST} was changed")
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_bytes())
    if build is not None and manifest["facts"]["hash"] != build:
        raise RunError(f"it is of the build {manifest['facts']['hash'][:12]}, not of this one ({build[:12]})")
    if manifest["step"] != int(path.name.removeprefix("step_")):
        raise RunError(f"it is of step {manifest['step']}")
    for name in manifest["files"]:
        if Path(name).name != name:
            raise RunError("it names a file outside itself")
    for name in sorted(manifest["files"])[team.rank :: team.size]:
        if not (path / name).is_file():
            raise RunError(f"{name} is missing")
        if digest(path / name) != manifest["files"][name]["sha256"]:
            raise RunError(f"{name} was changed")
    return manifest


def read(
    path: Path, manifest: Mapping[str, Any], sharding: Sharding, only: Collection[str] | None
) -> dict[str, dict[str, Tensor]]:  # fmt: skip
    """This rank's parts of the tensors."""
    found: dict[str, dict[str, Tensor]] = {}
    with Reader(path) as reader:
        for group, tensors in manifest["tensors"].items():
            if only is not None and group not in only:
                continue
            found[group] = {}
            for name, facts in tensors.items():
                pieces = [Piece(p["file"], tuple(p["begin"]), tuple(p["size"])) for p in facts["pieces"]]
                if not covers(facts["shape"], pieces) or any(p.file not in manifest["files"] for p in pieces):
                    raise RunError(f"the pieces of {name} in {MANIFEST} are not the whole of it")
                if not sharding.holds(name):
                    continue
                region = sharding.region(name, facts["shape"])
                found[group][name] = reader.read(name, DTYPES[facts["dtype"]], region, pieces)
    return found


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
