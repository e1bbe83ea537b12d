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


def library_block(name: str) -> tuple[Block, Locate] | None:
    """The block of a library file and where its parts stand, or None."""
    return _block("library", name) if name in library_names() else None


def objective_block(name: str) -> tuple[Block, Locate]:
    """A block that a stage puts in place of a model's loss."""
    return _block("objectives", name)


@cache
def _block(folder: str, name: str) -> tuple[Block, Locate]:
    source = files(f"specc.spec.{folder}") / f"{name}.yaml"
    document = load_text(source.read_text(encoding="utf-8"), f"specc:{folder}/{name}.yaml")
    return validate(document, Block), document.mark
