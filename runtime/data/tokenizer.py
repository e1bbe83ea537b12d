"""Tokenizers: a byte-level BPE trained on the stage's documents, or a tokenizer.json."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from specc.runtime.errors import RunError

PAD, EOS, START, END, MASK = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "[MASK]"
SPECIAL = (PAD, EOS, START, END, MASK, "[gMASK]", "<|startofpiece|>", "<|endofpiece|>")


def train(texts: Iterable[str], vocab: int) -> Tokenizer:
    """Byte-level BPE with the special tokens first; the same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False, min_frequency=2,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as e:  # tokenizers raises bare Exception
        raise RunError(f"{path} is not a tokenizer: {e}") from None


def special(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise RunError(f"the tokenizer has no token {token}")
    return int(found)
