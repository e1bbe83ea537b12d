"""Reference cases of models with images and with experts, at any of a few sizes. Needs transformers and diffusers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.parity.reference import Reference, floats, tokens, write_case
from tests.parity.visual_expert import VisualExpertTower


def write(name: str, folder: Path, dtype: torch.dtype, size: int, seed: int = 0) -> Path:
    """Write the case into `folder/name`; `size` 0 or 1 picks the dims."""
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64 and name in ROUNDED:
            in_double(patch)
        write_case(folder / name, CASES[name](size, seed), dtype, seed)
    return folder / name


def in_double(patch: pytest.MonkeyPatch) -> None:
    """transformers rounds norms, positions and gates to fp32 even in a fp64 model: here it does not."""
    for name in ("float32", "float"):
        patch.setattr(torch, name, torch.float64)
    patch.setattr(Tensor, "float", Tensor.double)


def deepseek_v2(size: int, seed: int) -> Reference:
    """Latent attention and routed experts: all experts in one group, or the best groups of several."""
    from transformers import DeepseekV2Config, DeepseekV2ForCausalLM

    sizes = [
        {"num_hidden_layers": 2, "first_k_dense_replace": 1, "n_routed_experts": 4, "num_experts_per_tok": 2,
         "n_group": 1, "topk_group": 1, "topk_method": "greedy", "routed_scaling_factor": 1.0, "q_lora_rank": None},
        {"num_hidden_layers": 4, "first_k_dense_replace": 2, "n_routed_experts": 8, "num_experts_per_tok": 3,
         "n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 2.5,
         "q_lora_rank": 20},
    ]  # fmt: skip
    config = DeepseekV2Config(
        vocab_size=83, hidden_size=24, num_attention_heads=3, num_key_value_heads=3, intermediate_size=40,
        moe_intermediate_size=16, n_shared_experts=2, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=6,
        v_head_dim=10, head_dim=6, norm_topk_prob=False, max_position_embeddings=64, attn_implementation="eager",
        experts_implementation="eager", **sizes[size],
    )  # fmt: skip
    ids = tokens(83, 2, 11, seed=seed)

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = module(**x, use_cache=False)
        return {"logits": out.logits, "loss": out.loss}

    module = DeepseekV2ForCausalLM(config)
    return Reference(module, config.to_dict(), {"input_ids": ids, "labels": ids.clone()}, call)


def visual_expert(size: int, seed: int) -> Reference:
    """Image tokens between text, at one position; only their weights train."""
    width, heads, inner, layers, images = [(32, 4, 48, 2, 4), (40, 5, 56, 3, 7)][size]
    kind = torch.tensor([[0] + [1] * (images + 1) + [0] * 5] * 2)
    pos = torch.tensor([[0, 1] + [2] * images + [3, 4, 5, 6, 7]] * 2)
    module = VisualExpertTower(width, heads, inner, layers)
    for name, p in module.named_parameters():
        p.requires_grad_("vision" in name)
    inputs = {"hidden": floats(*kind.shape, width, seed=seed), "dout": floats(*kind.shape, width, seed=seed + 1),
              "vision_mask": kind.bool(), "position_ids": pos}  # fmt: skip

    def call(m: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = m(x["hidden"], kind, pos)
        text = m(x["hidden"], torch.zeros_like(kind), torch.arange(kind.shape[1]).expand(kind.shape))
        return {"hidden": out, "text_only": text, "loss": (out * x["dout"]).sum()}

    config = {"hidden": width, "heads": heads, "inner": inner, "layers": layers, "rms_eps": 1e-5}
    return Reference(module, config, inputs, call)


def sd3(size: int, seed: int) -> Reference:
    from diffusers import SD3Transformer2DModel

    side, channels, layers, heads, texts = [(8, 4, 2, 4, 5), (12, 6, 3, 3, 7)][size]
    config = {
        "sample_size": side, "patch_size": 2, "in_channels": channels, "out_channels": channels, "num_layers": layers,
        "attention_head_dim": 8, "num_attention_heads": heads, "joint_attention_dim": 20, "pooled_projection_dim": 18,
        "caption_projection_dim": 8 * heads, "pos_embed_max_size": 9, "qk_norm": None,
    }  # fmt: skip
    picture = (2, channels, side, side)
    inputs = {"x_t": floats(*picture, seed=seed), "target": floats(*picture, seed=seed + 1),
              "text": floats(2, texts, 20, seed=seed + 2), "pooled": floats(2, 18, seed=seed + 3),
              "t": torch.tensor([130.0, 870.0])}  # fmt: skip

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        v = module(hidden_states=x["x_t"], encoder_hidden_states=x["text"], pooled_projections=x["pooled"],
                   timestep=x["t"]).sample  # fmt: skip
        return {"v": v, "loss": mse_loss(v, x["target"])}

    return Reference(SD3Transformer2DModel(**config), config, inputs, call)


def dit(size: int, seed: int) -> Reference:
    """As in the paper: one embedder for all blocks. Labels are not dropped, and the module is not in training."""
    from diffusers import DiTTransformer2DModel

    side, channels, layers, heads = [(8, 4, 2, 2), (12, 3, 3, 3)][size]
    config = {
        "sample_size": side, "patch_size": 2, "in_channels": channels, "out_channels": 2 * channels,
        "num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 8, "num_embeds_ada_norm": 10,
        "norm_type": "ada_norm_zero", "attention_bias": True, "activation_fn": "gelu-approximate",
        "norm_elementwise_affine": False, "norm_eps": 1e-6,
    }  # fmt: skip
    module = DiTTransformer2DModel(**config)
    for block in module.transformer_blocks:
        block.norm1.emb = module.transformer_blocks[0].norm1.emb
    picture = (2, channels, side, side)
    inputs = {"x_t": floats(*picture, seed=seed), "noise": floats(*picture, seed=seed + 1),
              "t": torch.tensor([5.0, 640.0]), "y": torch.tensor([3, 10])}  # fmt: skip

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = module(x["x_t"], timestep=x["t"], class_labels=x["y"]).sample
        return {"out": out, "loss": mse_loss(out[:, :channels], x["noise"])}

    return Reference(module, config, inputs, call)


def vit(size: int, seed: int) -> Reference:
    from transformers import ViTConfig, ViTForImageClassification

    side, patch, layers, heads = [(16, 4, 2, 4), (15, 5, 3, 2)][size]
    config = ViTConfig(hidden_size=32, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=48,
                       image_size=side, patch_size=patch, num_labels=7, attn_implementation="eager")  # fmt: skip

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = module(**x)
        return {"logits": out.logits, "loss": out.loss}

    inputs = {"pixel_values": floats(3, 3, side, side, seed=seed), "labels": torch.tensor([2, 0, 6])}
    return Reference(ViTForImageClassification(config), {**config.to_dict(), "num_labels": 7}, inputs, call)


def mixtral(size: int, seed: int) -> Reference:
    from transformers import MixtralConfig, MixtralForCausalLM

    layers, experts, used = [(2, 4, 2), (3, 6, 3)][size]
    config = MixtralConfig(
        vocab_size=83, hidden_size=24, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=40, num_local_experts=experts, num_experts_per_tok=used, max_position_embeddings=64,
        attn_implementation="eager", experts_implementation="eager",
    )  # fmt: skip
    ids = tokens(83, 2, 11, seed=seed)

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = module(**x, use_cache=False)
        return {"logits": out.logits, "loss": out.loss}

    return Reference(MixtralForCausalLM(config), config.to_dict(), {"input_ids": ids, "labels": ids.clone()}, call)


def autoencoder(size: int, seed: int) -> Reference:
    from diffusers import AutoencoderKL

    side, widths, blocks, z = [(16, [16, 16], 1, 4), (24, [8, 16, 24], 2, 3)][size]
    config = {
        "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths), "block_out_channels": widths,
        "layers_per_block": blocks, "latent_channels": z, "norm_num_groups": 4, "sample_size": side,
    }  # fmt: skip
    small = side >> (len(widths) - 1)
    inputs = {"image": floats(2, 3, side, side, seed=seed), "eps": floats(2, z, small, small, seed=seed + 1)}

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        p = module.encode(x["image"]).latent_dist
        drawn, kl = module.decode(p.mean + p.std * x["eps"]).sample, p.kl()
        loss = mse_loss(drawn, x["image"]) + 1e-6 * kl.mean()
        return {"mean": p.mean, "logvar": p.logvar, "recon": drawn, "kl": kl, "loss": loss}

    return Reference(AutoencoderKL(**config), config, inputs, call)


def clip(size: int, seed: int) -> Reference:
    from transformers import CLIPConfig, CLIPModel

    side, patch, batch = [(16, 4, 3), (15, 5, 5)][size]
    text = {"vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1 + size,
            "num_attention_heads": 3, "max_position_embeddings": 12, "projection_dim": 20, "eos_token_id": 96,
            "bos_token_id": 95, "pad_token_id": 1}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2 - size, "num_attention_heads": 4,
              "image_size": side, "patch_size": patch, "projection_dim": 20}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    config._attn_implementation = "eager"
    ids = tokens(90, batch, 9, seed=seed)
    ids[:, 5] = 96

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = module(**x, return_loss=True)
        return {n: getattr(out, n) for n in ("logits_per_image", "image_embeds", "text_embeds", "loss")}

    inputs = {"input_ids": ids, "pixel_values": floats(batch, 3, side, side, seed=seed + 1)}
    return Reference(CLIPModel(config), config.to_dict(), inputs, call)


CASES: Mapping[str, Callable[[int, int], Reference]] = {
    "deepseek_v2_mla_moe": deepseek_v2, "cogvlm_visual_expert": visual_expert, "sd3_mmdit": sd3,
    "autoencoder_kl": autoencoder, "clip_contrastive": clip, "dit_shared": dit, "vit_classification": vit,
    "mixtral_clm": mixtral,
}  # fmt: skip
ROUNDED = ("deepseek_v2_mla_moe", "mixtral_clm", "vit_classification")  # to fp32 on the way
