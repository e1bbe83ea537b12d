"""`specc new`: a commented starter spec over a model of the library, or for a published checkpoint."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

from specc.runtime.commands.starter import checkpoint_starter, table_of
from specc.runtime.errors import RunError
from specc.spec.errors import Diagnostic, SpecError, did_you_mean
from specc.spec.model import ModelSpec
from specc.spec.spec import Spec

TEMPLATE = """\
# yaml-language-server: $schema=./specc.schema.json
# (write that file with `specc schema -o specc.schema.json`, and the editor completes this one)
specc: 1
name: {name}

# The architecture is `{model}` of the library. `specc show {file}` draws it, `specc show {file} --emit spec`
# writes it out in full. Any value of it may be replaced here by its path.
use: {model}
set:
{dims}

# plan:
#   precision: {{compute: bf16}}     # weights and optimizer stay fp32
#   compile: auto                   # auto | on | off
"""
STAGE = """
# Stages run in order; `specc run` skips what is done and goes on with what is half done.
stages:
  pretrain:
    objective: {objective}
    tokenizer: {{vocab: {vocab}}}        # trained on the data below; or {{file: tokenizer.json}}
    data:
      sources:
        - corpus: python-stdlib     # real text that every machine has; your own: {{path: data/, format: jsonl}}
      seq_len: 256
    batch: {{sequences: 16}}
    optimizer: {{lr: 1e-3, weight_decay: 0.1}}
    schedule: {{kind: cosine, warmup: 0.05}}
    budget: {{steps: 300}}            # or {{tokens: 20M}}
    eval: {{every: 100}}
    checkpoint: {{every: 100, keep: 2}}
"""
SAMPLE = """\
    sample: {prompts: ["def ", "import "]}
"""
SMALL = "  # model.dims.{name}: {value}"
# Objectives of the models that are not causal decoders.
OBJECTIVES = {"bert": "masked_lm", "t5": "span_corruption", "glm": "blank_infilling"}


def run(args: argparse.Namespace) -> int:
    models = library()
    if args.list or args.name is None:
        width = max(map(len, models))
        print("\n".join(f"{name:{width}}  {m.doc}" for name, m in models.items()))
        return 0
    model = args.model or "llama"
    if model not in models:
        raise SpecError(Diagnostic("S301", f"the library has no model '{model}'", hint=did_you_mean(model, models)))
    path = Path(args.out or f"{args.name}.yaml")
    if path.exists():
        raise RunError(f"{path} exists; name another file with --out")
    if args.checkpoint:
        folder = Path(args.checkpoint)
        names, table, config = table_of(folder, args.model)
        text = checkpoint_starter(
            args.name, folder, names, table, config, models[table.model], path, objective_of(table.model)
        )  # fmt: skip
    else:
        text = starter(args.name, model, models[model], path)
    path.write_text(text, encoding="utf-8")
    build = f"; specc build {path}" if "\nstages:" in text else ""
    print(f"{path}: written\nnext: specc check {path}; specc show {path}{build}")
    return 0


def library() -> dict[str, ModelSpec]:
    """The models of the library by name."""
    found = {}
    for source in sorted(files("specc.spec.models").iterdir(), key=lambda p: p.name):
        if source.name.endswith(".yaml"):
            spec = Spec.from_yaml(source.read_text(encoding="utf-8"), f"specc:models/{source.name}")
            if spec.model is not None:
                found[source.name.removesuffix(".yaml")] = spec.model
    return found


def objective_of(model: str) -> str:
    """What a model of the library is trained for."""
    return next((o for word, o in OBJECTIVES.items() if word in model), "causal_lm")


def starter(name: str, model: str, section: ModelSpec, path: Path) -> str:
    """The text of the new spec; a model that reads no tokens has no stage to start with."""
    dims = "\n".join(SMALL.format(name=n, value=v) for n, v in section.dims.items()) or "  {}"
    text = TEMPLATE.format(name=name, model=model, file=path, dims=dims)
    if "tokens" not in section.inputs or "labels" not in section.inputs:
        return text
    objective = objective_of(model)
    text += STAGE.format(objective=objective, vocab=section.dims.get("V", 8192))
    return text + (SAMPLE if objective == "causal_lm" else "")  # the others write no text from left to right
