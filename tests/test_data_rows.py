"""Packing, mixing, stores and prefetch: no token is lost, no label crosses documents, any place can be resumed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data.batches import Mixture, joined
from specc.runtime.data.mixture import BLOCK, place, quotas, rows_at
from specc.runtime.data.noise import Ints
from specc.runtime.data.objectives import Rows
from specc.runtime.data.pack import fit, packed, stream
from specc.runtime.data.prefetch import Prefetch
from specc.runtime.data.store import Piece, Store, read, stored

quick = settings(max_examples=60, deadline=None)
documents = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=40), min_size=1, max_size=20)


def held(docs: list[list[int]]) -> Store:
    """Documents as a store in memory; every third token belongs to an answer."""
    tokens = np.array([t for d in docs for t in d], dtype=np.uint32)
    answers = np.array([i % 3 == 0 for d in docs for i in range(len(d))], dtype=np.uint8)
    return Store(tokens, answers, np.cumsum([0, *map(len, docs)]))


@quick
@given(documents, st.integers(2, 30))
def test_cut_rows_keep_all_tokens_and_labels_stay_in_their_document(docs: list[list[int]], seq_len: int) -> None:
    store = held(docs)
    n = len(store.tokens) // seq_len
    if not n:
        return
    made = stream(store, np.arange(n), seq_len)
    flat = [(d, i) for d, doc in enumerate(docs) for i in range(len(doc))]
    for at, (token, label) in enumerate(zip(made["tokens"].flat, made["labels"].flat, strict=True)):
        d, i = flat[at]
        assert token == docs[d][i]
        assert label == (docs[d][i + 1] if i + 1 < len(docs[d]) else IGNORE)
    check_positions(made["doc"], made["pos"])


def check_positions(doc: Ints, pos: Ints) -> None:
    for docs, positions in zip(doc, pos, strict=True):
        for t in range(len(docs)):
            fresh = t == 0 or docs[t] != docs[t - 1]
            assert positions[t] == (0 if fresh else positions[t - 1] + 1)


@quick
@given(documents, st.integers(2, 30))
def test_packed_rows_keep_each_sample_whole_and_ask_for_answers_alone(docs: list[list[int]], seq_len: int) -> None:
    members = fit([len(d) for d in docs], seq_len)
    assert sorted(i for row in members for i in row) == list(range(len(docs)))
    made = packed(held(docs), members, seq_len, pad=0)
    for r, row in enumerate(members):
        for number, i in enumerate(row):
            here = np.flatnonzero(made["doc"][r] == number)
            kept = docs[i][:seq_len]
            assert made["tokens"][r, here].tolist() == kept
            asked = [kept[t + 1] if t + 1 < len(kept) and (t + 1) % 3 == 0 else IGNORE for t in range(len(kept))]
            assert made["labels"][r, here].tolist() == asked
    assert (made["labels"][made["doc"] == -1] == IGNORE).all()
    check_positions(made["doc"], made["pos"])


@quick
@given(st.lists(st.integers(1, 64), min_size=1, max_size=300), st.integers(16, 64))
def test_packing_wastes_little(lengths: list[int], seq_len: int) -> None:
    """No two rows fit into one, so there are less than twice the fewest."""
    full = sorted(sum(min(lengths[i], seq_len) for i in row) for row in fit(lengths, seq_len))
    assert full[-1] <= seq_len
    assert len(full) == 1 or full[0] + full[1] > seq_len


@quick
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 20_000), st.integers(0, 99))
def test_sources_come_by_weight_and_their_samples_in_turn(weights: list[float], start: int, seed: int) -> None:
    """A sample's place does not depend on where the reading began; every source counts up without a gap."""
    w = tuple(weights)
    whole = place(np.arange(start + 50), w, seed)
    part = place(np.arange(start, start + 50), w, seed)
    assert all((a[start:] == b).all() for a, b in zip(whole, part, strict=True))
    for s in range(len(w)):
        assert (whole[1][whole[0] == s] == np.arange((whole[0] == s).sum())).all()
    if len(w) > 1:
        assert sum(quotas(w)) == BLOCK
        share = np.array(w) / sum(w)
        assert abs(np.array(quotas(w)) / BLOCK - share).max() <= (len(w) + 1) / BLOCK


@quick
@given(st.integers(1, 50), st.integers(0, 99), st.integers(0, 5))
def test_an_epoch_has_every_row_once(n: int, seed: int, epoch: int) -> None:
    rows = rows_at(n, np.arange(epoch * n, (epoch + 1) * n), seed, 0)
    assert sorted(rows.tolist()) == list(range(n))


def numbered(n: int, base: int) -> Rows:
    """Rows that tell which row and sample they are."""
    return Rows(n, lambda rows, samples: {"tokens": np.stack([base + rows, samples], axis=1)})


def test_a_mixture_gives_the_same_samples_from_any_step() -> None:
    mixture = Mixture((numbered(7, 0), numbered(30, 1000), numbered(3, 2000)), (1.0, 2.0, 0.5))
    whole = mixture.fields(np.arange(6000), 5)["tokens"]
    for begin in (0, 1, 999, 4090, 5990):
        assert (mixture.fields(np.arange(begin, begin + 10), 5)["tokens"] == whole[begin : begin + 10]).all()
    assert (whole[:, 1] == np.arange(6000)).all()
    assert (mixture.fields(np.arange(6000), 6)["tokens"] != whole).any()
    shares = np.bincount(whole[:BLOCK, 0] // 1000) / BLOCK
    assert abs(shares - np.array([2, 4, 1]) / 7).max() < 0.001


def test_validation_has_every_row_once_and_all_sources_from_the_start() -> None:
    rows = joined([numbered(10, 0), numbered(100, 1000)], [1.0, 1.0])
    found = rows.make(np.arange(110), np.arange(110))["tokens"][:, 0]
    assert sorted(found.tolist()) == [*range(10), *range(1000, 1100)]
    assert (found[:10] >= 1000).sum() == 5


PIECES: list[Piece] = [([1, 2, 3], [False, True, True]), ([4], [False]), ([5, 70_000], [True, False])]


def test_a_store_is_made_once_and_gives_back_what_was_put_in(tmp_path: Path) -> None:
    made = stored(tmp_path, "k", lambda: PIECES)
    assert made.tokens.tolist() == [1, 2, 3, 4, 5, 70_000]
    assert made.starts.tolist() == [0, 3, 4, 6]
    assert made.answers.tolist() == [0, 1, 1, 0, 1, 0]
    assert isinstance(made.tokens, np.memmap)
    again = stored(tmp_path, "k", lambda: pytest.fail("it is there"))
    assert again.tokens.tolist() == made.tokens.tolist()
    assert len(stored(tmp_path, "empty", list)) == 0


@pytest.mark.parametrize("name", ["tokens", "answers", "starts", "facts.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_store_is_found_and_made_anew(name: str, damage: str, tmp_path: Path) -> None:
    stored(tmp_path, "k", lambda: PIECES)
    file = tmp_path / "k" / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(raw if damage == "flip" else raw[:-1] if name != "facts.json" else raw[:-3])
    assert read(tmp_path / "k") is None
    assert stored(tmp_path, "k", lambda: PIECES).tokens.tolist() == [1, 2, 3, 4, 5, 70_000]
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_a_store_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Iterator[Piece]:
        yield PIECES[0]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        stored(tmp_path, "k", failing)
    assert not list(tmp_path.iterdir())


def test_stores_made_at_the_same_time_agree(tmp_path: Path) -> None:
    gate, found = threading.Barrier(4), list[list[int]]()

    def make() -> Iterator[Piece]:
        gate.wait(10)  # all four are writing before any is done
        yield from PIECES

    def work() -> None:
        found.append(stored(tmp_path, "k", make).tokens.tolist())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
    assert found == [[1, 2, 3, 4, 5, 70_000]] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_prefetch_keeps_the_order_and_runs_little_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    with Prefetch(make, 3, 50, depth=2) as ready:
        for step in range(3, 40):
            assert ready.take(step) == step
            assert len(made) <= step - 3 + 3
    assert made == list(range(3, 3 + len(made)))
    assert len(made) < 42
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]


def test_prefetch_raises_what_its_step_raised() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise OSError("the disk is gone")
        return step

    with Prefetch(make, 0, 9) as ready:
        assert [ready.take(0), ready.take(1)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone") as caught:
            ready.take(2)
    assert "make" in [entry.name for entry in caught.traceback]
    assert not [t for t in threading.enumerate() if t.name.startswith("prefetch")]
