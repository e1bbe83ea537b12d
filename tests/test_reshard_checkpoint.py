"""Checkpoints of many ranks: what one mesh wrote, any other reads, bit by bit; a fault of one rank is known to all."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from specc.compiler.placement.types import Axis, Layout, Mesh, R, S, V
from specc.runtime import checkpoint, init
from specc.runtime.checkpoint import SaveError, load_newest, save
from specc.runtime.errors import RunError
from specc.runtime.groups import cut
from specc.runtime.init import initial
from specc.runtime.pieces import Piece, Sharding, covers
from specc.runtime.team import Processes, Team
from tests.grid.processes import spawn

FACTS = {"hash": "a" * 64}
SHAPES = {"w": (12, 24), "layers.0.w": (8, 12, 16), "b": (24,), "scale": ()}
Groups = dict[str, dict[str, Tensor]]


class Threads:
    """A team of threads of this process."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: Barrier) -> None:
        self.rank, self.size, self.board, self.barrier = rank, size, board, barrier

    def gather(self, said: bytes) -> list[bytes]:
        return self._all(said)

    def numbers(self, own: Sequence[float]) -> Tensor:
        return torch.tensor(self._all(list(own)), dtype=torch.float64)

    def _all(self, own: Any) -> list[Any]:
        self.board[self.rank] = own
        self.barrier.wait(30)
        found = list(self.board)
        self.barrier.wait(30)
        return found


def as_ranks(n: int, work: Callable[[Team], Any]) -> list[Any]:
    """What `work` gives, or raises, on each of n ranks."""
    board, barrier, results = [None] * n, Barrier(n), [None] * n

    def one(rank: int) -> None:
        try:
            results[rank] = work(Threads(rank, n, board, barrier))
        except RunError as e:
            results[rank] = e

    threads = [Thread(target=one, args=(rank,)) for rank in range(n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return results


def wholes(seed: int) -> Groups:
    g = torch.Generator().manual_seed(seed)
    weights = {n: torch.randn(shape, generator=g) for n, shape in SHAPES.items()}
    weights["b"] = weights["b"].bfloat16()
    moments = {f"exp_avg/{n}": torch.randn(shape, generator=g).double() for n, shape in SHAPES.items()}
    counts = {f"step/{n}": torch.tensor(float(seed)) for n in SHAPES}
    return {"weights": weights, "optimizer": moments | counts}


def drawn_mesh(draw: random.Random) -> Mesh:
    sizes = draw.choice([(), (2,), (4,), (3,), (2, 2), (2, 3), (1, 4), (2, 2, 2)])
    return Mesh(tuple(Axis(f"a{i}", n) for i, n in enumerate(sizes)))


def drawn_layout(shape: tuple[int, ...], mesh: Mesh, draw: random.Random) -> Layout:
    """Each axis splits a dim, if that goes without a rest, or nothing."""
    left, found = list(shape), []
    for axis in mesh.axes:
        dims = [d for d, n in enumerate(left) if n % axis.size == 0]
        if dims and draw.random() < 0.7:
            dim = draw.choice(dims)
            left[dim] //= axis.size
            found.append(S(dim))
        else:
            found.append(draw.choice([R, V]))
    return tuple(found)


def drawn_sharding(draw: random.Random) -> Sharding:
    """A mesh, half the time of each rank of a pipeline, with the parameters on some of these ranks."""
    mesh = drawn_mesh(draw)
    layouts = {n: drawn_layout(shape, mesh, draw) for n, shape in SHAPES.items() if shape}
    if draw.random() < 0.5 or mesh.size > 4:
        return Sharding(mesh, layouts)
    stages = draw.choice([2, 3])
    holders = {n: sorted(draw.sample(range(stages), draw.randint(1, stages))) for n in SHAPES}
    whole = Mesh((Axis("pp", stages, "stages"), *mesh.axes))
    return Sharding(whole, {n: (R, *at) for n, at in layouts.items()}, 0, holders)


def parts(state: Groups, sharding: Sharding) -> Groups:
    return {
        g: {
            n: cut(t, sharding.layout(n, t.ndim), sharding.mesh, sharding.rank)
            for n, t in tensors.items() if sharding.holds(n)
        }
        for g, tensors in state.items()
    }  # fmt: skip


def same(a: Groups, b: Groups) -> bool:
    flat = [{(g, n): t for g, ts in x.items() for n, t in ts.items()} for x in (a, b)]
    return flat[0].keys() == flat[1].keys() and all(
        t.dtype == flat[1][k].dtype and t.shape == flat[1][k].shape and t.equal(flat[1][k]) for k, t in flat[0].items()
    )


@pytest.mark.parametrize("seed", range(30))
def test_what_one_mesh_wrote_another_reads(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    one, other = drawn_sharding(draw), drawn_sharding(draw)
    state = wholes(seed)

    def write(team: Team) -> Path:
        own = replace(one, rank=team.rank)
        return save(tmp_path, 3, parts(state, own), FACTS, own, team)

    def read(team: Team) -> bool:
        own = replace(other, rank=team.rank)
        loaded = load_newest(tmp_path, FACTS["hash"], own, team)
        return loaded is not None and same(loaded.tensors, parts(state, own))

    n, m = one.mesh.size, other.mesh.size
    assert as_ranks(n, write) == [tmp_path / "step_00000003"] * n
    assert as_ranks(m, read) == [True] * m
    whole = load_newest(tmp_path)
    assert whole is not None
    assert same(whole.tensors, state)
    elements = sum(t.numel() * t.element_size() for group in state.values() for t in group.values())
    files = sum(p.stat().st_size for p in tmp_path.glob("step_*/*.safetensors"))
    assert files < elements + 4096 * len(list(tmp_path.glob("step_*/*.safetensors"))), "each element is written once"


MESH = Mesh((Axis("dp", 2), Axis("tp", 2)))
LAYOUTS: dict[str, Layout] = {"w": (R, S(1)), "layers.0.w": (S(0), S(2)), "b": (S(0), R)}


def real(rank: int, folder: str, wrote: bool) -> bool:
    """A rank of a real group: writes, or reads what another mesh wrote."""
    own = Sharding(MESH, LAYOUTS, rank)
    if wrote:
        save(Path(folder), 5, parts(wholes(1), own), FACTS, own, Processes())
    loaded = load_newest(Path(folder), None, own, Processes())
    return loaded is not None and same(loaded.tensors, parts(wholes(1), own))


@pytest.mark.dist
@pytest.mark.parametrize("wrote", [True, False])
def test_real_processes_write_and_read(wrote: bool, tmp_path: Path) -> None:
    if not wrote:
        save(tmp_path, 5, wholes(1), FACTS)
    assert spawn(real, 4, str(tmp_path), wrote) == [True] * 4
    loaded = load_newest(tmp_path)
    assert loaded is not None
    assert same(loaded.tensors, wholes(1))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Steps 1 and 2 of four ranks."""

    def write(team: Team) -> None:
        own = Sharding(MESH, LAYOUTS, team.rank)
        for step in (1, 2):
            save(tmp_path, step, parts(wholes(step), own), FACTS, own, team)

    as_ranks(4, write)
    return tmp_path


def loads(root: Path) -> list[Any]:
    """The step that each of four ranks loads, and what it skipped."""

    def read(team: Team) -> Any:
        loaded = load_newest(root, None, Sharding(MESH, LAYOUTS, team.rank), team)
        assert loaded is not None
        return loaded.step, loaded.skipped

    return as_ranks(4, read)


def test_all_ranks_skip_what_one_finds_damaged(sharded: Path) -> None:
    names = sorted(p.name for p in (sharded / "step_00000002").glob("*.safetensors"))
    assert "weights.rank00003.safetensors" in names
    for name in names:
        path = sharded / "step_00000002" / name
        good = path.read_bytes()
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert loads(sharded) == [(1, {"step_00000002": f"{name} was changed"})] * 4
        path.unlink()
        assert loads(sharded) == [(1, {"step_00000002": f"{name} is missing"})] * 4
        path.write_bytes(good)
    assert loads(sharded) == [(2, {})] * 4


@pytest.mark.parametrize("change", ["drop", "twice", "move", "shape", "file"])
def test_pieces_that_are_not_the_whole_are_refused(sharded: Path, change: str) -> None:
    folder = sharded / "step_00000002"
    manifest = json.loads((folder / "manifest.json").read_text())
    tensor = manifest["tensors"]["weights"]["layers.0.w"]
    match change:
        case "drop":
            tensor["pieces"].pop()
        case "twice":
            tensor["pieces"].append(tensor["pieces"][0])
        case "move":
            tensor["pieces"][0]["begin"][0] = 1
        case "shape":
            tensor["shape"] = [10**9, 12, 16]
        case "file":
            tensor["pieces"][0]["file"] = "../step_00000001/weights.rank00000.safetensors"
    text = json.dumps(manifest)
    (folder / "manifest.json").write_text(text)
    (folder / "COMMIT").write_text(checkpoint.digest(folder / "manifest.json"))
    assert [step for step, _ in loads(sharded)] == [1] * 4


def test_a_failure_of_one_rank_is_told_by_all(sharded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = checkpoint.write_tensors

    def full(path: Path, tensors: dict[str, Tensor]) -> tuple[str, int]:
        if "rank00002" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, tensors)

    monkeypatch.setattr(checkpoint, "write_tensors", full)

    def write(team: Team) -> Any:
        own = Sharding(MESH, LAYOUTS, team.rank)
        return save(sharded, 3, parts(wholes(3), own), FACTS, own, team)

    errors = as_ranks(4, write)
    assert all(isinstance(e, SaveError) for e in errors)
    assert {str(e).split(":")[0] for e in errors} == {"rank 2"}
    assert sorted(p.name for p in sharded.iterdir()) == ["step_00000001", "step_00000002"]


def test_ranks_without_a_shared_folder_are_told_so(tmp_path: Path) -> None:
    def write(team: Team) -> Any:
        own = Sharding(MESH, LAYOUTS, team.rank)
        root = tmp_path / ("here" if team.rank < 2 else "there")
        root.mkdir(exist_ok=True)
        return save(root, 1, parts(wholes(1), own), FACTS, own, team)

    errors = as_ranks(4, write)
    assert all("all ranks need a folder that they share" in str(e) for e in errors)
    shutil.rmtree(tmp_path)


def test_a_grid_covers_and_nothing_else_does() -> None:
    grid = [Piece("f", (i, j), (2, 3)) for i in (0, 2) for j in (0, 3)]
    assert covers((4, 6), grid)
    assert covers((), [Piece("f", (), ())])
    assert covers((0, 4), [Piece("f", (0, 0), (0, 4))])
    assert not covers((4, 6), grid[:-1])
    assert not covers((4, 6), [*grid, grid[0]])
    assert not covers((4, 7), grid)
    assert not covers((4, 6), [Piece("f", (0, 0), (4, 3)), Piece("f", (0, 2), (4, 4))])
    assert not covers((4, 6), [])
    assert not covers((4, 6), [Piece("f", (0,), (4,))])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["normal", "uniform", "truncated_normal", "sincos", "ones"])
def test_a_part_is_drawn_as_it_lies_in_the_whole(kind: str, seed: int) -> None:
    draw = random.Random(seed)
    shape = draw.choice([(4, 6, 8), (8, 2, 16), (12, 24, 4), (2, 3, 4)])
    args = {"std": 0.5, "low": -1.0, "high": 2.0, "extent": 2.0}
    whole = initial("p", shape, kind, args, seed)
    region = tuple(slice(b := draw.randrange(n), draw.randrange(b + 1, n + 1)) for n in shape)
    own = initial("p", shape, kind, args, seed, region=region)
    assert own.shape == whole[region].shape
    assert own.equal(whole[region])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_pieces_are_drawn_as_the_whole(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of rows, rows together, and rows that lie too far apart for it; one thread, or several."""
    draw = random.Random(seed)
    shape = draw.choice([(4, 6, 8), (40,), (12, 24), (2, 3, 5)])
    args = {"std": 0.5, "low": -1.0, "high": 2.0}
    whole = initial("p", shape, kind, args, seed)
    region = tuple(slice(b := draw.randrange(n), draw.randrange(b, n + 1)) for n in shape)
    monkeypatch.setattr(init, "AT_ONCE", draw.choice([1, 7, 20]))
    monkeypatch.setattr(init, "GAP", draw.choice([0, 3, 100]))
    monkeypatch.setattr(torch, "get_num_threads", lambda: draw.choice([1, 3]))
    assert initial("p", shape, kind, args, seed, region=region).equal(whole[region])
