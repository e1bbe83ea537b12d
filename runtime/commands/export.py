"""`specc export`: hand a trained stage on to transformers and what reads its files."""

from __future__ import annotations

import argparse
from pathlib import Path

from specc.runtime.api import export


def run(args: argparse.Namespace) -> int:
    stage, step = export(Path(args.target), args.out, args.stage, args.dtype, args.names, args.adapter)
    print(f"{args.out}: '{stage}' of step {step}, written in {args.dtype}")
    return 0
