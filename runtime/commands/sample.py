"""`specc sample`: write text with a trained model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from specc.runtime import checkpoint
from specc.runtime.built import open_build
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.data.batches import render
from specc.runtime.errors import RunError
from specc.runtime.sample import Choice, write_text
from specc.runtime.train import stage_folder


def run(args: argparse.Namespace) -> int:
    build = open_build(Path(args.target))
    ready = [s for s in build.stages.values() if (stage_folder(build, s) / "checkpoints").is_dir()]
    if args.stage:
        ready = [s for s in ready if s.name == args.stage]
    if not ready:
        raise RunError("no such stage was run; say 'specc run' first")
    stage = ready[-1]
    folder = stage_folder(build, stage)
    loaded = checkpoint.load_newest(folder / "checkpoints")
    assert loaded is not None
    weights = loaded.tensors.get("ema", loaded.tensors["weights"])
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    choice = Choice(args.temperature, args.top_k, args.top_p, args.seed)
    for prompt in args.prompts or stage.spec.sample.prompts or [""]:
        text = prompt
        if stage.spec.kind == "sft" and not args.raw:
            text = render(stage.spec.template, [{"role": "user", "content": prompt}]) + "<|im_start|>assistant\n"
        written = write_text(stage, weights, tokenizer, text, args.tokens, choice)
        print(json.dumps({"prompt": prompt, "text": written}) if args.json else f"{prompt}{written}\n")
    return 0
