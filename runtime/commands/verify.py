"""`specc verify`: run a spec in small on real processes, and compare it with one process."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from specc.runtime.errors import RunError
from specc.runtime.verify import TOLERANCE, Verdict, verify
from specc.spec.errors import Diagnostic, SpecError
from specc.spec.spec import load

SHOWN = 5  # gradients that differ most


def run(args: argparse.Namespace) -> int:
    spec = load(args.spec, args.overrides)
    if args.ranks < 2:
        raise SpecError(Diagnostic("S524", "one process has nothing to compare itself with", None, "--ranks 2 or more"))
    found = verify(spec, args.ranks, args.stage, args.allow_ops)
    if args.json:
        print(json.dumps({**asdict(found), "worst": found.worst, "agrees": found.agrees}, indent=1))
    else:
        print(told(found))
    if not found.agrees:
        raise RunError(
            f"the mesh differs from one process by {found.worst:.1e}; rounding gives less than {TOLERANCE:g}"
        )
    return 0


def told(v: Verdict) -> str:
    """The worst gradients, and the sum of it."""
    worst = sorted(v.grads.items(), key=lambda item: -item[1])[:SHOWN]
    wide = max(len(name) for name, _ in worst)
    dims = " ".join(f"{n}={size}" for n, size in v.dims.items())
    return "\n".join([
        f"{v.mesh}, in fp64, with {dims}",
        f"  {'loss':{wide}}  {v.loss:.1e}",
        *(f"  {name:{wide}}  {error:.1e}" for name, error in worst),
        f"the loss and {len(v.grads)} gradients agree with one process to {v.worst:.1e}" if v.agrees else "",
        f"not compared: {', '.join(v.left_out)} (--ranks {2 ** (len(v.left_out) + v.mesh.count('='))} or more)"
        if v.left_out else "",
    ]).rstrip()  # fmt: skip
