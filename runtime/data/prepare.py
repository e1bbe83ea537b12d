"""From a stage's sources to its rows: read, hold out, tokenise into stores, and lay out by the objective."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from specc.runtime.data.batches import Mixture, joined
from specc.runtime.data.chat import Coder, coder, conversation
from specc.runtime.data.corpus import CHATS, PAIRS, Corpus, Document
from specc.runtime.data.objectives import Rows, rows_of
from specc.runtime.data.store import Piece, Store, stored
from specc.runtime.data.tokenizer import end_id, literal
from specc.runtime.errors import RunError
from specc.spec.stage import StageSpec

VERSION = 1  # of what a store holds; part of its key
AT_ONCE = 256  # documents that are tokenised together


@dataclass(frozen=True)
class Prepared:
    """A stage's rows for training and validation, and what a person should know of them."""

    train: Mixture
    validation: Rows
    notes: tuple[str, ...] = ()
    documents: str = ""  # SHA-256 over those of all sources
    classes: tuple[str, ...] = ()  # names of pictures' classes


def corpora(stage: StageSpec, base: Path) -> list[Corpus]:
    """The stage's sources, and those for validation alone; relative paths start at `base`."""
    return [Corpus(source, base, share, stage.data.limit, stage.kind) for source, share in stage.data.shares]


class Texts(Protocol):
    """What a tokenizer is trained on: documents, or the captions of pictures."""

    share: float

    def __iter__(self) -> Iterator[Document]: ...

    def digest(self) -> str: ...


def first_texts(sources: Sequence[Texts], n: int) -> Iterator[str]:
    """The first documents of all sources, as many of each, for a tokenizer to be trained on."""
    read = [source for source in sources if source.share < 1]
    each = -(-n // len(read))
    return islice((d.content for source in read for d in islice(source, each)), n)


def prepare(stage: StageSpec, sources: list[Corpus], tokenizer: Tokenizer, cache: Path) -> Prepared:
    """Rows of all sources; validation documents are held out by their content. Token stores are kept below `cache`."""
    train: list[tuple[Rows, float]] = []
    held: list[tuple[Rows, float]] = []
    lost: list[str] = []  # what is said of documents that are held out
    for source in sources:
        digest, weight = source.digest(), source.source.weight
        made, kept = (
            rows_of(stage, _store(stage, source, digest, tokenizer, cache, is_held), tokenizer, site)
            for site, is_held in (("train", False), ("validation", True))
        )
        if source.share < 1 and not len(made):
            why = "; ".join(made.notes) or f"they do not fill a row of {stage.data.seq_len} tokens"
            raise RunError(f"the documents of {source.name} give nothing to train on: {why}")
        train += [(made, weight)] if source.share < 1 else []
        held += [(kept, weight)] if len(kept) else []
        lost += kept.notes
    known = {source.digest(): source.name for source in sources if source.share < 1}
    if both := [known[d] for d in (s.digest() for s in sources if s.share == 1) if d in known]:
        raise RunError(f"{both[0]} is trained on, and stands in data.held_out")
    if not held:
        raise RunError(_nothing_held(stage, sources, "; ".join(lost)))
    notes = (*(note for rows, _ in train for note in rows.notes), *(f"held out: {note}" for note in lost))
    documents = hashlib.sha256(" ".join(source.digest() for source in sources).encode()).hexdigest()
    rows, validation = tuple(r for r, _ in train), joined([r for r, _ in held], [w for _, w in held])
    return Prepared(Mixture(rows, tuple(w for _, w in train)), validation, notes, documents)


def _nothing_held(stage: StageSpec, sources: list[Corpus], lost: str) -> str:
    """Why there is no row for validation; of conversations it is what they `lost`."""
    if lost:
        return f"the documents held out give nothing to validate on: {lost}"
    if stage.data.held_out:
        return f"the documents of data.held_out do not fill a row of {stage.data.seq_len} tokens"
    share = stage.data.validation
    held = [d.held_out(share) for source in sources for d in source]
    if len(held) == 1 and not any(held):
        return "the only document is trained on, so none is held out: split it into files, or into rows of JSON Lines"
    if not any(held):
        return (
            f"none of the {len(held)} documents was held out (data.validation: {share:g}); "
            "set a larger data.validation, or give more documents"
        )
    return (
        f"the documents held out (data.validation: {share:g}) do not fill a row of {stage.data.seq_len} tokens; "
        "hold out more, or lower data.seq_len"
    )


def _store(stage: StageSpec, source: Corpus, digest: str, tokenizer: Tokenizer, cache: Path, held: bool) -> Store:
    """The tokens of the source's documents for validation or training."""
    chat = [stage.template, stage.sft.answers if stage.kind == "sft" else "pairs"] if stage.has_chats else None
    made_of = [VERSION, tokenizer.to_str(), chat, digest, source.share, held]
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    return stored(cache, key, lambda: _pieces(stage, source.part(held), tokenizer))


def _pieces(stage: StageSpec, docs: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Piece]:
    """Tokens of each document: a conversation by its template (of a pair each, the better one first), or a text and an
    end token."""
    if stage.kind == "preference":
        yield from _sides(stage.template, docs, coder(tokenizer))
        return
    if stage.kind == "sft":
        by = coder(tokenizer)
        for d in docs:
            if not d.messages:
                raise RunError(CHATS)
            messages = [{"role": r, "content": c} for r, c in d.messages]
            yield conversation(stage.template, messages, by, stage.sft.answers)
        return
    plain, end = literal(tokenizer), end_id(tokenizer)
    rest = iter(docs)
    while group := [d.content for d in islice(rest, AT_ONCE)]:
        for e in plain.encode_batch(group, add_special_tokens=False):
            if e.ids:
                yield [*e.ids, end], [False] * (len(e.ids) + 1)


def _sides(template: str, docs: Iterable[Document], by: Coder) -> Iterator[Piece]:
    """Both conversations of each pair; asked for is what the assistant says behind the messages that they share."""
    for d in docs:
        if not d.rejected:
            raise RunError(PAIRS)
        shared = sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(d.messages, d.rejected, strict=False)))
        for side in (d.messages, d.rejected):
            yield conversation(template, [{"role": r, "content": c} for r, c in side], by, since=shared)
