"""`specc run`: run the stages of a build (or of a spec, which is built first), and draw what came out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specc.runtime.commands.report import read_runs, write_page
from specc.runtime.device import ask
from specc.runtime.start import start, under_torchrun
from specc.runtime.terminal import has_progress
from specc.spec.errors import Diagnostic, SpecError


def run(args: argparse.Namespace) -> int:
    ask(args.device)
    target = Path(args.target)
    if (code := under_torchrun(target, args.stage)) is not None:
        return code
    if target.is_dir() and (args.overrides or args.out):
        hint = "give the spec file instead, or build it again"
        raise SpecError(Diagnostic("S304", f"{target} is a build: --set and --out act on specs alone", hint=hint))
    path = target if target.is_dir() else built(target, args)
    out = sys.stderr if args.json else sys.stdout
    bar = out if has_progress(out) else None
    build = start(
        path, args.stage, lambda line: print(line, file=out, flush=True), None, bar, args.nproc, args.max_restarts,
        "err" if args.json else "out",
    )  # fmt: skip
    page = write_page(build)
    if args.json:
        print(json.dumps({"build": str(path), "report": str(page), "stages": read_runs(build)}, indent=1))
    else:
        talks = any(not s.refusal for s in build.stages.values())
        print(f"\nlook: {page}" + (f"        talk: specc sample {path} --prompt TEXT" if talks else ""))
    return 0


def built(spec: Path, args: argparse.Namespace) -> Path:
    """The build that is made of a spec."""
    from specc.runtime.make import build_files  # late: it imports the compiler, which a build does without

    return build_files(spec, args.out, args.overrides, args.allow_ops)[1]
