"""`specc sample`: write text with the weights of a stage that was run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specc.runtime.api import trained, write_behind
from specc.runtime.built import open_build
from specc.runtime.sample import Choice
from specc.runtime.terminal import BOLD, has_colour, paint


def run(args: argparse.Namespace) -> int:
    build = open_build(Path(args.target))
    stage, loaded = trained(build, args.stage)
    choice = Choice(args.temperature, args.top_k, args.top_p, args.seed)
    found = []
    for prompt in args.prompts or stage.spec.sample.prompts or [""]:
        (written,) = write_behind(build, stage, loaded, [prompt], args.tokens, choice, args.raw)
        found.append({"prompt": prompt, "text": written})
        if not args.json:
            between = "\n" if stage.spec.has_chats and not args.raw else ""
            print(paint(prompt, BOLD, on=has_colour(sys.stdout)) + between + written + "\n")
    if args.json:
        print(json.dumps({"stage": stage.name, "step": loaded.step, "samples": found}, indent=1))
    return 0
