"""What a model under training is worth: its loss on held-out rows, and texts that it writes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from tokenizers import Tokenizer
from torch import Tensor

from specc.compiler.ops.loss import IGNORE
from specc.runtime.built import Stage
from specc.runtime.data.batches import batch, counted
from specc.runtime.data.objectives import Rows
from specc.runtime.errors import RunError
from specc.runtime.executor import Executor
from specc.runtime.sample import Choice, write_text
from specc.runtime.seat import Seat

ALONE_HERE = Seat()
LOSS = "loss"


def validation_loss(
    stage: Stage, executor: Executor, params: Mapping[str, Tensor], rows: Rows, seat: Seat = ALONE_HERE
) -> float:
    """Mean loss over the labels of the first held-out rows."""
    return validation(stage, executor, params, rows, seat)[LOSS]


def validation(
    stage: Stage, executor: Executor, params: Mapping[str, Tensor], rows: Rows, seat: Seat = ALONE_HERE
) -> dict[str, float]:
    """Mean `loss` and metrics over the labels (or pairs of answers) of the first held-out rows, each row once: of as
    many as `eval.batches` steps take, by microbatches, so that the plan does not choose the rows.

    Nothing takes a row without labels out of a batch's mean: where the model takes none, the rows are those of whole
    steps, and fewer than one step has come round again until it is full."""
    size, each = stage.spec.batch.size, stage.spec.batch.sequences
    n = min(stage.spec.eval.batches * each, len(rows))
    read = n if "labels" in stage.fields else max(each, n - n % each)
    names = [LOSS, *stage.metrics]
    totals, labels = dict.fromkeys(names, 0.0), 0
    for begin in range(0, read, size):
        chosen = [j % n for j in range(begin, begin + size)]
        made = batch(rows, chosen, stage.fields, stage.compute, seat.kept(size) if stage.reads_in_parts else None)
        if "labels" in made:
            made["labels"][n - begin :] = IGNORE  # rows that fill up the batch were counted before
            count = counted({k: made[k].numpy() for k in ("labels", "doc") if k in made}, stage.spec)
        else:
            count = size
        if count:
            found = executor.forward(params, seat.cut(made))
            totals |= {k: totals[k] + float(found[k]) * count for k in names if k in found}
            labels += count
        seat.pulse.touch()
    return {k: x / labels if labels else math.nan for k, x in zip(names, seat.of_loss(*totals.values()), strict=True)}


def write_samples(
    stage: Stage,
    params: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    say: Callable[[str], None],
    touch: Callable[[], None] = lambda: None,
) -> list[tuple[str, str]]:
    """The prompts of the stage and what the model writes behind them; a prompt that fails is told and left out."""
    spec = stage.spec
    made: list[tuple[str, str]] = []
    if spec.sample.prompts and stage.refusal:
        say(f"  no samples: {stage.refusal}")
        return made
    for prompt in spec.sample.prompts:
        choice = Choice(spec.sample.temperature, seed=spec.seed)
        touch()
        try:
            made.append((prompt, write_text(stage, params, tokenizer, prompt, spec.sample.tokens, choice)))
        except RunError as e:
            say(f"  no sample of {prompt!r}: {e}")
    return made
