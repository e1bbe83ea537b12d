"""`specc schema`: the JSON Schema of specs, which editors complete and check with."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from specc.compiler.schema import spec_schema
from specc.spec.spec import Spec


def run(args: argparse.Namespace) -> int:
    text = json.dumps(spec_schema(Spec), indent=1)
    if args.out is None:
        print(text)
        return 0
    Path(args.out).write_text(text + "\n", encoding="utf-8")
    print(f"{args.out}: written; put this line at the top of a spec:\n# yaml-language-server: $schema={args.out}")
    return 0
