"""`specc launch`: a job file that runs a build on a cluster."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from specc.runtime.built import Build, open_build
from specc.runtime.errors import RunError
from specc.runtime.jobs import KINDS, NAME, Job
from specc.runtime.start import ranks_of


def run(args: argparse.Namespace) -> int:
    build = open_build(Path(args.target))
    text = KINDS[args.kind](job_of(build, args))
    if args.out is None:
        print(text, end="")
    else:
        Path(args.out).write_text(text, encoding="utf-8")
        print(f"{args.out}: written")
    return 0


def job_of(build: Build, args: argparse.Namespace) -> Job:
    """The machines that a build's ranks fill. Raises RunError for numbers that do not fit."""
    n = ranks_of(build)
    per_node = min(args.per_node, n)
    if n % per_node:
        raise RunError(f"{n} ranks do not fill machines of {per_node}; give a --per-node that divides {n}")
    name = args.name or re.sub(r"[^a-z0-9]+", "-", build.name.lower()).strip("-")
    if not NAME.fullmatch(name):
        raise RunError(f"'{name}' is no name of a job: small letters, digits and '-', at most 52; give --name")
    device = next(iter(build.stages.values())).plan["cluster"]["device"]
    accelerator = args.accelerator or ("" if device == "cpu" else device.partition("-")[0].upper())
    return Job(
        name, str(build.path if args.kind == "k8s" else build.path.resolve()), n // per_node, per_node, accelerator,
        args.hours, args.image, args.claim,
    )  # fmt: skip
