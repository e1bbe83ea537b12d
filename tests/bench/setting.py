"""What is measured: a Llama decoder of about 26 M parameters, 8 x 512 tokens a step, AdamW and clipping."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """Sizes of the model and the batch; every side of the benchmark builds exactly this."""

    vocab: int = 8192
    dim: int = 512
    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 1280
    batch: int = 8
    length: int = 512
    dtype: str = "fp32"  # or bf16: weights stay fp32, products are in bf16
    threads: int = 2

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def linears(self) -> list[tuple[int, int, int]]:
        """(features in, features out, uses) of every product with a weight; the head is tied to the embedding."""
        kv = self.dim * self.kv_heads // self.heads
        return [
            (self.dim, self.dim, 2 * self.layers),  # q and output
            (self.dim, kv, 2 * self.layers),  # k and v
            (self.dim, self.hidden, 2 * self.layers),  # gate and up
            (self.hidden, self.dim, self.layers),  # down
            (self.dim, self.vocab, 1),  # head
        ]


LEARNING_RATE, BETAS, WEIGHT_DECAY, CLIP = 3e-4, (0.9, 0.95), 0.1, 1.0
