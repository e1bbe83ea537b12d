"""The text of a starter spec for a published checkpoint: its model at its sizes, and a stage that goes on from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from specc.runtime.convert.config import TOKENIZER, read_config
from specc.spec.dump import dump
from specc.spec.model import ModelSpec
from specc.spec.names import NameTable, load_names, table_for

HEAD = """\
# yaml-language-server: $schema=./specc.schema.json
# (write that file with `specc schema -o specc.schema.json`, and the editor completes this one)
specc: 1
name: {name}

# The checkpoint in {folder} is the library's `{model}` at these sizes, which are those of its config.json.
# `specc show {file}` draws it, `specc show {file} --emit spec` writes it out in full.
use: {model}
set:
{sizes}

# plan:
#   precision: {{compute: bf16}}     # weights and optimizer stay fp32
#   mesh: {{dp: 8}}                  # processes that share the work; every rank reads its parts of the checkpoint
#   zero: 3
"""
STAGE = """
# `specc run` trains; then `specc export build/{name} -o DIR` writes a folder that transformers and vLLM load.
# For chats: `kind: sft`, and data with messages (their template, default ChatML, needs its tokens in the vocabulary).
stages:
  tune:
    objective: {objective}
    # Relative paths start at the folder in which `specc run` is called.
    weights: {weights}
    tokenizer: {tokenizer}
    data:
      sources:
        - corpus: python-stdlib     # real text that every machine has; your own: {{path: data/, format: jsonl}}
      seq_len: {length}
    batch: {{sequences: 16}}
    optimizer: {{lr: 1e-5, weight_decay: 0.1}}
    schedule: {{kind: cosine, warmup: 0.05}}
    budget: {{steps: 300}}            # or {{tokens: 20M}}
    eval: {{every: 100}}
    checkpoint: {{every: 100, keep: 2}}
"""
LENGTH = 256


def table_of(folder: Path, names: str | None) -> tuple[str, NameTable, dict[str, Any]]:
    """The table of a checkpoint and its config; `names` says which, where the config's model_type does not."""
    config = read_config(folder)
    name = names or table_for(config)
    return name, load_names(name), config


def checkpoint_starter(
    name: str, folder: Path, names: str, table: NameTable, config: dict[str, Any], section: ModelSpec, file: Path,
    objective: str,
) -> str:  # fmt: skip
    """The text; a model that reads no tokens has no stage to start with."""
    sizes = dict(text.split("=", 1) for text in table.overrides(config))
    lines = "\n".join(f"  {path}: {value}" for path, value in sizes.items())
    text = HEAD.format(name=name, folder=folder, model=table.model, file=file, sizes=lines)
    if "tokens" not in section.inputs or "labels" not in section.inputs:
        return text
    tokenizer = flow({"file": str(folder / TOKENIZER)})
    if not (folder / TOKENIZER).is_file():
        tokenizer += "   # which the folder lacks: put it there, or name the file of these weights' tokenizer"
    longest = int(sizes.get("model.dims.CTX", LENGTH))
    return text + STAGE.format(
        name=name, objective=objective, weights=flow({"path": str(folder), "names": names}), tokenizer=tokenizer,
        length=min(LENGTH, longest),
    )  # fmt: skip


def flow(data: dict[str, Any]) -> str:
    """A mapping on one line."""
    return re.sub(r"\n\s*", " ", dump(data).strip())
