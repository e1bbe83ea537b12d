"""Checkpoints: what was saved comes back bit by bit; what was damaged is named and never loaded."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from specc.runtime import checkpoint
from specc.runtime.checkpoint import SaveError, load_newest, prune, save, set_aside
from specc.runtime.errors import RunError
from specc.runtime.lock import locked
from specc.runtime.tensorfile import read_tensors, write_tensors

FACTS = {"hash": "a" * 64}


def state(step: int) -> dict[str, dict[str, Tensor]]:
    """Small tensors that tell the step."""
    g = torch.Generator().manual_seed(step)
    return {
        "weights": {"layers.0.w": torch.randn(8, 16, generator=g), "b": torch.randn(3, generator=g).bfloat16()},
        "optimizer": {"step/b": torch.tensor(float(step)), "exp_avg/b": torch.randn(3, generator=g).double()},
    }


def same(a: dict[str, dict[str, Tensor]], b: dict[str, dict[str, Tensor]]) -> bool:
    flat = [{(f, n): t for f, group in x.items() for n, t in group.items()} for x in (a, b)]
    return flat[0].keys() == flat[1].keys() and all(
        t.dtype == flat[1][k].dtype and torch.equal(t, flat[1][k]) for k, t in flat[0].items()
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Checkpoints of steps 1 and 2."""
    for step in (1, 2):
        save(tmp_path / "checkpoints", step, state(step), FACTS)
    return tmp_path / "checkpoints"


def test_a_checkpoint_comes_back(root: Path) -> None:
    loaded = load_newest(root, FACTS["hash"])
    assert loaded is not None
    assert loaded.step == 2
    assert loaded.skipped == {}
    assert same(loaded.tensors, state(2))


def test_other_readers_of_safetensors_agree(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6).reshape(2, 3), "b": torch.tensor(True), "c": torch.zeros(0, 4), "d": torch.ones(1)}
    sha, size = write_tensors(tmp_path / "x.safetensors", tensors)
    assert (sha, size) == (checkpoint.digest(tmp_path / "x.safetensors"), (tmp_path / "x.safetensors").stat().st_size)
    for found in (load_file(tmp_path / "x.safetensors"), read_tensors(tmp_path / "x.safetensors")):
        assert found.keys() == tensors.keys()
        assert all(found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in tensors.items())


def test_there_is_nothing_to_load_at_first(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "checkpoints") is None


@pytest.mark.parametrize("seed", range(10))
def test_any_flipped_bit_is_found(root: Path, seed: int) -> None:
    """Ten times thirty bits anywhere in the newest checkpoint: the one before is loaded, the damaged one is named."""
    draw = random.Random(seed)
    files = sorted((root / "step_00000002").iterdir())
    for _ in range(30):
        path = draw.choice(files)
        good = path.read_bytes()
        bad = bytearray(good)
        bad[draw.randrange(len(bad))] ^= 1 << draw.randrange(8)
        path.write_bytes(bad)
        loaded = load_newest(root)
        assert loaded is not None
        if not (path.name == "COMMIT" and bytes(bad).strip() == good.strip()):  # another blank behind the hash
            assert loaded.step == 1, path.name
            assert "step_00000002" in loaded.skipped
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "manifest.json", "COMMIT"])
@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "zeros", "folder", "longer"])
def test_a_damaged_file_is_found(root: Path, name: str, damage: str) -> None:
    path = root / "step_00000002" / name
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "empty":
            path.write_bytes(b"")
        case "torn":
            path.write_bytes(content[: len(content) // 2])
        case "zeros":
            path.write_bytes(b"\0" * len(content))
        case "folder":
            path.mkdir()
        case "longer":
            path.write_bytes(content + b"x")
    loaded = load_newest(root)
    assert loaded is not None
    assert loaded.step == 1
    assert same(loaded.tensors, state(1))
    assert name in loaded.skipped["step_00000002"] or name == "COMMIT"


def test_files_of_another_step_are_found(root: Path) -> None:
    shutil.copy(root / "step_00000001" / "weights.safetensors", root / "step_00000002")
    loaded = load_newest(root)
    assert loaded is not None
    assert loaded.step == 1


def test_a_renamed_checkpoint_is_found(root: Path) -> None:
    shutil.copytree(root / "step_00000001", root / "step_00000009")
    loaded = load_newest(root)
    assert loaded is not None
    assert (loaded.step, loaded.skipped) == (2, {"step_00000009": "it is of step 1"})


def test_a_file_in_place_of_a_checkpoint_is_skipped(root: Path) -> None:
    (root / "step_00000003").write_text("")
    loaded = load_newest(root)
    assert loaded is not None
    assert loaded.step == 2
    set_aside(root, loaded.skipped)
    assert sorted(p.name for p in root.iterdir()) == ["bad-step_00000003", "step_00000001", "step_00000002"]


def test_a_checkpoint_of_another_build_is_refused(root: Path) -> None:
    with pytest.raises(RunError, match="it is of the build aaaaaaaaaaaa, not of this one") as e:
        load_newest(root, "b" * 64)
    assert "move the folder away to begin anew" in str(e.value)


def test_a_run_never_begins_anew_when_all_are_bad(root: Path) -> None:
    for path in root.glob("*/weights.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(RunError, match=r"no checkpoint in .* is good .*step_00000002: weights.safetensors was changed"):
        load_newest(root)


def test_a_manifest_cannot_name_files_elsewhere(root: Path) -> None:
    folder = root / "step_00000002"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../step_00000001/weights.safetensors"] = manifest["files"].pop("weights.safetensors")
    text = json.dumps(manifest)
    (folder / "manifest.json").write_text(text)
    (folder / "COMMIT").write_text(checkpoint.digest(folder / "manifest.json"))
    loaded = load_newest(root)
    assert loaded is not None
    assert loaded.skipped == {"step_00000002": "it names a file outside itself"}


def test_a_bad_checkpoint_does_not_count_as_kept(root: Path) -> None:
    """Else pruning would drop the good one that the run went on from."""
    save(root, 9, state(9), FACTS)
    (root / "step_00000009" / "COMMIT").unlink()
    loaded = load_newest(root)
    assert loaded is not None
    set_aside(root, loaded.skipped)
    save(root, 3, state(3), FACTS)
    prune(root, 1, None)
    again = load_newest(root)
    assert again is not None
    assert (again.step, again.skipped) == (3, {})


def test_pruning_keeps_the_last_and_every_nth(tmp_path: Path) -> None:
    for step in range(1, 11):
        save(tmp_path, step, state(step), FACTS)
        prune(tmp_path, 2, 4)
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [4, 8, 9, 10]
    (tmp_path / ".tmp-step_00000011-1").mkdir()
    prune(tmp_path, 2, 4)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_checkpoint_that_exists_is_replaced_whole(root: Path) -> None:
    save(root, 2, state(7), FACTS)
    loaded = load_newest(root)
    assert loaded is not None
    assert same(loaded.tensors, state(7))


def test_every_point_at_which_a_save_can_die_leaves_one_good_state(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th call on the file system fail, for all n: what was there stays, or the new one is there whole."""
    calls = ["open", "fsync", "rename", "mkdir", "listdir", "statvfs"]
    outcomes: list[bool] = []
    for n in range(100):
        count = 0

        def dies(real: object, n: int = n) -> object:
            def call(*args: object, **options: object) -> object:
                nonlocal count
                count += 1
                if count == n + 1:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                assert callable(real)
                return real(*args, **options)

            return call

        with monkeypatch.context() as m:
            for name in calls:
                m.setattr(os, name, dies(getattr(os, name)))
            m.setattr(Path, "open", dies(Path.open))
            try:
                save(root, 3, state(3), FACTS)
                saved = True
            except SaveError:
                saved = False
        loaded = load_newest(root)
        assert loaded is not None
        assert same(loaded.tensors, state(loaded.step))
        assert loaded.step == 3 or not saved
        outcomes.append(saved)
        shutil.rmtree(root / "step_00000003", ignore_errors=True)
        assert not list(root.glob(".tmp-step*")), "a failed save clears up"
        if count <= n:
            break
    assert outcomes.count(True) == 1, "the last try has no failure"
    assert len(outcomes) > 12


def test_a_full_disk_is_told_with_figures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> tuple[str, int]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(checkpoint, "write_tensors", full)
        with pytest.raises(
            SaveError, match=r"the disk or the quota is full \([\d.]+ MB free, [\d.]+ MB needed\); free"
        ):
            save(root, 3, state(3), FACTS)
    monkeypatch.setattr(checkpoint, "free_bytes", lambda _: 1000)
    with pytest.raises(SaveError, match="is full"):
        save(root, 3, state(3), FACTS)
    loaded = load_newest(root)
    assert loaded is not None
    assert loaded.step == 2
    assert sorted(p.name for p in root.iterdir()) == ["step_00000001", "step_00000002"]


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(RunError, match=r"cannot read the checkpoints in .*: Not a directory"):
        load_newest(tmp_path / "checkpoints")

    def denied(_: object) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(RunError, match="Permission denied"):
        load_newest(tmp_path)


def test_a_folder_has_one_run(tmp_path: Path) -> None:
    code = "import sys, time\nfrom pathlib import Path\nfrom specc.runtime.lock import locked\n"
    code += "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)\n"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {other.pid} is at work on"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path):  # the lock of a killed process is free
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
