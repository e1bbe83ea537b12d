"""`specc diff`: what differs between two builds."""

from __future__ import annotations

import argparse
from pathlib import Path

from specc.compiler.compare import compare
from specc.runtime.built import open_build


def run(args: argparse.Namespace) -> int:
    a, b = (open_build(Path(path)).path for path in (args.a, args.b))
    print(compare(a, b))
    return 0
