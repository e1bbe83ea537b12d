"""`specc profile`: predicted beside measured, for each action of a step, for a step, and for memory."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from specc.compiler.units import size
from specc.runtime.device import ask
from specc.runtime.make import build_files
from specc.runtime.profile import Profile, profiles, trace


def run(args: argparse.Namespace) -> int:
    ask(args.device)
    target = Path(args.target)
    path = target if target.is_dir() else build_files(target, args.out, args.overrides, args.allow_ops)[1]
    found = profiles(path, args.stage, args.steps)
    if args.trace:
        Path(args.trace).write_text(json.dumps(trace(found)) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps([asdict(p) for p in found]))
        return 0
    print("\n\n".join(told(p) for p in found))
    if args.trace:
        print(f"\n{args.trace}: open it in chrome://tracing or Perfetto")
    else:
        print("\n--trace FILE writes the spans for Perfetto", file=sys.stderr)
    return 0


def told(p: Profile) -> str:
    """A table of the actions, and of the ops that took longest."""
    whole = p.seconds()
    rows = [["what", "times", "predicted", "measured", "share"]]
    for what, (n, seconds) in p.typical().items():
        foretold = ms(n * p.predicted[what]) if what in p.predicted else ""
        rows.append([what, str(n), foretold, ms(seconds), f"{seconds / whole:.0%}"])
    total = sum(n * p.predicted[w] for w, (n, _) in p.typical().items() if w in p.predicted)
    rows.append(["a step", "", ms(total), ms(whole), ""])
    ops = [["op, by itself", "times", "", "measured", "share"]]
    ops += [[o.name[:40], str(o.calls), "", ms(o.seconds), f"{o.seconds / whole:.0%}"] for o in p.ops]
    error = p.predicted_peak / p.peak - 1
    memory = f"tensors alive at most: {size(p.predicted_peak)} predicted, {size(p.peak)} measured ({error:+.1%})"
    return "\n".join([f"rank {p.rank}", *table([*rows, [""] * 5, *ops]), f"  {memory}"])


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
