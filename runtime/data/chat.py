"""Conversations as tokens by a chat template: what the assistant says, to its end token, is asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer

from specc.runtime.data.store import Piece
from specc.runtime.data.template import Messages, render
from specc.runtime.data.tokenizer import literal, special_tokens
from specc.runtime.errors import RunError

PRIVATE = 0xF0000  # a plane that no text uses: content that looks like a special token is spelled here while rendered
HIDDEN = re.compile(f"([{chr(PRIVATE)}-{chr(PRIVATE + 0xFFFD)}])")


@dataclass(frozen=True)
class Coder:
    """A tokenizer for chats: special tokens count where the template writes them, and are plain text in content."""

    tokenizer: Tokenizer
    literal: Tokenizer
    specials: frozenset[int]
    hidden: dict[str, str]  # a special token's text: the character that stands for it while the template is rendered

    def hide(self, text: str) -> str:
        for token, c in self.hidden.items():
            text = text.replace(token, c)
        return text

    def encode(self, text: str) -> list[int]:
        shown = {c: token for token, c in self.hidden.items()}
        ids: list[int] = []
        for part in HIDDEN.split(text):
            encoder, plain = (self.literal, shown[part]) if part in shown else (self.tokenizer, part)
            ids += encoder.encode(plain, add_special_tokens=False).ids
        return ids


def coder(tokenizer: Tokenizer) -> Coder:
    found = special_tokens(tokenizer)
    longest_first = sorted(found, key=lambda t: (-len(t), t))
    hidden = {token: chr(PRIVATE + i) for i, token in enumerate(longest_first)}
    return Coder(tokenizer, literal(tokenizer), frozenset(found.values()), hidden)


def conversation(
    template: str, messages: Messages, by: Coder, asked: Literal["all", "last"] = "all", since: int = 0
) -> Piece:
    """Tokens, and which of them the assistant wrote, in all its turns `since` a message, or the last: its words and the
    special token that ends them.

    Text is tokenised up to where the assistant begins, and anew from there, as it is when the model answers."""
    safe = [{**m, "content": by.hide(m["content"])} for m in messages]
    ids: list[int] = []
    answers: list[bool] = []
    done = ""
    for i, message in enumerate(safe):
        if message["role"] != "assistant":
            continue
        before, full = render(template, safe[:i], ask=True), render(template, safe[: i + 1])
        if not (before.startswith(done) and full.startswith(before)):
            raise RunError(
                "the chat template does not write a conversation piece by piece: its text for the first "
                f"{i + 1} messages must begin with its text for {i} messages and add_generation_prompt"
            )
        context, answer = by.encode(before[len(done) :]), by.encode(full[len(before) :])
        ends = [at for at, t in enumerate(answer) if t in by.specials]
        said = ends[-1] + 1 if ends else len(answer)  # what stands behind the end token is the template's
        said = said if i >= since else 0
        ids += context + answer
        answers = answers if asked == "all" else [False] * len(answers)
        answers += [False] * len(context) + [True] * said + [False] * (len(answer) - said)
        done = full
    return ids, answers
