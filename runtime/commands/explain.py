"""`specc explain`: the page of an error code, or why a step or a parameter of a spec lies where it does on the mesh."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib import import_module
from importlib.resources import files
from pathlib import Path

from specc.spec.errors import Diagnostic, SpecError, did_you_mean


def run(args: argparse.Namespace) -> int:
    if args.path is not None:
        print(import_module("specc.runtime.whereabouts").explained(args.code, args.path, args.overrides, args.stage))
        return 0
    known = pages()
    if args.code is None:
        print("\n".join(text.split("\n", 1)[0].removeprefix("# ") for text in known.values()))
        return 0
    code = args.code.upper()
    if code not in known:
        raise SpecError(unknown(args.code, known))
    print(known[code], end="")
    return 0


def unknown(word: str, known: Iterable[str]) -> Diagnostic:
    """What is wrong with a word that is no code: if it is a spec, the path behind it is missing."""
    if word.endswith((".yaml", ".yml")) or Path(word).is_file():
        hint = f"specc explain {word} layers.attention.q, say"
        return Diagnostic("S304", f"'{word}' is a spec: the path of a step or a parameter is missing", hint=hint)
    return Diagnostic("S101", f"no error has the code '{word}'", hint=did_you_mean(word.upper(), known))


def pages() -> dict[str, str]:
    """The page of each code, in order."""
    found = [p for p in files("specc.spec.codes").iterdir() if p.name.endswith(".md")]
    return {p.name.removesuffix(".md"): p.read_text(encoding="utf-8") for p in sorted(found, key=lambda p: p.name)}
