"""What others publish: classes of transformers and diffusers, and how one calls them for a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import mse_loss

from tests.bench.models import Model

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]


def load(model: Model) -> None:
    """Import what the model is of, so that it does not count as the model's memory."""
    import_module(MODULES[model.library])


def of(model: Model) -> tuple[nn.Module, Loss]:
    """The module and its loss."""
    return MAKERS[model.library](model)


def llama(model: Model) -> tuple[nn.Module, Loss]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**decoder_sizes(model), tie_word_embeddings=True)), text_loss


def mixtral(model: Model) -> tuple[nn.Module, Loss]:
    from transformers import MixtralConfig, MixtralForCausalLM

    experts, used = model.dims["EXPERTS"], model.dims["USED"]
    config = MixtralConfig(**decoder_sizes(model), num_local_experts=experts, num_experts_per_tok=used)
    return MixtralForCausalLM(config), text_loss


def decoder_sizes(model: Model) -> dict[str, Any]:
    d = model.dims
    return {
        "vocab_size": d["V"], "hidden_size": d["D"], "intermediate_size": d["F"], "num_hidden_layers": d["L"],
        "num_attention_heads": d["H"], "num_key_value_heads": d["K"], "max_position_embeddings": model.length,
        "rms_norm_eps": 1e-5,
    }  # fmt: skip


def vit(model: Model) -> tuple[nn.Module, Loss]:
    from transformers import ViTConfig, ViTForImageClassification

    d = model.dims
    config = ViTConfig(
        hidden_size=d["D"], num_hidden_layers=d["L"], num_attention_heads=d["H"], intermediate_size=d["F"],
        image_size=d["Y"], patch_size=d["P"], num_labels=d["CLASSES"],
    )  # fmt: skip

    def loss(module: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = module(pixel_values=x["image"], labels=x["class"]).loss
        return found

    return ViTForImageClassification(config), loss


def dit(model: Model) -> tuple[nn.Module, Loss]:
    """One embedder of time and class for all blocks, as in the paper; no label is dropped."""
    from diffusers import DiTTransformer2DModel

    d = model.dims
    module = DiTTransformer2DModel(
        num_attention_heads=d["H"], attention_head_dim=d["D"] // d["H"], in_channels=d["C"], out_channels=2 * d["C"],
        num_layers=d["L"], sample_size=d["Y"], patch_size=d["P"], num_embeds_ada_norm=d["CLASSES"],
        norm_type="ada_norm_zero", attention_bias=True, activation_fn="gelu-approximate",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    embedder = module.transformer_blocks[0].norm1.emb
    embedder.class_embedder.dropout_prob = 0.0
    for block in module.transformer_blocks:
        block.norm1.emb = embedder

    def loss(module: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
        out = module(x["x_t"], timestep=x["t"], class_labels=x["class"]).sample
        return mse_loss(out[:, : d["C"]], x["noise"])

    return module, loss


def text_loss(module: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = module(input_ids=x["tokens"], labels=x["tokens"], use_cache=False).loss
    return found


MODULES: Mapping[str, str] = {
    "llama": "transformers.models.llama.modeling_llama", "mixtral": "transformers.models.mixtral.modeling_mixtral",
    "vit": "transformers.models.vit.modeling_vit", "dit": "diffusers.models.transformers.dit_transformer_2d",
}  # fmt: skip
MAKERS: Mapping[str, Callable[[Model], tuple[nn.Module, Loss]]] = {
    "llama": llama, "mixtral": mixtral, "vit": vit, "dit": dit,
}  # fmt: skip
