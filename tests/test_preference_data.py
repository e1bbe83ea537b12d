"""Pairs of answers as rows: their formats, what is asked of them, and which are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specc.runtime.data.batches import counted
from specc.runtime.data.corpus import Document, docstring_choices, documents
from specc.runtime.data.pack import fit, shares
from specc.runtime.data.prepare import corpora, prepare
from specc.runtime.data.tokenizer import train
from specc.runtime.errors import RunError
from specc.spec.data import Source
from specc.spec.stage import StageSpec


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
NO = {"role": "assistant", "content": "no"}
WANT = Document(messages=(("user", "q"), ("assistant", "yes")), rejected=(("user", "q"), ("assistant", "no")))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        {"prompt": CHAT[:1], "chosen": CHAT[1:], "rejected": [NO]},
        {"prompt": CHAT[:1], "chosen": "yes", "rejected": "no"},
        {"chosen": CHAT, "rejected": [CHAT[0], NO]},
        {"prompt": "q", "chosen": CHAT, "rejected": [CHAT[0], NO], "score": 3},
        {"prompt": "q", "chosen": CHAT[1:], "rejected": [NO]},
        {"prompt": CHAT[:1], "chosen": CHAT, "rejected": [CHAT[0], NO]},
    ],
)
def test_formats_of_pairs(tmp_path: Path, row: dict[str, Any]) -> None:
    found = list(documents(Source(path=str(write_rows(tmp_path, [row]))), tmp_path, kind="preference"))
    assert found == [WANT]
    assert found[0].digest() != Document(messages=WANT.messages).digest()


def test_a_list_of_a_prompt_stands_before_whatever_follows_it(tmp_path: Path) -> None:
    system = {"role": "system", "content": "be brief"}
    row = {"prompt": [system], "chosen": CHAT, "rejected": [system, CHAT[0], NO]}
    (found,) = documents(Source(path=str(write_rows(tmp_path, [row]))), tmp_path, kind="preference")
    lead = ("system", "be brief")
    assert found == Document(messages=(lead, *WANT.messages), rejected=(lead, *WANT.rejected))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "q", "chosen": "yes"}, "needs 'chosen' and 'rejected'"),
        ({"chosen": "yes", "rejected": "no"}, "no 'prompt' that it answers"),
        ({"chosen": CHAT, "rejected": []}, "'rejected' is a list"),
        ({"prompt": 3, "chosen": "yes", "rejected": "no"}, "no 'prompt' that it answers"),
        ({"messages": CHAT}, "there is messages"),
    ],
)
def test_rows_that_are_no_pairs(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words):
        list(documents(Source(path=str(write_rows(tmp_path, [row]))), tmp_path, kind="preference"))


def stage(**changes: Any) -> StageSpec:
    given = {"kind": "preference", "data": {"sources": [{"path": "pairs.jsonl"}], "seq_len": 64, "validation": 0.5},
             "tokenizer": {"vocab": 300}, "budget": {"steps": 1}, **changes}  # fmt: skip
    return StageSpec.model_validate(given)


def prepared(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> Any:
    write_rows(folder, rows)
    spec = stage(**changes)
    tokenizer = train([], 300)
    return spec, prepare(spec, corpora(spec, folder), tokenizer, folder / "tokens"), tokenizer


def test_labels_are_the_tokens_behind_the_shared_turns(tmp_path: Path) -> None:
    """Of two rounds, the first is shared: its answer is context."""
    begun = [*CHAT, {"role": "user", "content": "and?"}]
    rows = [{"prompt": begun, "chosen": f"w{i}", "rejected": f"lose{i}"} for i in range(8)]
    _, data, tokenizer = prepared(tmp_path, rows, data={"sources": [{"path": "pairs.jsonl"}], "seq_len": 160,
                                                        "validation": 0.5})  # fmt: skip
    made = data.train.parts[0].make(np.array([0]), np.array([0]))
    for side, begins in ((0, "w"), (1, "lose")):
        here = (made["doc"][0] == side) & (made["labels"][0] != -100)
        text = tokenizer.decode(made["labels"][0][here].tolist(), skip_special_tokens=False)
        assert text.startswith(begins)
        assert text.endswith("<|im_end|>")
        assert made["pos"][0][made["doc"][0] == side].tolist() == list(range(int((made["doc"][0] == side).sum())))


@pytest.mark.parametrize(("long", "word", "rows"), [("drop", "left out", 0), ("cut", "cut", 4)])
def test_pairs_that_do_not_fit_are_told(tmp_path: Path, long: str, word: str, rows: int) -> None:
    short = [{"prompt": f"q{i}", "chosen": "y", "rejected": "n"} for i in range(4)]
    many = [{"prompt": f"p{i}", "chosen": "a" * 99, "rejected": "b" * 20} for i in range(4)]
    same = [{"prompt": f"s{i}", "chosen": "y", "rejected": "y"} for i in range(2)]
    own = [{"path": "held.jsonl"}]
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": "h", "chosen": "y", "rejected": "n"}) + "\n")
    data = {"sources": [{"path": "pairs.jsonl"}], "seq_len": 128, "held_out": own}
    _, found, _ = prepared(tmp_path, [*short, *many, *same], data=data, preference={"long": long})
    assert len(found.train) == 4 + rows
    assert found.notes == (
        f"4 of 10 pairs are longer than 128 tokens and are {word}",
        "2 of 10 pairs are the same answer twice and are left out",
    )
    for row in range(len(found.train)):
        made = found.train.parts[0].make(np.array([row]), np.array([row]))
        assert {d for d in made["doc"][0][made["labels"][0] != -100]} == {0, 1}


def test_pairs_that_lost_both_answers_are_not_called_the_same(tmp_path: Path) -> None:
    """Cut within the prompt that they share, the two sides are one text."""
    asks = [{"prompt": f"{'p' * 200}{i}", "chosen": "a", "rejected": "b"} for i in range(2)]
    short = [{"prompt": f"q{i}", "chosen": "y", "rejected": "n"} for i in range(2)]
    (tmp_path / "held.jsonl").write_text(json.dumps({"prompt": "h", "chosen": "y", "rejected": "n"}) + "\n")
    data = {"sources": [{"path": "pairs.jsonl"}], "seq_len": 128, "held_out": [{"path": "held.jsonl"}]}
    _, found, _ = prepared(tmp_path, [*short, *asks], data=data, preference={"long": "cut"})
    assert found.notes == (
        "2 of 4 pairs are longer than 128 tokens and are cut",
        "2 of 4 pairs are without an answer on one side and are left out",
    )


def test_held_out_pairs_that_do_not_fit_are_told(tmp_path: Path) -> None:
    short = [{"prompt": f"q{i}", "chosen": "y", "rejected": "n"} for i in range(2)]
    held = [{"prompt": "h", "chosen": "a" * 200, "rejected": "n"}, {"prompt": "h", "chosen": "y", "rejected": "n"}]
    data = {"sources": [{"path": "pairs.jsonl"}], "seq_len": 128, "held_out": [{"path": "held.jsonl"}]}
    for left in (held, held[:1]):
        (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in left))
        why = f"1 of {len(left)} pairs are longer than 128 tokens and are left out"
        if left is held:
            _, found, _ = prepared(tmp_path, short, data=data)
            assert found.notes == (f"held out: {why}",)
        else:
            with pytest.raises(RunError, match=f"held out give nothing to validate on: {why}"):
                prepared(tmp_path, short, data=data)


def test_rows_hold_as_many_pairs_as_asked_for() -> None:
    assert sorted(map(len, fit([10, 10, 10, 10, 30], 64, most=2))) == [1, 2, 2]
    assert sorted(map(len, fit([10, 10, 10, 10, 30], 64, most=1))) == [1] * 5


def test_cut_pairs_share_a_row() -> None:
    found = shares(np.array([[10, 20], [100, 20], [20, 100], [90, 80]]), 64)
    assert found.tolist() == [[10, 20], [44, 20], [20, 44], [32, 32]]


def test_pairs_are_counted_by_row() -> None:
    doc = np.array([[0, 0, 1, 1, 2, 2, 3, 3, -1], [0, 0, 0, 1, 1, 1, -1, -1, -1]])
    labels = np.where(doc >= 0, 5, -100)
    assert counted({"labels": labels, "doc": doc}, stage(preference={"pairs": 2})) == 3
    labels[1] = -100
    assert counted({"labels": labels, "doc": doc}, stage(preference={"pairs": 2})) == 2


def test_docstring_pairs_prefer_the_own_body() -> None:
    text = "".join(
        f'def f{i}(x):\n    """Return x and the number {i}, always."""\n    return x, {i}\n' for i in range(3)
    )
    found = list(docstring_choices(text))
    assert [d.messages[-1][1].strip() for d in found] == [f"return x, {i}" for i in range(3)]
    assert [d.rejected[-1][1].strip() for d in found] == [f"return x, {i}" for i in (1, 2, 0)]
    assert all(d.messages[:-1] == d.rejected[:-1] for d in found)
