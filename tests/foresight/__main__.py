"""python -m tests.foresight ROWS.json: seconds of a step as specc predicts them, beside those that were published.

The file has `rows`, each with `model`, `hardware`, `parallel` and `reported` (see tests/foresight/rows.json)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from specc.compiler.hardware.tables import hardware
from tests.foresight.best import best, outcome
from tests.foresight.compare import compare, line, summary
from tests.foresight.ranking import rankings


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.foresight", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", action="store_true", help="print each row too")
    parser.add_argument(
        "--search", action="store_true", help="search for a faster plan than each dense row's (takes long)"
    )
    parser.add_argument("--hardware", type=Path, help="a file of devices, links and software beside specc's own")
    args = parser.parse_args()
    rows = json.loads(args.file.read_text(encoding="utf-8"))["rows"]
    found, left = compare(rows, hardware(args.hardware))
    if args.rows:
        print("\n".join(line(c) for c in found), end="\n\n")
    print("\n".join(summary(found)))
    print("rank correlation of predicted and reported speed, by model", *rankings(found), sep="\n")
    if args.search:
        print("the search's plan beside the published one", *outcome(best(found, hardware(args.hardware))), sep="\n")
    print("not predicted")
    print("\n".join(f"  {n:>4} rows: {why}" for why, n in sorted(left.items())))


if __name__ == "__main__":
    main()
