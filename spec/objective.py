"""What a model is asked: the parameters of the pre-training objectives, and the lengths that follow from them."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from specc.spec.node import Node


class MaskedLM(Node):
    """BERT (arXiv:1810.04805, 3.1): some tokens are hidden, and the model tells what they were."""

    rate: float = Field(0.15, gt=0, lt=1, description="share of the tokens that are predicted")
    masked: float = Field(0.8, ge=0, le=1, description="share of these that become [MASK]")
    random: float = Field(0.1, ge=0, le=1, description="share of these that become a random token; the rest stay")

    @model_validator(mode="after")
    def _shares(self) -> MaskedLM:
        if self.masked + self.random > 1:
            raise ValueError("'masked' and 'random' are shares of one whole: their sum is at most 1")
        return self


class SpanCorruption(Node):
    """T5 (arXiv:1910.10683, 3.1.4): spans become sentinels; the decoder writes the spans."""

    density: float = Field(0.15, gt=0, lt=0.9, description="share of the tokens that are in spans")
    mean_span: float = Field(3.0, ge=1)
    target_len: int | None = Field(None, ge=4, description="tokens of a decoder row; default: what seq_len gives")

    def spans(self, n: int) -> tuple[int, int]:
        """Tokens in spans, and spans, of a text of n >= 2 tokens; both are exact, not drawn."""
        noise = min(max(round(n * self.density), 1), n - 1)
        return noise, min(max(round(noise / self.mean_span), 1), noise, n - noise)

    def lengths(self, n: int) -> tuple[int, int]:
        """Tokens that n tokens become for the encoder and the decoder: a sentinel a span, and an end each."""
        noise, spans = self.spans(n)
        return n - noise + spans + 1, noise + spans + 1

    def piece(self, seq_len: int) -> int:
        """The longest text whose encoder side fits `seq_len` (568 for 512, as in the paper's code)."""
        n = 2
        low, high = n, 2 * seq_len + 16 if self.density < 0.5 else 16 * seq_len
        while low < high:  # the encoder's length never falls by more than a token when n grows
            n = (low + high + 1) // 2
            low, high = (n, high) if self.lengths(n)[0] <= seq_len else (low, n - 1)
        while self.lengths(low)[0] > seq_len:
            low -= 1
        return low

    def check(self, seq_len: int) -> None:
        """Raises ValueError if a text of some tokens and its targets do not fit the rows."""
        if seq_len < 8:
            raise ValueError("span_corruption needs a data.seq_len of at least 8")
        needed = self.lengths(self.piece(seq_len))[1]
        if self.target_len is not None and self.target_len < needed:
            raise ValueError(f"span_corruption.target_len is at least {needed} for a data.seq_len of {seq_len}")

    def decoder_len(self, seq_len: int) -> int:
        """Tokens of a decoder row."""
        return self.target_len or self.lengths(self.piece(seq_len))[1]


class BlankInfilling(Node):
    """GLM (arXiv:2103.10360, 2.1): spans are cut out, shuffled, and written again from left to right."""

    density: float = Field(0.15, gt=0, lt=0.9, description="share of the tokens that are in spans, at least")
    mean_span: float = Field(3.0, ge=1, description="mean of the Poisson distribution of the spans' lengths")
    document: float = Field(0.0, ge=0, le=1, description="share of the texts with one long span at the end ([gMASK])")
    document_span: float = Field(0.5, gt=0, le=1, description="the shortest such span, as a share of the text")

    def hidden(self, n: int) -> int:
        """Tokens in spans of a text of n tokens."""
        return min(max(math.ceil(n * self.density), 1), n - 1)

    def most_spans(self, n: int) -> int:
        """Draws of more spans than this (the mean and about three standard deviations) are drawn anew."""
        m = self.hidden(n)
        return min(math.ceil(m / self.mean_span + math.sqrt(m) / 2 + 1), m, n - m + 1)

    def length(self, n: int) -> int:
        """The most tokens that n tokens become: each span adds its [MASK] and its start."""
        return n + 2 * self.most_spans(n)

    def piece(self, seq_len: int) -> int:
        """The longest text that surely fits `seq_len`."""
        n = seq_len
        while n > 2 and self.length(n) > seq_len:
            n -= 1
        return n


class Sft(Node):
    """Which answers of conversations are asked for, and what becomes of conversations that are too long."""

    answers: Literal["all", "last"] = Field("all", description="of the assistant's turns, those that the loss is on")
    long: Literal["cut", "drop"] = Field("cut", description="conversations of more than data.seq_len tokens")


# What `beta` is if nothing is said: as in the papers, and for orpo its lambda.
BETA = {"dpo": 0.1, "ipo": 0.1, "hinge": 0.1, "simpo": 2.0, "orpo": 0.1, "cpo": 0.1}
# What a preference stage adds to a model: what the reference says of the answers of a row, and what the model says.
REFERENCE, LOG_PROBS = "reference", "log_probs"
AGAINST_REFERENCE = ("dpo", "ipo", "hinge")
BY_TOKEN = ("simpo", "orpo")


class Preference(Node):
    """The loss of pairs of answers, and the model that they are compared with."""

    loss: Literal["dpo", "ipo", "hinge", "simpo", "orpo", "cpo"] = "dpo"
    beta: float | None = Field(None, gt=0, description="default: 0.1; simpo: 2")
    gamma: float | None = Field(None, ge=0, description="simpo: by how much an answer is to be better (default: 1)")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="dpo, cpo: share of pairs the wrong way round")
    nll: float | None = Field(
        None, ge=0, description="weight of the chosen answers' mean negative log-likelihood; default: 0; orpo, cpo: 1"
    )
    average: bool = Field(False, description="log-probabilities by token, not of whole answers (ipo in TRL, say)")
    reference: str | None = Field(None, description="a stage of the same model; default: what the stage starts from")
    pairs: int = Field(1, ge=1, le=1 << 12, description="the most pairs of a row")
    long: Literal["drop", "cut"] = Field("drop", description="pairs whose two answers do not fit a row of data.seq_len")

    @property
    def has_reference(self) -> bool:
        return self.loss in AGAINST_REFERENCE

    @property
    def by_token(self) -> bool:
        return self.average or self.loss in BY_TOKEN

    @property
    def scale(self) -> float:
        """`beta`, or what it is by default."""
        return BETA[self.loss] if self.beta is None else self.beta

    @property
    def likelihood(self) -> float:
        """`nll`, or what it is by default."""
        return (1.0 if self.loss in ("orpo", "cpo") else 0.0) if self.nll is None else self.nll

    @property
    def head_start(self) -> float:
        """`gamma`, or what it is by default."""
        return (1.0 if self.loss == "simpo" else 0.0) if self.gamma is None else self.gamma

    @model_validator(mode="after")
    def _settings(self) -> Preference:
        if self.gamma is not None and self.loss != "simpo":
            raise ValueError(f"'gamma' has no effect on the loss '{self.loss}'")
        if self.label_smoothing and self.loss not in ("dpo", "cpo"):
            raise ValueError(f"'label_smoothing' has no effect on the loss '{self.loss}'")
        if self.average and self.loss in BY_TOKEN:
            raise ValueError(f"'average' has no effect on the loss '{self.loss}', which is by token")
        if self.reference is not None and not self.has_reference:
            raise ValueError(f"'reference' has no effect on the loss '{self.loss}', which has none")
        return self
