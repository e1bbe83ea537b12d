"""`specc run`: run the stages of a build (or of a spec, which is built first)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from specc.runtime.commands.build import build_at
from specc.runtime.run import run_build
from specc.runtime.train import stage_folder


def run(args: argparse.Namespace) -> int:
    target = Path(args.target)
    path = target if target.is_dir() else build_at(target, args.overrides, args.out, quiet=args.json)
    build = run_build(path, args.stage, say=(lambda _: None) if args.json else print)
    if args.json:
        print(json.dumps({n: str(stage_folder(build, s)) for n, s in build.stages.items()}))
    return 0
