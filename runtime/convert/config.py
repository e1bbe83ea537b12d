"""The files of a published checkpoint that are no tensors: what they are called, and its config as a mapping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specc.runtime.errors import RunError

CONFIG, TENSORS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"


def read_json(file: Path) -> dict[str, Any]:
    """The mapping that a file of a checkpoint holds."""
    try:
        found = json.loads(file.read_bytes())
    except OSError as e:
        raise RunError(f"cannot read {file}: {e.strerror or e}") from None
    except (ValueError, RecursionError):
        raise RunError(f"{file} is not JSON") from None
    if not isinstance(found, dict):
        raise RunError(f"{file} does not hold a mapping")
    return found


def read_config(path: Path) -> dict[str, Any]:
    """The config of a checkpoint."""
    if not path.is_dir():
        raise RunError(f"there is no folder {path}")
    return read_json(path / CONFIG)
