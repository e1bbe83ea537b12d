"""Adapters of a stage as PEFT writes them: tensors lora_A and lora_B of the published model's modules, and a config."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from specc.compiler.program import Adapter
from specc.runtime.convert.layout import Layout
from specc.runtime.convert.names import Link
from specc.runtime.errors import RunError
from specc.spec.model import Lora

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, WEIGHT = "base_model.model.", ".weight"


def peft_adapter(
    adapters: Iterable[Adapter], lora: Lora, links: Sequence[Link], weights: Mapping[str, Tensor], base: str | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by their names in PEFT's file, and its config; raises RunError for a weight that is no module's own."""
    holders = {path: link for link in links for path in link.ours}
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    turned = set[bool]()
    for adapter in adapters:
        link = holders[adapter.weight]
        if len(link.ours) > 1 or len(link.theirs) > 1 or adapter.groups:
            raise RunError(f"'{adapter.weight}' is no module of its own in the published model: export merged weights")
        layout, name = link.layouts[0], link.theirs[0].removesuffix(WEIGHT)
        turned.add(is_turned(layout, adapter.ins, name))
        a, b = weights[adapter.a], weights[adapter.b]
        tensors[f"{PREFIX}{name}.lora_A{WEIGHT}"] = flat(a, _order(layout, 0, adapter.ins), at_end=True)
        outs = _order(layout, adapter.ins, len(layout.order))
        tensors[f"{PREFIX}{name}.lora_B{WEIGHT}"] = flat(b, outs, at_end=False)
        modules.append(name)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "lora_dropout": lora.dropout, "use_rslora": lora.rslora, "bias": "none", "inference_mode": True,
        "fan_in_fan_out": any(turned), "target_modules": targets(modules, links),
    }  # fmt: skip
    return tensors, config


def is_turned(layout: Layout, ins: int, name: str) -> bool:
    """Whether the module's weight is [in out], as GPT-2's are, and not [out in]."""
    first = len(layout.left[0])
    summed = set(layout.order[:ins])
    sides = set(range(first)), set(range(first, len(layout.order)))
    if len(layout.left) != 2 or summed not in sides:
        raise RunError(f"'{name}' has dims {list(layout.theirs)}, which are not those that an adapter multiplies")
    return summed == sides[0]


def _order(layout: Layout, begin: int, end: int) -> list[int]:
    """Some of our dims in the order that they have in the module's weight, counted from the first of them."""
    return sorted(range(end - begin), key=lambda i: layout.order[begin + i])


def flat(t: Tensor, order: Sequence[int], at_end: bool) -> Tensor:
    """A [ins rank] as [rank in], or B [rank outs] as [out rank]."""
    if at_end:
        return t.permute(*order, t.ndim - 1).reshape(-1, t.shape[-1]).T.contiguous()
    return t.permute(0, *(1 + i for i in order)).reshape(t.shape[0], -1).T.contiguous()


def targets(modules: Sequence[str], links: Sequence[Link]) -> list[str]:
    """The modules by their last names, where all modules of these names have adapters; else by their paths."""
    every = [name.removesuffix(WEIGHT) for link in links for name in link.theirs if name.endswith(WEIGHT)]
    last = {name.rpartition(".")[2] for name in modules}
    meant = [name for name in every if name.rpartition(".")[2] in last]
    return sorted(last) if set(meant) == set(modules) else sorted(modules)
