"""Small published checkpoints: models of transformers with drawn weights, as it saves them; and builds of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

import specc
from specc.runtime.built import Build
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.train import stage_folder

TEXTS = "texts"
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
    "tied": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama3": {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 1, "rope_parameters": {
                   "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0,
                   "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    "mistral": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "sliding_window": None, "head_dim": 16},
    "qwen2": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen3": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 16},
    "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "mixtral": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "num_local_experts": 4},
    "deepseek_v2": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "num_key_value_heads": 4, "first_k_dense_replace": 1, "kv_lora_rank": 8, "q_lora_rank": None,
                    "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_routed_experts": 4,
                    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_shared_experts": 1, "n_group": 2,
                    "topk_group": 1, "topk_method": "group_limited_greedy", "norm_topk_prob": False},
}  # fmt: skip
KINDS = {"tied": "llama", "llama3": "llama"}  # the others are called as they are


def publish(name: str, folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    """Save a small model of this kind with its tokenizer; where that is."""
    import transformers

    torch.manual_seed(1)
    kind = KINDS.get(name, name)
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": None}
    config = transformers.AutoConfig.for_model(kind, **{"vocab_size": 512, **ends, **SIZES[name], **more})
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for p in model.parameters():  # also those that begin as ones and zeros
            p += 0.02 * torch.randn(p.shape).to(dtype)
    shard = {"max_shard_size": "40KB"} if more.get("use_cache") is False else {}
    model.save_pretrained(folder / name, **shard)
    write_texts(folder)
    texts = [p.read_text() for p in sorted((folder / TEXTS).iterdir())]
    tokenizers.train(texts, 400).save(str(folder / name / "tokenizer.json"))
    return folder / name


def write_texts(folder: Path) -> None:
    (folder / TEXTS).mkdir(exist_ok=True)
    draw = random.Random(0)
    for i in range(20):
        words = draw.choices(["the", "cat", "sat", "on", "a", "mat", "and", "then", "ran", "home"], k=100)
        (folder / TEXTS / f"{i:02d}.txt").write_text(" ".join(words))


SMALL = (
    "stages.tune.data.sources.0={path: texts}", "stages.tune.data.seq_len=32", "stages.tune.data.validation=0.2",
    "stages.tune.batch.sequences=4", "stages.tune.budget.steps=1", "stages.tune.checkpoint.every=1",
    "stages.tune.schedule={kind: constant, warmup: 0}", "stages.tune.optimizer.lr=1e-3",
)  # fmt: skip


def built(spec: Path, *overrides: str, out: str = "") -> Build:
    """The build of a starter spec, of a step over the small texts."""
    return specc.build(spec, spec.parent / "build" / (out or spec.stem), (*SMALL, *overrides))


def reference(folder: Path) -> Any:
    """The checkpoint as transformers loads it, in fp32, with every tensor in its place."""
    import transformers

    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    model, info = loaded
    assert not any(info.values()), info
    return model.eval()


def weights(build: Build, stage: str = "tune", step: int = 1) -> dict[str, Tensor]:
    """Of a checkpoint of a run on one process or on several."""
    from specc.runtime import checkpoint

    root = stage_folder(build, build.stages[stage]) / "checkpoints"
    return checkpoint.load(root / f"step_{step:08d}").tensors["weights"]


def tokens_of(tokenizer: Tokenizer, text: str) -> Tensor:
    return torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
