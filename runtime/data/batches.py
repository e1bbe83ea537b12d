"""The batch of a step as a pure function of (seed, step): resuming is starting at a step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2
import jinja2.sandbox
import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data.corpus import Document, documents
from specc.runtime.data.pack import Rows, pack, pack_samples
from specc.runtime.data.tokenizer import END, EOS, PAD, special
from specc.runtime.errors import RunError
from specc.spec.stage import StageSpec

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Prepared:
    """A stage's rows for training and validation."""

    train: Rows
    validation: Rows


def stage_documents(stage: StageSpec, base: Path) -> list[Document]:
    found = [d for source in stage.data.sources for d in documents(source, base)]
    return found[: stage.data.limit] if stage.data.limit else found


def prepare(stage: StageSpec, docs: list[Document], tokenizer: Tokenizer) -> Prepared:
    """Tokenise and pack; the validation documents are held out by their content."""
    held = [d for d in docs if d.held_out(stage.data.validation)]
    rest = [d for d in docs if not d.held_out(stage.data.validation)]
    rows = _sft_rows if stage.kind == "sft" else _text_rows
    made = Prepared(rows(stage, rest, tokenizer), rows(stage, held, tokenizer))
    if not len(made.train) or not len(made.validation):
        raise RunError(
            f"{len(docs)} documents do not fill a row of {stage.data.seq_len} tokens for training and validation"
        )
    return made


def _text_rows(stage: StageSpec, docs: list[Document], tokenizer: Tokenizer) -> Rows:
    encoded = tokenizer.encode_batch([d.text for d in docs], add_special_tokens=False)
    return pack((e.ids for e in encoded), stage.data.seq_len, special(tokenizer, EOS))


def render(template: str, messages: list[dict[str, str]], ask: bool = False) -> str:
    """A conversation as text by its jinja2 template; with `ask` the answer's head follows."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(keep_trailing_newline=True)
    try:
        return str(environment.from_string(template).render(messages=messages, add_generation_prompt=ask))
    except jinja2.TemplateError as e:
        raise RunError(f"the chat template fails: {e}") from None


def _sft_rows(stage: StageSpec, docs: list[Document], tokenizer: Tokenizer) -> Rows:
    samples: list[tuple[list[int], list[bool]]] = []
    for d in docs:
        if not d.messages:
            raise RunError("an sft stage needs messages, or prompt and response")
        samples.append(_sample(stage.template, d, tokenizer))
    return pack_samples(samples, stage.data.seq_len, special(tokenizer, PAD))


def _sample(template: str, d: Document, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """Tokens, and which belong to an answer: what the assistant's turns add to the text, to their end token."""
    messages = [{"role": r, "content": c} for r, c in d.messages]
    ids: list[int] = []
    answers: list[bool] = []
    before = ""
    for i, message in enumerate(messages):
        text = render(template, messages[: i + 1])
        head = text[len(before) :].split(message["content"], 1)[0]
        for part, is_answer in ((head, False), (text[len(before) + len(head) :], message["role"] == "assistant")):
            tokens = tokenizer.encode(part, add_special_tokens=False).ids
            ids += tokens
            answers += [is_answer] * len(tokens)
        before = text
    return ids, answers


def order(n: int, epoch: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The order of an epoch's rows."""
    return np.random.Generator(np.random.Philox(key=(seed << 32) + epoch)).permutation(n)


def step_rows(n: int, step: int, size: int, seed: int) -> list[int]:
    """The rows of a step: entries step*size, ... of the endless sequence of epochs."""
    orders: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
    rows: list[int] = []
    for i in range(step * size, (step + 1) * size):
        epoch, at = divmod(i, n)
        if epoch not in orders:
            orders[epoch] = order(n, epoch, seed)
        rows.append(int(orders[epoch][at]))
    return rows


def batch(rows: Rows, chosen: list[int], fields: set[str]) -> Batch:
    """The fields that the model takes, [B, S]."""
    have = {"tokens": rows.tokens, "labels": rows.labels, "doc": rows.doc, "pos": rows.pos}
    have["part"] = np.ones_like(rows.doc)
    strange = fields - set(have)
    if strange:
        raise RunError(f"the data has no field for the model's input '{sorted(strange)[0]}' (it has {', '.join(have)})")
    return {name: torch.from_numpy(np.ascontiguousarray(have[name][chosen])) for name in fields}


def microbatches(rows: Rows, stage: StageSpec, step: int, fields: set[str]) -> tuple[list[Batch], list[float]]:
    """The microbatches of a step, and each one's share of the step's labels."""
    chosen = step_rows(len(rows), step, stage.batch.sequences, stage.seed)
    size = stage.batch.microbatch or stage.batch.sequences
    parts = [chosen[i : i + size] for i in range(0, len(chosen), size)]
    counts = [int((rows.labels[p] != IGNORE).sum()) for p in parts]
    total = max(1, sum(counts))
    return [batch(rows, p, fields) for p in parts], [c / total for c in counts]


def unigram_entropy(rows: Rows) -> float:
    """Entropy of the tokens' frequencies in nats: the loss of a model that knows nothing but frequencies."""
    labels = rows.labels[rows.labels != IGNORE]
    p = np.bincount(labels).astype(np.float64)
    p = p[p > 0] / p.sum()
    return float(-(p * np.log(p)).sum())


__all__ = ["END", "Batch", "Prepared", "batch", "microbatches", "prepare", "stage_documents", "unigram_entropy"]
