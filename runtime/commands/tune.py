"""`specc tune`: measure the graphs of a build on this machine, or the machine itself as a device for `specc plan`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from specc.runtime.built import open_build
from specc.runtime.commands.profile import ms, table
from specc.runtime.device import ask, here
from specc.runtime.measure import measure
from specc.runtime.tune import tune
from specc.runtime.tuned import FILE, Tuned, save

MOST_OPS = 12


def run(args: argparse.Namespace) -> int:
    return tune_build(Path(args.build), args.device) if args.build is not None else tune_machine(args)


def tune_machine(args: argparse.Namespace) -> int:
    text = tune(args.ranks, args.name)
    Path(args.out).write_text(text, encoding="utf-8")
    print(text, end="")
    print(f"\nwrote {args.out}; specc plan SPEC --hardware {args.out} --cluster {args.ranks}x{args.name}")
    return 0


def tune_build(path: Path, device: str | None) -> int:
    ask(device)
    tuned = measure(open_build(path), here())
    save(tuned, path)
    print("\n".join(told(tuned)))
    print(f"\nwrote {path / FILE}: specc run and specc profile predict by it on this machine")
    return 0


def told(tuned: Tuned) -> Iterator[str]:
    """A call of each graph, as it is and compiled, and the ops of all graphs that take longest."""
    for stage, graphs in tuned.graphs.items():
        rows = [["graph", "a call", "compiled"]]
        rows += [[name, ms(s.plain), ms(s.compiled)] for name, s in graphs.items()]
        yield from (f"{stage}: graphs measured on {tuned.device}, {tuned.threads} threads", *table(rows), "")
    ops = [[o.name, str(o.calls), ms(o.seconds)] for o in tuned.ops[:MOST_OPS]]
    yield from table([["op", "times", "in all"], *ops])
