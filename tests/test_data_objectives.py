"""What the objectives make of a text: nothing is lost, everything asked for is there, and only the sample decides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.data.blanks import Marks, blank, infill
from specc.runtime.data.masked import hide
from specc.runtime.data.noise import Ints, generator, uniforms
from specc.runtime.data.objectives import rows_of
from specc.runtime.data.spans import corrupt, pieces
from specc.runtime.data.store import Store, stored
from specc.spec.data import DataSpec, Source
from specc.spec.objective import BlankInfilling, MaskedLM, SpanCorruption
from specc.spec.stage import Budget, StageSpec

MARKS = Marks(mask=1000, long_mask=1001, start=1002, end=1003, pad=1004)
SENTINEL, END, SEED = 2000, 3000, 7
quick = settings(max_examples=60, deadline=None)


def text(n: int, sample: int, rows: int = 1) -> Ints:
    return generator(1, "order", sample).integers(0, 900, (rows, n))


@quick
@given(st.integers(4, 200), st.floats(0.02, 0.9), st.floats(0, 1), st.integers(0, 99))
def test_exactly_the_asked_share_of_ordinary_tokens_is_hidden(n: int, rate: float, masked: float, sample: int) -> None:
    spec = MaskedLM(rate=rate, masked=masked, random=(1 - masked) / 2)
    words = np.arange(10, 900)
    given_text = text(n, sample, rows=3)
    tokens, labels = hide(given_text, spec, words, 1000, uniforms(SEED, "train", np.arange(3), (3, n)))
    asked, ordinary = labels != IGNORE, given_text >= 10
    assert (labels[asked] == given_text[asked]).all()
    assert not (asked & ~ordinary).any()
    assert (tokens[~asked] == given_text[~asked]).all()
    assert (np.isin(tokens, words) | (tokens == 1000) | ~ordinary).all()
    expected = np.minimum(np.maximum(np.rint(rate * ordinary.sum(1)), 1), ordinary.sum(1))
    assert (asked.sum(1) == expected).all()


def test_of_the_asked_tokens_80_are_masked_10_are_random_10_stay() -> None:
    """Binomial: 5 standard deviations of 38,400 draws are 0.8 to 1.1 %."""
    words = np.arange(900)
    given_text = text(512, 3, rows=500)
    drawn = uniforms(SEED, "train", np.arange(500), (3, 512))
    tokens, labels = hide(given_text, MaskedLM(), words, 1000, drawn)
    asked = labels != IGNORE
    assert asked.mean() == pytest.approx(0.15, abs=0.001)
    was, now = given_text[asked], tokens[asked]
    assert (now == 1000).mean() == pytest.approx(0.8, abs=0.011)
    assert ((now != 1000) & (now != was)).mean() == pytest.approx(0.1 * 899 / 900, abs=0.008)
    assert (now == was).mean() == pytest.approx(0.1 + 0.1 / 900, abs=0.008)


def put_back(seen: list[int], asked: list[int]) -> list[int]:
    """The text that encoder and decoder of span corruption give together."""
    spans: dict[int, list[int]] = {}
    for token in asked[:-1]:
        if SENTINEL <= token < END:
            spans[token] = []
        else:
            spans[max(spans)].append(token)
    return [t for token in seen[:-1] for t in spans.get(token, [token])]


@quick
@given(st.integers(2, 300), st.floats(0.02, 0.85), st.floats(1, 12), st.integers(0, 1 << 40))
def test_span_corruption_can_be_undone_and_has_exact_counts(n: int, density: float, mean: float, sample: int) -> None:
    spec = SpanCorruption(density=density, mean_span=mean)
    noise, spans = spec.spans(n)
    given_text, marks = text(n, 5, rows=2), SENTINEL + np.arange(spans)
    drawn = uniforms(SEED, "train", np.array([sample, sample + 1]), (n,))
    seen, asked = corrupt(given_text, noise, marks, END, drawn)
    assert (seen.shape[1], asked.shape[1]) == spec.lengths(n)
    for row in range(2):
        assert put_back(seen[row].tolist(), asked[row].tolist()) == given_text[row].tolist()
        assert [t for t in seen[row] if SENTINEL <= t < END] == marks.tolist()
        assert seen[row, -1] == asked[row, -1] == END
        assert seen[row, 0] == given_text[row, 0]


def test_all_ways_to_cut_are_equally_likely() -> None:
    """5 into 3 parts: six ways; 6,000 draws, 5 standard deviations are 144."""
    cut = pieces(5, 3, uniforms(SEED, "train", np.arange(6000), (5,)))
    assert (cut.sum(1) == 5).all()
    assert cut.min() == 1
    counts = np.unique(cut, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 144


def fill_in(made: dict[str, Ints]) -> list[int]:
    """The text that parts A and B of blank infilling give together; checks positions and labels on the way."""
    real = made["doc"] == 0
    a = [int(t) for t in made["tokens"][(made["part"] == 0) & real]]
    in_b = np.flatnonzero((made["part"] == 1) & real)
    starts = [int(i) for i in in_b if made["tokens"][i] == MARKS.start]
    spans: dict[int, list[int]] = {}
    for s, e in zip(starts, [*starts[1:], int(in_b[-1]) + 1], strict=True):
        span, labels = made["tokens"][s + 1 : e].tolist(), made["labels"][s:e].tolist()
        assert labels == [*span, MARKS.end]
        assert made["block_pos"][s:e].tolist() == list(range(1, e - s + 1))
        assert len(set(made["pos"][s:e].tolist())) == 1
        spans[int(made["pos"][s])] = span
    n = len(a)
    assert made["pos"][:n].tolist() == list(range(n))
    assert not made["block_pos"][:n].any()
    assert (made["labels"][:n] == IGNORE).all()
    assert (made["labels"][~real] == IGNORE).all()
    assert [i for i, t in enumerate(a) if t in (MARKS.mask, MARKS.long_mask)] == sorted(spans)
    return [t for i, token in enumerate(a) for t in spans.get(i, [token])]


@quick
@given(st.integers(8, 200), st.floats(0.02, 0.85), st.floats(1, 8), st.floats(0, 1), st.integers(0, 1 << 40))
def test_blank_infilling_can_be_undone(seq_len: int, density: float, mean: float, long: float, sample: int) -> None:
    spec = BlankInfilling(density=density, mean_span=mean, document=long)
    n = spec.piece(seq_len)
    given_text = text(n, 5)[0]
    made = blank(given_text, spec, MARKS, seq_len, generator(SEED, "train", sample))
    assert {len(v) for v in made.values()} == {seq_len}
    assert fill_in(made) == given_text.tolist()
    hidden = n - int(((made["part"] == 0) & (made["tokens"] < 900)).sum())
    if MARKS.long_mask in made["tokens"]:
        assert hidden >= spec.document_span * n
    else:
        assert hidden == spec.hidden(n)


def test_spans_are_written_in_any_order() -> None:
    spec, given_text = BlankInfilling(density=0.3), text(100, 5)[0]
    firsts = []
    for sample in range(50):
        made = blank(given_text, spec, MARKS, 160, generator(SEED, "train", sample))
        order = made["pos"][made["tokens"] == MARKS.start]
        firsts.append(bool(order[0] < order[1]))
    assert 10 < sum(firsts) < 40


def test_the_official_example_of_blank_infilling() -> None:
    """Spans [13] and [15 16] of 11..16, the second first (arXiv:2103.10360 fig. 2; THUDM/GLM blocklm_utils.py)."""
    made = infill(np.arange(11, 17), [(4, 6), (2, 3)], MARKS, MARKS.mask, 10)
    assert made["tokens"].tolist() == [11, 12, 1000, 14, 1000, 1002, 15, 16, 1002, 13]
    assert made["labels"].tolist() == [*[IGNORE] * 5, 15, 16, 1003, 13, 1003]
    assert made["pos"].tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 2, 2]
    assert made["block_pos"].tolist() == [0] * 5 + [1, 2, 3, 1, 2]
    assert made["part"].tolist() == [0] * 5 + [1] * 5


def stage(objective: str, seq_len: int = 32) -> StageSpec:
    return StageSpec.model_validate(
        {
            "objective": objective,
            "data": DataSpec(sources=[Source(path="x")], seq_len=seq_len),
            "budget": Budget(steps=1),
        }
    )


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    made = tokenizers.train(["the cat sat on the mat and ran home then"] * 3, 300)
    tokenizers.complete(made, tokenizers.needed(stage("span_corruption")))
    return made


@pytest.fixture(scope="module")
def store(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Store:
    words = np.asarray(tokenizers.words(small))
    docs = [words[generator(2, "order", i).integers(0, len(words), 20 + 7 * (i % 9))].tolist() for i in range(40)]
    end = tokenizers.special(small, tokenizers.EOS)
    path: Path = tmp_path_factory.mktemp("store")
    return stored(path, "key", lambda: [([*d, end], [False] * (len(d) + 1)) for d in docs])


@pytest.mark.parametrize("objective", ["causal_lm", "masked_lm", "span_corruption", "blank_infilling"])
def test_a_row_is_a_function_of_its_sample_alone(objective: str, store: Store, small: Tokenizer) -> None:
    """Any batch, any order: the same row for the same sample; another row for another (but for causal_lm)."""
    rows = rows_of(stage(objective), store, small, "train")
    at, samples = np.array([5, 1, 3, 5]), np.array([900, 17, 4, 901])
    whole = rows.make(at, samples)
    for i in (3, 0, 2, 1):
        alone = rows.make(at[i : i + 1], samples[i : i + 1])
        assert all((alone[name][0] == values[i]).all() for name, values in whole.items())
    same = all((v[0] == v[3]).all() for v in whole.values())
    assert same == (objective == "causal_lm")


def test_padding_of_span_corruption_is_told_and_asks_for_nothing(store: Store, small: Tokenizer) -> None:
    made = rows_of(stage("span_corruption", 33), store, small, "train").make(np.arange(4), np.arange(4))
    pad = tokenizers.special(small, tokenizers.PAD)
    assert (made["tokens"][:, 0] == pad).all()
    assert (made["labels"][made["doc"] == -1] == IGNORE).all()
    shifted = made["labels"][:, :-1]
    real = made["doc"][:, 1:] == 0
    assert (made["tokens"][:, 1:][real] == shifted[real]).all()
    assert ((made["enc_tokens"] == pad) == (made["enc_doc"] == -1)).all()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"objective": "masked_lm", "masked_lm": {"masked": 0.9, "random": 0.2}}, "at most 1"),
        ({"objective": "causal_lm", "masked_lm": {"rate": 0.3}}, "no effect"),
        ({"objective": "span_corruption", "span_corruption": {"target_len": 4}}, "at least 58"),
        ({"objective": "blank_infilling", "data": {"sources": [{"path": "x"}], "seq_len": 4}}, "at least 8"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(section: dict[str, object], message: str) -> None:
    given_section = {"data": {"sources": [{"path": "x"}]}, "budget": {"steps": 1}, **section}
    with pytest.raises(ValueError, match=message):
        StageSpec.model_validate(given_section)
