"""`python -m tests.parity DIR [--json OUT]`: every reference case of a directory for which there is a model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from specc.runtime.errors import RunError
from specc.spec.errors import SpecError
from tests.parity.case import run_case, tables


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("dir", type=Path, help="a directory with one folder for each case")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all errors as JSON")
    options = parser.parse_args(args)
    torch.set_num_threads(1)
    known, lines, failed, other = tables(), [], 0, []
    for folder in sorted(p.parent for p in options.dir.glob("*/meta.json")):
        if folder.name not in known:
            other.append(folder.name)
            continue
        try:
            r = run_case(folder, known[folder.name])
        except (RunError, SpecError, ValueError) as e:
            failed += 1
            lines.append({"case": folder.name, "error": str(e)})
            print(f"FAIL {folder.name:28s} {e}", flush=True)
            continue
        failed += not r.passed
        top = [max(errors.values(), default=0.0) for errors in (r.outputs, r.grads)]
        lines.append({**vars(r), "max_output_error": top[0], "max_grad_error": top[1], "passed": r.passed})
        verdict = "ok  " if r.passed else "FAIL"
        counts = f"{len(r.outputs)} outputs, {len(r.grads)} gradients"
        print(f"{verdict} {folder.name:28s} outputs {top[0]:.2e}  gradients {top[1]:.2e}  <= {r.tolerance:.0e} "
              f"{r.dtype}, {counts}", flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    print(f"{len(lines) - failed} passed, {failed} failed" + (f"; no model: {', '.join(other)}" if other else ""))
    return 1 if failed or not lines else 0


if __name__ == "__main__":
    sys.exit(main())
