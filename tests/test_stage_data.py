"""What stages are trained on: found before anything trains, and tokenizers that go with the documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specc.runtime.api import run
from specc.runtime.errors import RunError
from specc.runtime.make import build
from tests.training import write_spec

SFT = """
  chat:
    kind: sft
    from: pretrain
    data: {{sources: [{{path: {path}}}], seq_len: 32}}
    budget: {{steps: 1}}
"""


def started(folder: Path) -> bool:
    return any(folder.glob("b.runs/pretrain-*/checkpoints/step_*"))


@pytest.mark.parametrize(
    ("text", "told"), [(None, "there is no"), ("{broken", "JSON"), ('{"text": "a"}\n', "messages")]
)
def test_what_a_later_stage_lacks_is_told_before_the_first_one_trains(
    text: str | None, told: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "chat.jsonl").write_text(text)
    path = build(write_spec(tmp_path, SFT.format(path="chat.jsonl")), tmp_path / "b").path
    with pytest.raises(RunError, match=told):
        run(path, base=tmp_path, say=lambda _: None)
    assert not started(tmp_path)


def test_a_tokenizer_of_other_documents_is_trained_anew(tmp_path: Path) -> None:
    """A first run that ends before its first step leaves a tokenizer; then the documents change."""
    spec = write_spec(tmp_path)
    texts = {p: p.read_text() for p in (tmp_path / "texts").iterdir()}
    few = sorted(texts)[0]
    for p in texts:
        p.unlink()
    few.write_text("few words")
    path = build(spec, tmp_path / "b").path
    with pytest.raises(RunError, match=r"fill a row|held out"):
        run(path, base=tmp_path, say=lambda _: None)
    (kept,) = tmp_path.glob("b.runs/*/tokenizer.json")
    before = json.loads(kept.read_text())
    for p, text in texts.items():
        p.write_text(text)
    run(path, base=tmp_path, say=lambda _: None)
    after = kept.read_text()
    assert json.loads(after) != before
    fresh = build(spec, tmp_path / "c").path
    run(fresh, base=tmp_path, say=lambda _: None)
    (clean,) = tmp_path.glob("c.runs/*/tokenizer.json")
    assert clean.read_text() == after
    (tmp_path / "texts" / "more.txt").write_text("more " * 40)
    kept.with_name("done.json").unlink()
    run(path, base=tmp_path, say=lambda _: None)
    assert kept.read_text() == after, "steps were made with it"
