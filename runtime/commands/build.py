"""`specc build`: compile a spec to a directory, and say what it will take to run it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from specc.compiler.build import StageFacts, build_spec
from specc.compiler.units import count, duration, size
from specc.spec.spec import load


def run(args: argparse.Namespace) -> int:
    out = build_at(Path(args.spec), args.overrides, args.out, quiet=args.json)
    if args.json:
        print(json.dumps({"build": str(out)}))
    return 0


def build_at(path: Path, overrides: Sequence[str], out: str | None, quiet: bool = False) -> Path:
    """Build a spec file; where the build is."""
    began = time.monotonic()
    spec = load(path, overrides)
    target = Path(out) if out else Path("build") / spec.name
    facts = build_spec(spec, target)
    if not quiet:
        print("\n".join(line for f in facts for line in summary(f)))
        print(f"built {target} in {duration(time.monotonic() - began)}")
    return target


def summary(f: StageFacts) -> list[str]:
    """A stage in a few lines."""
    frozen = f"  ({count(f.params - f.trained)} frozen)" if f.params != f.trained else ""
    memory = ", ".join(f"{name} {size(n)}" for name, n in f.memory.items())
    blocks = ", ".join(f"{name} x{n}" if n > 1 else name for name, n in f.bodies.items())
    return [
        f"{f.name}: {count(f.params)} parameters{frozen}, {count(f.flops_per_token)} FLOPs a token, forward and back",
        f"  {f.steps} steps, {count(f.tokens)} tokens, {count(f.tokens * f.flops_per_token)} FLOPs in all",
        f"  memory: {memory}",
        f"  blocks: {blocks}",
    ]


def as_data(f: StageFacts) -> dict[str, object]:
    return asdict(f)
