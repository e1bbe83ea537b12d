"""The loop of a stage: step after step, with evaluations, samples and checkpoints between them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specc.runtime import checkpoint
from specc.runtime.built import Stage
from specc.runtime.data.batches import Batch, microbatches
from specc.runtime.data.prefetch import Prefetch
from specc.runtime.data.prepare import Prepared
from specc.runtime.errors import Stopped
from specc.runtime.evaluate import validation_loss, write_samples
from specc.runtime.executor import Executor
from specc.runtime.health import Guard, find_bad
from specc.runtime.metrics import Metrics
from specc.runtime.optimizer import AdamW, clip, learning_rate
from specc.runtime.progress import Progress, peak_memory
from specc.runtime.signals import Signals

Say = Callable[[str], None]
Microbatches = tuple[list[Batch], list[float]]
MAX_FAILED_SAVES = 3  # in a row; a disk that is full for a while does not end a run


@dataclass
class Run:
    """A stage under way."""

    stage: Stage
    folder: Path
    tokenizer: Tokenizer
    data: Prepared
    executor: Executor
    params: dict[str, Tensor]
    optimizer: AdamW
    ema: dict[str, Tensor]
    metrics: Metrics
    say: Say
    step: int = 0
    guard: Guard = field(default_factory=Guard)
    failed_saves: int = 0

    @property
    def best(self) -> dict[str, Tensor]:
        """The weights that are evaluated, sampled and handed on: the moving average where there is one."""
        return self.ema or self.params


@dataclass(frozen=True)
class Step:
    """What a step gave. `loss` and `norm` are not finite if it was skipped."""

    loss: float
    norm: float
    lr: float
    bad: list[str]
    seconds: dict[str, float]


def train(run: Run, signals: Signals, progress: Progress) -> None:
    """Train to the end of the stage. Raises Stopped after a signal, with the state saved."""
    with Prefetch(lambda step: batches_of(run, step), run.step, run.stage.spec.steps()) as ready:
        held = train_on(run, signals, progress, ready.take)
    finish(run, held)


def batches_of(run: Run, step: int) -> Microbatches:
    return microbatches(run.data.train, run.stage.spec, step, run.stage.fields)


def train_on(run: Run, signals: Signals, progress: Progress, take: Callable[[int], Microbatches]) -> float | None:
    """All steps that are left; the validation loss if the last of them gave it."""
    spec, steps = run.stage.spec, run.stage.spec.steps()
    held: float | None = None
    while run.step < steps:
        made = one_step(run, steps, take)
        run.step += 1
        last = run.step == steps
        held = None
        if last or run.step % spec.eval.every == 0:
            held = validation_loss(run.stage, run.executor, run.best, run.data.validation)
        report(run, made, held, progress)
        if last or (spec.sample.every and run.step % spec.sample.every == 0):
            sample(run)
        if last or run.step % spec.checkpoint.every == 0 or signals.asked:
            save(run, must=last or signals.asked is not None)
        if signals.asked and not last:
            raise Stopped(f"{run.stage.name}: saved at step {run.step}; run again to go on", signals.asked)
    return held


def finish(run: Run, held: float | None) -> None:
    """Mark the stage as done; also when only this was left to do."""
    if held is None:
        held = validation_loss(run.stage, run.executor, run.best, run.data.validation)
    done = {"step": run.step, "validation_loss": held, "skipped": run.guard.skipped}
    temporary = run.folder / "done.tmp"
    checkpoint.write(temporary, json.dumps(done) + "\n")
    temporary.rename(run.folder / "done.json")
    run.say(f"{run.stage.name}: done, validation loss {held:.4f}")


def one_step(run: Run, steps: int, take: Callable[[int], Microbatches] | None = None) -> Step:
    """Train on the step's batch; numbers that are not finite leave weights, moments and average alone."""
    spec, begin = run.stage.spec, time.perf_counter()
    batches, weights = take(run.step) if take else batches_of(run, run.step)
    ready = time.perf_counter()
    result = run.executor.step(run.params, batches, weights)
    loss = sum(float(x) * w for x, w in zip(result.losses, weights, strict=True))
    computed = time.perf_counter()
    norm = clip(result.grads, spec.optimizer.clip)
    lr = learning_rate(spec.schedule, spec.optimizer.lr, run.step, steps)
    bad: list[str] = []
    if math.isfinite(loss) and math.isfinite(norm):
        update(run, result.grads, lr)
    else:
        bad = find_bad(run.executor, run.params, batches, result.grads) or ["the norm of the gradients overflows"]
    seconds = {"data": ready - begin, "compute": computed - ready, "optimizer": time.perf_counter() - computed}
    return Step(loss, norm, lr, bad, seconds)


def update(run: Run, grads: dict[str, Tensor], lr: float) -> None:
    run.optimizer.step(grads, lr)
    if run.ema and run.stage.spec.ema is not None:
        torch._foreach_lerp_(list(run.ema.values()), [run.params[n] for n in run.ema], 1 - run.stage.spec.ema)


def report(run: Run, made: Step, held: float | None, progress: Progress) -> None:
    """Log and show the step; counts it if it was skipped, which may end the run."""
    facts: dict[str, object] = {"loss": made.loss, "lr": made.lr, "grad_norm": made.norm}
    if held is not None:
        facts["validation_loss"] = held
    if made.bad:
        facts["skipped"] = made.bad
    rate = progress.rate(run.step)
    facts |= {"tokens_per_s": rate, "memory": peak_memory(), "seconds": made.seconds}
    run.metrics.add(run.step, facts)
    progress.update(run.step, made.loss, rate, held)
    if not made.bad:
        run.guard.good()
        return
    told = "; ".join(made.bad[:3]) + (f"; {len(made.bad) - 3} more" if len(made.bad) > 3 else "")
    run.say(f"step {run.step}: loss {made.loss}, not finite: {told}; the step is skipped")
    run.guard.bad(run.step, told)


def sample(run: Run) -> None:
    for prompt, text in write_samples(run.stage, run.best, run.tokenizer, run.say):
        run.metrics.sample(run.step, prompt, text)
        run.say(f"  sample at {run.step}: {prompt!r} -> {text!r}")


def save(run: Run, must: bool) -> None:
    """Write a checkpoint. A failure is told and borne a few times, unless this is the checkpoint that counts."""
    spec = run.stage.spec.checkpoint
    tensors = {"weights": run.params, "optimizer": run.optimizer.state()}
    if run.ema:
        tensors["ema"] = run.ema
    facts = {"stage": run.stage.name, "hash": run.stage.hash, "threads": torch.get_num_threads(),
             "torch": torch.__version__, "skipped": run.guard.skipped, "in_a_row": run.guard.in_a_row}  # fmt: skip
    try:
        run.metrics.sync()
        checkpoint.save(run.folder / "checkpoints", run.step, tensors, facts)
        checkpoint.prune(run.folder / "checkpoints", spec.keep, spec.keep_every)
    except checkpoint.SaveError as e:
        run.failed_saves += 1
        if must or run.failed_saves >= MAX_FAILED_SAVES:
            raise
        run.say(f"step {run.step}: {e} (training goes on; failure {run.failed_saves} of {MAX_FAILED_SAVES})")
    else:
        run.failed_saves = 0
