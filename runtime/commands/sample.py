"""`specc sample`: write text with the weights of a stage that was run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from specc.runtime import checkpoint
from specc.runtime.built import Build, Stage, open_build
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.data.batches import render
from specc.runtime.errors import RunError
from specc.runtime.sample import Choice, write_text
from specc.runtime.terminal import BOLD, has_colour, paint
from specc.runtime.train import stage_folder
from specc.spec.errors import did_you_mean


def run(args: argparse.Namespace) -> int:
    build = open_build(Path(args.target))
    stage, loaded = trained(build, args.stage)
    params = loaded.tensors.get("ema", loaded.tensors["weights"])
    tokenizer = tokenizers.load(stage_folder(build, stage) / "tokenizer.json")
    choice = Choice(args.temperature, args.top_k, args.top_p, args.seed)
    found = []
    for prompt in args.prompts or stage.spec.sample.prompts or [""]:
        text = prompt if args.raw else in_template(stage, prompt)
        written = write_text(stage, params, tokenizer, text, args.tokens, choice)
        found.append({"prompt": prompt, "text": written})
        if not args.json:
            print(paint(prompt, BOLD, on=has_colour(sys.stdout)) + ("\n" if text != prompt else "") + written + "\n")
    if args.json:
        print(json.dumps({"stage": stage.name, "step": loaded.step, "samples": found}, indent=1))
    return 0


def trained(build: Build, name: str | None) -> tuple[Stage, checkpoint.Loaded]:
    """The stage that was asked for, or the last one that has a checkpoint."""
    if name is not None and name not in build.stages:
        raise RunError(f"the build has no stage '{name}': {did_you_mean(name, build.stages)}")
    for stage in reversed(build.stages.values()):
        if name in (None, stage.name):
            loaded = checkpoint.load_newest(stage_folder(build, stage) / "checkpoints")
            if loaded:
                return stage, loaded
    raise RunError(f"no checkpoint of {name or 'any stage'} yet; say `specc run {build.path}` first")


def in_template(stage: Stage, prompt: str) -> str:
    """The prompt as the stage's data had it: an sft stage's chat template, up to the answer."""
    if stage.spec.kind != "sft":
        return prompt
    return render(stage.spec.template, [{"role": "user", "content": prompt}]) + "<|im_start|>assistant\n"
