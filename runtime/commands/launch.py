"""`specc launch`: a job file that runs a build on a cluster."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from specc.runtime.built import Build, open_build
from specc.runtime.errors import RunError
from specc.runtime.jobs import KINDS, NAME, Job
from specc.runtime.start import ranks_of
from specc.spec.errors import Diagnostic, SpecError


def run(args: argparse.Namespace) -> int:
    kind = kind_of(args)
    text = KINDS[kind](job_of(open_build(Path(args.target)), kind, args))
    if args.out is None:
        print(text, end="")
    else:
        Path(args.out).write_text(text, encoding="utf-8")
        print(f"{args.out}: written")
    return 0


def kind_of(args: argparse.Namespace) -> str:
    """The one kind of file that is asked for."""
    kinds = list(dict.fromkeys(args.kinds or ["slurm"]))
    if len(kinds) > 1:
        asked = " and ".join(f"--{kind}" for kind in kinds)
        raise SpecError(Diagnostic("S304", f"a job file is of one kind, not of {asked}", hint="give one of them"))
    return str(kinds[0])


def job_of(build: Build, kind: str, args: argparse.Namespace) -> Job:
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
        name, str(build.path if kind == "k8s" else build.path.resolve()), n // per_node, per_node, accelerator,
        args.hours, args.image, args.claim,
    )  # fmt: skip
