"""`specc explain`: the page of an error code, or why a step or a parameter of a spec lies where it does on the mesh."""

from __future__ import annotations

import argparse
from importlib import import_module
from importlib.resources import files

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
        raise SpecError(Diagnostic("S101", f"no error has the code '{args.code}'", hint=did_you_mean(code, known)))
    print(known[code], end="")
    return 0


def pages() -> dict[str, str]:
    """The page of each code, in order."""
    found = [p for p in files("specc.spec.codes").iterdir() if p.name.endswith(".md")]
    return {p.name.removesuffix(".md"): p.read_text(encoding="utf-8") for p in sorted(found, key=lambda p: p.name)}
