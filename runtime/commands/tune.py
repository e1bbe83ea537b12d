"""`specc tune`: measure this machine, and write it down as a device that `specc plan --hardware` reads."""

from __future__ import annotations

import argparse
from pathlib import Path

from specc.runtime.tune import tune
from specc.spec.errors import Diagnostic, SpecError


def run(args: argparse.Namespace) -> int:
    if args.ranks < 1:
        raise SpecError(Diagnostic("S524", "a machine is measured in one process at least", None, "--ranks 1 or more"))
    text = tune(args.ranks, args.name)
    Path(args.out).write_text(text, encoding="utf-8")
    print(text, end="")
    print(f"\nwrote {args.out}; specc plan SPEC --hardware {args.out} --cluster {args.ranks}x{args.name}")
    return 0
