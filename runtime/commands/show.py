"""`specc show`: a spec's model as a tree or its program as text; of a build also its graphs and schedule."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from specc.compiler.cost import n_params, program_cost
from specc.compiler.program import Program
from specc.compiler.show import model_tree, work_table
from specc.runtime.commands.check import asked_by, programs
from specc.spec.errors import Diagnostic, SpecError, did_you_mean
from specc.spec.spec import Spec, load

SHOWN_LENGTH = 1024  # tokens a sequence, where no stage says it
# What a build holds as text: the files of each choice of `--emit` below stages/NAME/.
FILES = {"program": "program.txt", "graphs": "graphs/*.txt", "schedule": "schedule*.txt"}


def run(args: argparse.Namespace) -> int:
    target = Path(args.target)
    if target.is_dir():
        print("\n".join(from_build(target, args.emit, args.stage, args.block)))
        return 0
    spec = load(target, args.overrides)
    if args.emit in ("graphs", "schedule"):
        hint = f"specc build {target} -o build/{spec.name}; specc show build/{spec.name} --emit {args.emit}"
        raise SpecError(Diagnostic("S304", f"the {args.emit} of a spec are made by a build", hint=hint))
    if args.emit == "spec":
        print(spec.to_yaml(), end="")
        return 0
    shown = [(p, sizes(spec, p, args.stage)) for p in chosen(spec, args.stage)]
    if args.json:
        print(json.dumps([as_data(p, s) for p, s in shown], indent=1))
        return 0
    for p, s in shown:
        print(one_block(p, args.block) if args.emit == "program" or args.block else tree(p, s))
    return 0


def chosen(spec: Spec, stage: str | None) -> list[Program]:
    """Each model once, or the model of one stage under its objective."""
    found = programs(spec)
    if stage is None:
        return list({p.name: p for p in found.values()}.values())
    if stage not in spec.stages:
        raise SpecError(Diagnostic("S302", f"no stage is called '{stage}'", hint=did_you_mean(stage, spec.stages)))
    return [found[asked_by(spec, spec.stages[stage])]]


def sizes(spec: Spec, program: Program, stage: str | None) -> dict[str, int]:
    """Sizes for the open dims: one sequence of the stage's length."""
    section = spec.stages[stage] if stage else next(iter(spec.stages.values()), None)
    length = section.data.seq_len if section else SHOWN_LENGTH
    return {name: 1 if name == "B" else length for name in program.open_dims()}


def tree(program: Program, bound: dict[str, int]) -> str:
    tokens = max(bound.values(), default=1)
    return f"{model_tree(program)}\n\n{work_table(program, bound, tokens)}\n"


def one_block(program: Program, name: str | None) -> str:
    if name is None:
        return str(program)
    if name not in program.bodies:
        raise SpecError(Diagnostic("S106", f"no block is called '{name}'", hint=did_you_mean(name, program.bodies)))
    return str(program.bodies[name])


def as_data(program: Program, bound: dict[str, int]) -> dict[str, object]:
    return {
        "name": program.name,
        "parameters": n_params(program),
        "trained": n_params(program, trainable=True),
        "flops_per_token": program_cost(program, bound).flops / max(bound.values(), default=1),
        "blocks": {name: sum(c.body == name for c in program.calls) for name in program.bodies},
        "inputs": {name: t.shown() for name, t in program.inputs.items()},
        "outputs": list(program.outputs),
    }


def from_build(build: Path, emit: str, stage: str | None, block: str | None) -> Iterator[str]:
    """The texts that a build holds, each behind its path."""
    if emit == "spec":
        yield (build / "spec.yaml").read_text(encoding="utf-8")
        return
    pattern = FILES.get(emit, FILES["program"])
    found = sorted(build.glob(f"stages/{stage or '*'}/{pattern}"))
    if block is not None:
        found = [p for p in found if p.name.split(".")[0] == block]
    if not found:
        raise SpecError(Diagnostic("S304", f"{build} has no {emit}" + (f" of '{block}'" if block else "")))
    for path in found:
        yield f"# {path.relative_to(build)}"
        yield path.read_text(encoding="utf-8")
