"""What is wrong with a stage's training of a model, from the two alone."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from specc.compiler.program import Program
from specc.compiler.types import size_of
from specc.spec.errors import Diagnostic, did_you_mean
from specc.spec.spec import Spec

NO_LOSS = "S307"
TABLE = "V"  # the dim that tables of tokens have, by its name


def training_mistakes(spec: Spec, name: str, program: Program) -> Iterator[Diagnostic]:
    """A model without a loss, optimizer patterns that no parameter matches, more tokens than the model's table has."""
    stage = spec.stages[name]
    if program.loss is None:
        mark = spec.mark(spec.model_section(stage.model)[2])
        yield Diagnostic(NO_LOSS, "the model has no loss to train", mark, "add 'loss:'")
    o = stage.optimizer
    groups = [(("groups", i, "match"), g.match) for i, g in enumerate(o.groups)]
    for at, pattern in [*((("no_decay", i), p) for i, p in enumerate(o.no_decay)), *groups]:
        if not any(fnmatchcase(p, pattern) for p in program.params):
            mark = spec.mark(("stages", name, "optimizer", *at))
            hint = did_you_mean(pattern.strip("*."), {p.rsplit(".", 1)[0] for p in program.params})
            yield Diagnostic("S108", f"no parameter matches '{pattern}'", mark, hint)
    rows = next((size_of(p.type.dims[0], {}) for p in program.params.values() if p.type.dims[0].name == TABLE), None)
    if stage.tokenizer is not None and stage.tokenizer.file is None and rows and stage.tokenizer.vocab > rows:
        mark = spec.mark(("stages", name, "tokenizer", "vocab"))
        text = f"a tokenizer of {stage.tokenizer.vocab:,} tokens, and a model whose table has {rows:,} rows"
        yield Diagnostic("S309", text, mark, f"vocab: {rows}, or model.dims.{TABLE}: {stage.tokenizer.vocab}")
