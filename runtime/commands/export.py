"""`specc export`: hand a trained stage on to transformers and what reads its files."""

from __future__ import annotations

import argparse
from pathlib import Path

from specc.runtime.api import export
from specc.runtime.convert.adapter import CONFIG
from specc.runtime.convert.config import read_json


def run(args: argparse.Namespace) -> int:
    stage, step = export(Path(args.target), args.out, args.stage, args.dtype, args.names, args.adapter)
    print(f"{args.out}: '{stage}' of step {step}, written in {args.dtype}")
    if args.adapter and read_json(Path(args.out) / CONFIG)["base_model_name_or_path"] is None:
        print("it stands beside what the stage started from: export that, too")
    return 0
