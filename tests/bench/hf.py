"""The Hugging Face side: LlamaForCausalLM of transformers, eager or through torch.compile, autocast for bf16."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.bench.setting import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, Setting


def make(setting: Setting, compiled: bool) -> Callable[[], float]:
    """A function that does one training step and returns the loss."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(config(setting))
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    call = torch.compile(model) if compiled else model
    batches = torch.Generator().manual_seed(1)

    def step() -> float:
        tokens = torch.randint(setting.vocab, (setting.batch, setting.length), generator=batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.dtype == "bf16"):
            loss = call(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def config(setting: Setting) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=setting.vocab,
        hidden_size=setting.dim,
        intermediate_size=setting.hidden,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.kv_heads,
        max_position_embeddings=setting.length,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
    )
