"""A module of others or by hand as a training step: eager or through torch.compile, autocast for bf16."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch

from tests.bench.models import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, Setting


def make(setting: Setting, source: str, compiled: bool) -> Callable[[], float]:
    """A function that does one training step and returns the loss; `source` is the module that makes the model."""
    torch.manual_seed(0)
    model, loss_of = import_module(source).of(setting.row)
    model.to(setting.device).train()
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, fused=True)
    call = torch.compile(model) if compiled else model
    batches = torch.Generator().manual_seed(1)

    def step() -> float:
        inputs = setting.batch(batches)
        with torch.autocast(setting.device, torch.bfloat16, enabled=setting.dtype == "bf16"):
            loss = loss_of(call, inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step
