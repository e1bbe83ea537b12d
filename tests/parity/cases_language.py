"""Reference cases of language models, at any of a few sizes. Needs transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from specc.compiler.ops.loss import IGNORE
from specc.runtime.data.blanks import Marks, infill
from tests.parity.cases_multimodal import in_double
from tests.parity.reference import Reference, tokens, write_case

ROUNDS = ("llama", "t5")  # transformers rounds these to fp32 even in a fp64 model, in norms and softmax


def write(name: str, folder: Path, dtype: torch.dtype, size: int, seed: int = 0) -> Path:
    """Write the case into `folder/name`; `size` 0 or 1 picks the dims."""
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64 and name.startswith(ROUNDS):
            in_double(patch)
        write_case(folder / name, CASES[name](size, seed), dtype, seed)
    return folder / name


def called(*outputs: str, **options: bool) -> Callable[[nn.Module, Mapping[str, Tensor]], dict[str, Tensor]]:
    """The outputs of a model of transformers by name; `hidden` is the last layer's."""

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = module(**x, **options)
        found = {n: getattr(out, n) for n in outputs}
        return found | ({"hidden": out.hidden_states[-1]} if options.get("output_hidden_states") else {})

    return call


def gpt2_config(size: int, **more: int) -> Any:
    from transformers import GPT2Config

    width, heads, layers, inner = [(24, 3, 2, None), (40, 5, 3, 56)][size]
    return GPT2Config(
        vocab_size=83 + size, n_embd=width, n_head=heads, n_layer=layers, n_inner=inner, n_positions=21, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, attn_implementation="eager", bos_token_id=0, eos_token_id=0,
        layer_norm_epsilon=[1e-5, 1e-3][size],
    )  # fmt: skip


def gpt2(size: int, seed: int) -> Reference:
    """The second size has padding behind a text."""
    from transformers import GPT2LMHeadModel

    config, ids = gpt2_config(size), tokens(83, 3, 11 + size, seed=seed)
    inputs = {"input_ids": ids, "labels": ids.clone()}
    if size:
        inputs |= padded(ids, inputs["labels"])
    return Reference(GPT2LMHeadModel(config), config.to_dict(), inputs, called("logits", "loss", use_cache=False))


def padded(ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The mask of a batch whose second row ends with three tokens of padding, which have no label."""
    mask = torch.ones_like(ids)
    mask[1, -3:] = 0
    labels[1, -3:] = IGNORE
    return {"attention_mask": mask}


def bert(size: int, seed: int) -> Reference:
    """Padding, two texts in a row, and a few labels."""
    from transformers import BertConfig, BertForMaskedLM

    width, heads, layers, kinds = [(24, 3, 2, 2), (40, 4, 1, 3)][size]
    config = BertConfig(
        vocab_size=83, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=52,
        max_position_embeddings=17, type_vocab_size=kinds, hidden_dropout_prob=0, attention_probs_dropout_prob=0,
        attn_implementation="eager",
    )  # fmt: skip
    ids = 1 + tokens(82, 3, 13, seed=seed)  # the row of token 0, padding, gets no gradient in transformers
    labels = torch.where(tokens(4, 3, 13, seed=seed + 1) == 0, ids, IGNORE)
    inputs = {"input_ids": ids, "labels": labels, **padded(ids, labels)}
    inputs["token_type_ids"] = tokens(kinds, 3, 13, seed=seed + 2)
    call = called("logits", "loss", output_hidden_states=True)
    return Reference(BertForMaskedLM(config), config.to_dict(), inputs, call)


def t5(size: int, seed: int, is_gated: bool) -> Reference:
    """The second size of the gated model has a head of its own, as the published weights have."""
    from transformers import T5Config, T5ForConditionalGeneration

    width, heads, inner, layers, buckets = [(24, 3, 40, (2, 2), 8), (40, 5, 28, (1, 3), 12)][size]
    config = T5Config(
        vocab_size=83, d_model=width, d_kv=6, d_ff=inner, num_layers=layers[0], num_decoder_layers=layers[1],
        num_heads=heads, relative_attention_num_buckets=buckets, relative_attention_max_distance=19, dropout_rate=0.0,
        feed_forward_proj="gated-gelu" if is_gated else "relu", tie_word_embeddings=not is_gated,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, attn_implementation="eager",
    )  # fmt: skip
    module, facts = T5ForConditionalGeneration(config), config.to_dict()
    if is_gated and size:
        module.lm_head.weight = nn.Parameter(torch.empty(83, width))
        facts["tie_word_embeddings"] = False
    ids, labels = tokens(83, 3, 29, seed=seed), tokens(83, 3, 25, seed=seed + 1)
    inputs = {"input_ids": ids, "labels": labels} | ({} if size else padded(ids, labels))

    def call(m: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = called("logits", "loss", "encoder_last_hidden_state", use_cache=False)(m, x)
        return out | {"encoder_last": out.pop("encoder_last_hidden_state")}

    return Reference(module, facts, inputs, call)


class BlankLM(nn.Module):
    """GPT-2 with a second table of positions and a mask that is given."""

    def __init__(self, config: Any) -> None:
        from transformers import GPT2LMHeadModel

        super().__init__()
        self.lm = GPT2LMHeadModel(config)
        self.block_position_embeddings = nn.Embedding(config.n_positions, config.n_embd)

    def forward(self, x: Mapping[str, Tensor], allow: Tensor) -> Tensor:
        words = self.lm.transformer.wte(x["tokens"]) + self.block_position_embeddings(x["block_position_ids"])
        hidden = torch.zeros(allow.shape, dtype=words.dtype).masked_fill(~allow, torch.finfo(words.dtype).min)
        out = self.lm(
            inputs_embeds=words, position_ids=x["position_ids"], attention_mask=hidden[:, None], use_cache=False
        )
        return out.logits  # type: ignore[no-any-return]


def glm(size: int, seed: int) -> Reference:
    """Rows of the objective: texts of one length with as many blanks, the second with a long one."""
    n, blanks = [
        (9, ([(6, 7), (2, 4)], [(0, 1), (3, 8)])),
        (11, ([(1, 3), (9, 11), (5, 6)], [(8, 9), (0, 4), (5, 7)])),
    ][size]
    marks = Marks(mask=76, long_mask=77, start=78, end=79, pad=80)
    texts = tokens(70, 2, n, seed=seed).numpy()
    rows = [infill(t, b, marks, marks.mask, n + 2 * len(b)) for t, b in zip(texts, blanks, strict=True)]
    fields = {k: torch.from_numpy(np.stack([r[k] for r in rows])) for k in rows[0]}
    first = (fields["part"] == 0).sum(1, keepdim=True)  # tokens of the text
    length = fields["part"].shape[1]
    allow = torch.ones(length, length).tril().bool() | (torch.arange(length) < first)[:, None]

    def call(module: nn.Module, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        logits = module(x, allow)
        return {"logits": logits, "loss": cross_entropy(logits.flatten(0, 1), x["labels"].flatten())}

    inputs = {"tokens": fields["tokens"], "position_ids": fields["pos"], "block_position_ids": fields["block_pos"],
              "labels": fields["labels"], "prefix_len": first}  # fmt: skip
    config = gpt2_config(size)
    return Reference(BlankLM(config), config.to_dict(), inputs, call)


def llama(size: int, seed: int) -> Reference:
    """Grouped heads, padding, and labels on a part of the tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    width, heads, shared, layers = [(24, 4, 2, 2), (40, 5, 1, 3)][size]
    config = LlamaConfig(
        vocab_size=83, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=44,
        num_key_value_heads=shared, rms_norm_eps=1e-5, attn_implementation="eager",
    )  # fmt: skip
    ids = tokens(83, 3, 13, seed=seed)
    labels = torch.where(tokens(2, 3, 13, seed=seed + 1) == 0, ids, IGNORE)
    inputs = {"input_ids": ids, "labels": labels, **padded(ids, labels)}
    return Reference(LlamaForCausalLM(config), config.to_dict(), inputs, called("logits", "loss", use_cache=False))


CASES: Mapping[str, Callable[[int, int], Reference]] = {
    "gpt2_clm": gpt2, "bert_mlm": bert, "t5_v1_1_gated": lambda size, seed: t5(size, seed, is_gated=True),
    "t5_v1_0": lambda size, seed: t5(size, seed, is_gated=False), "glm2022_blank_infilling": glm,
    "llama_sft_masked": llama,
}  # fmt: skip
