"""Tokenizers: a byte-level BPE trained on the stage's documents, or a tokenizer.json; and their special tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from specc.runtime.errors import RunError
from specc.spec.stage import CHATML, StageSpec

PAD, EOS, START, END, MASK = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "[MASK]"
LONG_MASK, PIECE, PIECE_END = "[gMASK]", "<|startofpiece|>", "<|endofpiece|>"
ENDS = (EOS, "</s>", "<|end_of_text|>", "<eos>")  # what ends a text, in ours and in published tokenizers
SPECIAL = (PAD, EOS, START, END, MASK, LONG_MASK, PIECE, PIECE_END)


def sentinels(n: int) -> list[str]:
    """Names of the tokens that stand for T5's spans."""
    return [f"<extra_id_{i}>" for i in range(n)]


def needed(stage: StageSpec) -> list[str]:
    """The special tokens that a stage's data are made with. Rows of chats are filled up with what ends a text, if there
    is no token for that: nothing sees it."""
    found = [EOS]
    if stage.objective in ("span_corruption", "blank_infilling"):
        found += [PAD]
    if stage.has_chats and stage.template == CHATML:
        found += [START, END]
    if stage.objective == "masked_lm":
        found += [MASK]
    if stage.objective == "span_corruption":
        found += sentinels(stage.span_corruption.spans(stage.span_corruption.piece(stage.data.seq_len))[1])
    if stage.objective == "blank_infilling":
        found += [MASK, LONG_MASK, PIECE, PIECE_END]
    return found


def train(texts: Iterable[str], vocab: int, extra: Iterable[str] = ()) -> Tokenizer:
    """Byte-level BPE with the special tokens first; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [*SPECIAL, *(t for t in extra if t not in SPECIAL)]
    if vocab < len(special) + 256:
        raise RunError(f"a vocabulary of {vocab} is too small: {len(special)} special tokens and 256 bytes need room")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, min_frequency=2,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load(path: Path) -> Tokenizer:
    """The tokenizer of a file. What it says of lengths is for batches of its own: documents are neither cut nor filled
    up by it."""
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as e:  # tokenizers raises bare Exception
        raise RunError(f"{path} is not a tokenizer: {e}") from None
    made.no_truncation()
    made.no_padding()
    return made


def complete(tokenizer: Tokenizer, tokens: Iterable[str]) -> list[str]:
    """Add the special tokens that it does not have, behind all others; which these were. What ends a text may be
    called otherwise."""
    ends = end_of(tokenizer) is not None
    missing = [t for t in tokens if tokenizer.token_to_id(t) is None and not (t == EOS and ends)]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in missing])
    return missing


def special(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise RunError(f"the tokenizer has no token {token}")
    return int(found)


def end_of(tokenizer: Tokenizer) -> str | None:
    """Its token that ends a text."""
    own = special_tokens(tokenizer)
    return next((t for t in ENDS if t in own), None)


def end_id(tokenizer: Tokenizer) -> int:
    return special(tokenizer, end_of(tokenizer) or EOS)


def padding(tokenizer: Tokenizer) -> int:
    """What fills up rows of chats, where no token sees it."""
    found = tokenizer.token_to_id(PAD)
    return end_id(tokenizer) if found is None else int(found)


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """Its special tokens, which no text is made of."""
    return {t.content: i for i, t in sorted(tokenizer.get_added_tokens_decoder().items()) if t.special}


def rows_needed(tokenizer: Tokenizer) -> int:
    """How many rows a table of its tokens has at least; ids may leave holes."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


def words(tokenizer: Tokenizer) -> list[int]:
    """The ids of all other tokens, in order."""
    kept_out = set(special_tokens(tokenizer).values())
    return sorted(i for i in tokenizer.get_vocab(with_added_tokens=True).values() if i not in kept_out)


def literal(tokenizer: Tokenizer) -> Tokenizer:
    """A copy for text in which special tokens have no meaning: `<|im_end|>` is ten characters."""
    made = Tokenizer.from_str(tokenizer.to_str())
    made.encode_special_tokens = True
    return made
