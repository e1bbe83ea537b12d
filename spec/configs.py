"""Configs of checkpoints that are made: what a name table says of a config, read backwards from a model's sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

from specc.spec.names import NameTable, looked_up

# The key that an expression gives back as it is: `hidden_size`, `n_inner or 4 * n_embd`, `max(q_lora_rank, 1)`.
KEY = re.compile(r"(?:(\w+)(?: or .*)?|max\((\w+), 1\))")
ROTARY = "rope_parameters"
LENGTH = "max_position_embeddings"  # no part of what a model with rotary positions computes


def made_configs(table: NameTable, sizes: Mapping[str, int | float], length: int) -> Iterator[dict[str, Any]]:
    """Configs that a model with these dims and numbers may have, one for each set of variants, large sets first: the
    first whose `table.overrides` change nothing of the model is its own. `length` is that of the rows that it was
    trained on."""
    assumed = {k: v[0] if isinstance(v, list) else v for k, v in table.assumes.items()}
    base = {**table.defaults, **assumed, **_given({**table.dims, **table.numbers}, sizes), **table.config}
    if LENGTH in base:
        base[LENGTH] = length
    for n in reversed(range(len(table.variants) + 1)):
        for chosen in combinations(table.variants, n):
            config = dict(base)
            for variant in chosen:
                config |= _given(variant.numbers, sizes) | variant.config
            for key, text in table.derived.items():
                if config.get(key) is None:
                    config[key] = looked_up(text, config)
            found = unfolded(config)
            if all(looked_up(variant.when, table.known(found)) for variant in chosen):
                yield found


def _given(texts: Mapping[str, str | float], sizes: Mapping[str, int | float]) -> dict[str, int | float]:
    """The keys that expressions give back as they are, with what the model has for them."""
    return {m[1] or m[2]: sizes[n] for n, text in texts.items() if n in sizes and (m := KEY.fullmatch(str(text)))}


def unfolded(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with its rotary settings as a mapping, and the base of the rotation also where older readers look."""
    rotary = {k.removeprefix(f"{ROTARY}_"): v for k, v in config.items() if k.startswith(f"{ROTARY}_")}
    inner = {k: v for k, v in rotary.items() if v is not None}
    outer = {k: v for k, v in config.items() if not k.startswith(f"{ROTARY}_")}
    return {**outer, ROTARY: inner, "rope_theta": inner.get("rope_theta")} if inner else outer
