"""The loop of a stage: step after step, with evaluations, samples and checkpoints between them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specc.runtime import checkpoint, team
from specc.runtime.ahead import Later
from specc.runtime.allocator import Heap
from specc.runtime.built import Stage
from specc.runtime.data.batches import Batch, microbatches
from specc.runtime.data.prefetch import Prefetch
from specc.runtime.data.prepare import Prepared
from specc.runtime.errors import Stopped
from specc.runtime.evaluate import LOSS, validation, write_samples
from specc.runtime.executor import Executor, StepResult
from specc.runtime.health import Guard, find_bad
from specc.runtime.heartbeat import STARTING
from specc.runtime.metrics import Metrics
from specc.runtime.optimizer import Updater, learning_rate, scale, squares
from specc.runtime.progress import Progress, peak_memory
from specc.runtime.seat import Seat
from specc.runtime.signals import Signals

Say = Callable[[str], None]
Held = dict[str, float]  # the loss and the metrics of held-out rows
Microbatches = tuple[list[Batch], list[float]]
MAX_FAILED_SAVES = 3  # in a row; a disk that is full for a while does not end a run
WAIT = 0.2  # seconds between looks at the compiler
SAVING, SAMPLING = 1800.0, 600.0  # seconds that a rank may be silent at these
COMPUTED, AGREED, UPDATED = (1 << 40) + 1, (1 << 40) + 2, (1 << 40) + 3  # behind all actions of a step's schedule


@dataclass
class Run:
    """A stage under way; on a mesh, this rank's part of it."""

    stage: Stage
    folder: Path
    tokenizer: Tokenizer | None  # None where the model reads no text
    data: Prepared
    executor: Executor
    params: dict[str, Tensor]
    optimizer: Updater
    ema: dict[str, Tensor]
    metrics: Metrics | None
    say: Say
    step: int = 0
    seat: Seat = field(default_factory=Seat)
    signals: Signals = field(default_factory=Signals)
    guard: Guard = field(default_factory=Guard)
    failed_saves: int = 0
    later: Later | None = None
    heap: Heap = field(default_factory=Heap)

    @property
    def best(self) -> dict[str, Tensor]:
        """The weights that are evaluated, sampled and handed on: moving averages of those that are trained, if any."""
        return {**self.params, **self.ema}


@dataclass(frozen=True)
class Step:
    """What a step gave. `loss` and `norm` are not finite if it was skipped; `asked` is a signal that a rank got."""

    loss: float
    norm: float
    lr: float
    bad: list[str]
    seconds: dict[str, float]
    asked: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def train(run: Run, signals: Signals, progress: Progress) -> None:
    """Train to the end of the stage. Raises Stopped after a signal, with the state saved."""
    run.signals = signals
    with Prefetch(lambda step: batches_of(run, step), run.step, run.stage.spec.steps()) as ready:
        if run.step >= run.stage.spec.steps():  # it was stopped between its last checkpoint and the samples
            sample(run)
        held = train_on(run, progress, ready.take)
    finish(run, held)


def batches_of(run: Run, step: int) -> Microbatches:
    """Every rank makes the whole batch and takes its part, so that the order of samples depends on no mesh. It reads
    the pictures of its own part alone."""
    stage = run.stage
    kept = run.seat.kept(stage.spec.batch.size) if stage.reads_in_parts else None
    made, weights = microbatches(run.data.train, stage.spec, step, stage.fields, stage.compute, kept)
    return [run.seat.cut(b) for b in made], weights


def train_on(run: Run, progress: Progress, take: Callable[[int], Microbatches]) -> Held | None:
    """All steps that are left; what the last of them gave of validation."""
    spec, steps = run.stage.spec, run.stage.spec.steps()
    held: Held | None = None
    while run.step < steps:
        if run.later and run.step >= run.later.step:
            take_over(run, run.later, progress)
        made = one_step(run, steps, take)
        run.heap.settle()
        if run.later:
            run.later.start()
        run.step += 1
        run.seat.pulse.allow(0.0)  # the first step is behind: from now on steps say how long one takes
        asked = made.asked or (run.signals.asked if run.seat.team.size == 1 else None)
        last = run.step == steps
        held = None
        if last or run.step % spec.eval.every == 0:
            held = validation(run.stage, run.executor, run.best, run.data.validation, run.seat)
        report(run, made, held, progress)
        if last or run.step % spec.checkpoint.every == 0 or asked:
            save(run, must=last or bool(asked))
        if last or (spec.sample.every and run.step % spec.sample.every == 0):
            sample(run)
        if asked and not last:
            raise stopped(run, asked)
    return held


def take_over(run: Run, later: Later, progress: Progress) -> None:
    """Go on with compiled graphs, once they are there. Raises Stopped after a signal, with the state saved."""
    run.seat.pulse.restart(STARTING)
    progress.is_cold = True
    while True:
        told = run.seat.team.numbers([later.is_busy, float(run.signals.asked or 0)])
        if asked := int(told[:, 1].max()):
            if not checkpoint.is_there(run.folder / "checkpoints", run.step):
                save(run, must=True)
            raise stopped(run, asked)
        if not told[:, 0].any():
            break
        time.sleep(WAIT)
    if later.trouble:
        run.say(f"{run.stage.name}: {later.trouble}; they are compiled now")
    run.executor, run.later, run.heap = later.take(run.seat.team), None, Heap()
    run.say(f"{run.stage.name}: compiled graphs from step {run.step} on")


def stopped(run: Run, asked: int) -> Stopped:
    return Stopped(f"{run.stage.name}: saved at step {run.step}; run again to go on", asked)


def finish(run: Run, held: Held | None) -> None:
    """Mark the stage as done; also when only this was left to do."""
    if held is None:
        held = validation(run.stage, run.executor, run.best, run.data.validation, run.seat)
    done = {"step": run.step, **{f"validation_{n}": x for n, x in held.items()}, "skipped": run.guard.skipped}
    if run.seat.leads:
        temporary = run.folder / "done.tmp"
        checkpoint.write(temporary, json.dumps(done) + "\n")
        temporary.rename(run.folder / "done.json")
    team.wait(run.seat.team)
    run.say(f"{run.stage.name}: done, validation loss {held[LOSS]:.4f}{first_of(run.stage, held)}")


def one_step(run: Run, steps: int, take: Callable[[int], Microbatches] | None = None) -> Step:
    """Train on the step's batch; numbers that are not finite leave weights, moments and average alone, on all ranks."""
    spec, seat, begin = run.stage.spec, run.seat, time.perf_counter()
    seat.pulse.at(run.step)
    batches, weights = take(run.step) if take else batches_of(run, run.step)
    ready = time.perf_counter()
    run.executor.tell = lambda action: seat.pulse.at(run.step, seat.place(action) + 1)
    result = run.executor.step(run.params, batches, weights)
    loss = mean_loss(result, weights)
    seat.pulse.at(run.step, COMPUTED)
    computed = time.perf_counter()
    own = squares(result.grads, seat.owned(result.grads))
    said = [weighted(result.metrics.get(n, []), weights) for n in run.stage.metrics]
    told = seat.team.numbers([own, loss, float(run.signals.asked or 0), *said])
    seat.pulse.at(run.step, AGREED)
    loss = float(told[seat.makes_loss, 1])
    norm, asked = math.sqrt(float(told[:, 0].sum())), int(told[:, 2].max())
    lr = learning_rate(spec.schedule, spec.optimizer.lr, run.step, steps)
    bad: list[str] = []
    if bool(told[:, 1].isfinite().all()) and math.isfinite(norm):
        scale(result.grads, norm, spec.optimizer.clip)
        update(run, result.grads, lr)
    else:
        found = find_bad(run.executor, run.params, batches, result.grads)
        bad = seat.lists(found) or ["the norm of the gradients overflows"]
    seat.pulse.at(run.step, UPDATED)
    seconds = {"data": ready - begin, "compute": computed - ready, "optimizer": time.perf_counter() - computed}
    metrics = dict(zip(run.stage.metrics, told[seat.makes_loss, 3:].tolist(), strict=True))
    return Step(loss, norm, lr, bad, seconds, asked, metrics)


def mean_loss(result: StepResult, weights: list[float]) -> float:
    """Of the microbatches; 0 on a rank of a pipeline that does not make it."""
    return weighted(result.losses, weights)


def weighted(values: Sequence[Tensor], weights: Sequence[float]) -> float:
    return sum(float(x) * w for x, w in zip(values, weights, strict=True)) if values else 0.0


def first_of(stage: Stage, found: Held) -> str:
    """The first of the stage's metrics, in words."""
    name = next(iter(stage.metrics), None)
    return f"  {name.replace('_', ' ')} {found[name]:.3f}" if name else ""


def update(run: Run, grads: dict[str, Tensor], lr: float) -> None:
    run.optimizer.step(grads, lr)
    if run.ema and run.stage.spec.ema is not None:
        torch._foreach_lerp_(list(run.ema.values()), [run.params[n] for n in run.ema], 1 - run.stage.spec.ema)


def report(run: Run, made: Step, held: Held | None, progress: Progress) -> None:
    """Log and show the step; counts it if it was skipped, which may end the run."""
    facts: dict[str, object] = {"loss": made.loss, **made.metrics, "lr": made.lr, "grad_norm": made.norm}
    if held is not None:
        facts |= {f"validation_{n}": x for n, x in held.items()}
    if made.bad:
        facts["skipped"] = made.bad
    rate = progress.rate(run.step)
    facts |= {f"{run.stage.spec.unit}s_per_s": rate, "memory": peak_memory(), "seconds": made.seconds}
    if run.metrics:
        run.metrics.add(run.step, facts)
    validated = None if held is None else held[LOSS]
    progress.update(run.step, made.loss, rate, validated, first_of(run.stage, held or made.metrics))
    if not made.bad:
        run.guard.good()
        return
    told = "; ".join(made.bad[:3]) + (f"; {len(made.bad) - 3} more" if len(made.bad) > 3 else "")
    run.say(f"step {run.step}: loss {made.loss}, not finite: {told}; the step is skipped")
    run.guard.bad(run.step, told)


def sample(run: Run) -> None:
    """Rank 0 writes them, with the whole weights; the others go on to where they wait for it."""
    if not run.stage.spec.sample.prompts or run.tokenizer is None:
        return
    run.seat.pulse.allow(SAMPLING)
    params = run.seat.wholes(run.best, run.stage.shapes(), run.stage.compute)
    if run.metrics:
        for prompt, text in write_samples(run.stage, params, run.tokenizer, run.say, run.seat.pulse.touch):
            run.metrics.sample(run.step, prompt, text)
            run.say(f"  sample at {run.step}: {prompt!r} -> {text!r}")
    run.seat.pulse.allow(0.0)


def save(run: Run, must: bool) -> None:
    """Write a checkpoint. A failure is told and borne a few times, unless this is the checkpoint that counts."""
    spec, seat, root = run.stage.spec.checkpoint, run.seat, run.folder / "checkpoints"
    tensors = {"weights": run.params, "optimizer": run.optimizer.state()}
    if run.ema:
        tensors["ema"] = run.ema
    facts = {"stage": run.stage.name, "hash": run.stage.hash, "threads": torch.get_num_threads(),
             "torch": torch.__version__, "skipped": run.guard.skipped, "in_a_row": run.guard.in_a_row,
             "mesh": str(seat.sharding.mesh), "device": seat.device.type, "documents": run.data.documents,
             "microbatch": run.stage.spec.batch.size}  # fmt: skip
    seat.pulse.allow(SAVING)
    try:
        if run.metrics:
            run.metrics.sync()
        checkpoint.save(root, run.step, tensors, facts, seat.sharding, seat.team)
        if seat.leads:
            checkpoint.prune(root, spec.keep, spec.keep_every)
    except checkpoint.SaveError as e:
        run.failed_saves += 1
        if must or run.failed_saves >= MAX_FAILED_SAVES:
            raise
        run.say(f"step {run.step}: {e} (training goes on; failure {run.failed_saves} of {MAX_FAILED_SAVES})")
    else:
        run.failed_saves = 0
        seat.pulse.saved()
    seat.pulse.allow(0.0)
