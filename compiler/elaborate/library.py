"""The library of blocks: one YAML file each, read when a model uses it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from specc.compiler.elaborate.unit import Locate
from specc.spec.loader import load_text, validate
from specc.spec.model import Block


@cache
def library_names() -> list[str]:
    return sorted(
        p.name.removesuffix(".yaml") for p in files("specc.spec.library").iterdir() if p.name.endswith(".yaml")
    )


@cache
def library_block(name: str) -> tuple[Block, Locate] | None:
    """The block of a library file and where its parts stand, or None."""
    if name not in library_names():
        return None
    source = files("specc.spec.library") / f"{name}.yaml"
    document = load_text(source.read_text(encoding="utf-8"), f"specc:library/{name}.yaml")
    return validate(document, Block), document.mark
