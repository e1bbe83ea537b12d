"""One stage: prepare its data, then step after step; what was begun goes on from its newest good checkpoint."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specc.runtime import checkpoint
from specc.runtime.built import Build, Stage
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.data.batches import Prepared, batch, microbatches, prepare, render, stage_documents, unigram_entropy
from specc.runtime.errors import RunError
from specc.runtime.executor import Executor
from specc.runtime.optimizer import AdamW, bad_tensors, clip, learning_rate
from specc.runtime.sample import Choice, write_text

Say = Callable[[str], None]
MAX_SKIPPED = 5


class Stopped(Exception):
    """A signal asked to stop; the state is saved."""


@dataclass
class Signals:
    """SIGINT and SIGTERM as a flag that is read between steps; a second one acts at once."""

    asked: bool = False

    def __enter__(self) -> Signals:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


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
    say: Say
    step: int = 0
    skipped: int = 0

    def save(self) -> None:
        spec = self.stage.spec.checkpoint
        tensors = {"weights": self.params, "optimizer": self.optimizer.state()}
        if self.ema:
            tensors["ema"] = self.ema
        facts = {"stage": self.stage.name, "hash": self.stage.hash, "threads": torch.get_num_threads(),
                 "torch": torch.__version__, "skipped": self.skipped}  # fmt: skip
        checkpoint.save(self.folder / "checkpoints", self.step, tensors, facts)
        checkpoint.prune(self.folder / "checkpoints", spec.keep, spec.keep_every)

    def log(self, **facts: object) -> None:
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps({"step": self.step, **facts}) + "\n")

    def validation_loss(self) -> float:
        """Mean loss over the first batches of the held-out rows."""
        spec, rows = self.stage.spec, self.data.validation
        size = spec.batch.microbatch or spec.batch.sequences
        losses: list[float] = []
        for i in range(spec.eval.batches):
            chosen = [j % len(rows) for j in range(i * size, (i + 1) * size)]
            if i and i * size >= len(rows):
                break
            losses.append(float(self.executor.forward(self.params, batch(rows, chosen, self.stage.fields))["loss"]))
        return sum(losses) / len(losses)

    def samples(self) -> None:
        spec = self.stage.spec
        for prompt in spec.sample.prompts if self.stage.facts["decodes"] else []:
            text = prompt
            if spec.kind == "sft":
                text = render(spec.template, [{"role": "user", "content": prompt}]) + "<|im_start|>assistant\n"
            choice = Choice(spec.sample.temperature, seed=spec.seed)
            written = write_text(self.stage, self.params, self.tokenizer, text, spec.sample.tokens, choice)
            with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as f:
                f.write(json.dumps({"step": self.step, "prompt": prompt, "text": written}) + "\n")
            self.say(f"  sample at {self.step}: {prompt!r} -> {written!r}")


def stage_folder(build: Build, stage: Stage) -> Path:
    """Where a stage's run lives: beside the build, named by the stage's content."""
    return build.path.parent / f"{build.path.name}.runs" / f"{stage.name}-{stage.hash[:12]}"


def run_stage(build: Build, stage: Stage, base: Path, say: Say) -> str:
    """Run one stage to its end; says `done`, or what happened before. Raises Stopped after a signal."""
    folder = stage_folder(build, stage)
    if (folder / "done.json").is_file():
        say(f"{stage.name}: done before, skipped ({folder.name})")
        return "skipped"
    folder.mkdir(parents=True, exist_ok=True)
    run = begin(build, stage, folder, base, say)
    with Signals() as signals:
        train(run, signals)
    return "done"


def begin(build: Build, stage: Stage, folder: Path, base: Path, say: Say) -> Run:
    """Data, weights and optimizer: fresh, from the parent stage, or from the newest good checkpoint."""
    docs = stage_documents(stage.spec, base)
    tokenizer = find_tokenizer(build, stage, folder, base, [d.text for d in docs])
    data = prepare(stage.spec, docs, tokenizer)
    vocab = tokenizer.get_vocab_size()
    rows = next((p["shape"][0] for p in stage.params if p["dims"][0] == "V"), vocab)
    if vocab > rows:
        raise RunError(f"the tokenizer has {vocab} tokens, the model's table {rows} rows")
    master = torch.float64 if stage.plan["precision"]["master"] == "fp64" else torch.float32
    loaded = checkpoint.load_newest(folder / "checkpoints")
    if loaded:
        params = loaded.tensors["weights"]
        say(f"{stage.name}: goes on from step {loaded.step}" + "".join(f"; skipped {s}" for s in loaded.skipped))
    else:
        params = parent_weights(build, stage) or stage.initial(master)
        entropy = unigram_entropy(data.validation)
        say(
            f"{stage.name}: {len(data.train)} rows, {len(data.validation)} held out; unigram entropy {entropy:.3f} nats"
        )
        (folder / "facts.json").write_text(json.dumps({"unigram_entropy": entropy}) + "\n")
        (folder / "metrics.jsonl").write_text("")
    optimizer = AdamW(stage.spec.optimizer, {p: params[p] for p in stage.trainable()})
    ema = {n: t.clone() for n, t in params.items()} if stage.spec.ema else {}
    run = Run(stage, folder, tokenizer, data, stage.executor(), params, optimizer, ema, say)
    if loaded:
        run.step, run.skipped = loaded.step, int(loaded.facts["skipped"])
        optimizer.load(loaded.tensors["optimizer"])
        run.ema = loaded.tensors.get("ema", {})
        forget_after(folder / "metrics.jsonl", run.step)
    return run


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that will be done again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept: list[str] = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:
            break  # a line that a killed run left half written
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def find_tokenizer(build: Build, stage: Stage, folder: Path, base: Path, texts: list[str]) -> Tokenizer:
    """The stage's own tokenizer (trained once and kept), or its parent's."""
    kept = folder / "tokenizer.json"
    if kept.is_file():
        return tokenizers.load(kept)
    spec = stage.spec.tokenizer
    if spec is None:
        assert stage.spec.from_ is not None
        found = tokenizers.load(stage_folder(build, build.stages[stage.spec.from_]) / "tokenizer.json")
    elif spec.file:
        found = tokenizers.load(base / spec.file)
    else:
        found = tokenizers.train(texts[: spec.documents], spec.vocab)
    temporary = kept.with_suffix(".tmp")
    found.save(str(temporary))
    temporary.rename(kept)
    return found


def parent_weights(build: Build, stage: Stage) -> dict[str, Tensor] | None:
    """The weights that the stage starts from, if it names a stage."""
    if stage.spec.from_ is None:
        return None
    parent = build.stages[stage.spec.from_]
    loaded = checkpoint.load_newest(stage_folder(build, parent) / "checkpoints")
    if loaded is None:
        raise RunError(f"'{stage.name}' starts from '{parent.name}', which has not run")
    weights = loaded.tensors.get("ema", loaded.tensors["weights"])
    missing = [p["path"] for p in stage.params if p["path"] not in weights]
    if missing:
        raise RunError(f"'{parent.name}' has no parameter '{missing[0]}', which '{stage.name}' needs")
    return {p["path"]: weights[p["path"]] for p in stage.params}


def train(run: Run, signals: Signals) -> None:
    spec, steps = run.stage.spec, run.stage.spec.steps()
    began, first = time.monotonic(), run.step
    tokens = spec.batch.sequences * spec.data.seq_len
    while run.step < steps:
        loss, norm, lr = one_step(run, steps)
        run.step += 1
        rate = (run.step - first) * tokens / (time.monotonic() - began)
        facts: dict[str, object] = {"loss": loss, "lr": lr, "grad_norm": norm, "tokens_per_s": rate}
        if run.step % spec.eval.every == 0 or run.step == steps:
            facts["validation_loss"] = run.validation_loss()
        run.log(**facts)
        if "validation_loss" in facts or run.step in (1, steps):
            held = f"  validation {facts['validation_loss']:.4f}" if "validation_loss" in facts else ""
            left = (steps - run.step) * tokens / rate
            run.say(
                f"{run.stage.name} {run.step}/{steps}  loss {loss:.4f}{held}  {rate:.0f} tokens/s  {left:.0f} s left"
            )
        if run.step % spec.checkpoint.every == 0 or run.step == steps or signals.asked:
            run.save()
        if signals.asked and run.step < steps:
            raise Stopped(f"{run.stage.name}: saved at step {run.step}; run again to go on")
        if spec.sample.every and run.step % spec.sample.every == 0 and run.step < steps:
            run.samples()
    run.samples()
    final = run.validation_loss()
    (run.folder / "done.json").write_text(json.dumps({"step": run.step, "validation_loss": final}) + "\n")
    run.say(f"{run.stage.name}: done, validation loss {final:.4f}")


def one_step(run: Run, steps: int) -> tuple[float, float, float]:
    """Loss, gradient norm and learning rate of a step; numbers that are not finite leave the weights alone."""
    spec = run.stage.spec
    batches, weights = microbatches(run.data.train, spec, run.step, run.stage.fields)
    result = run.executor.step(run.params, batches, weights)
    loss = sum(float(x) * w for x, w in zip(result.losses, weights, strict=True))
    norm = clip(result.grads, spec.optimizer.clip)
    lr = learning_rate(spec.schedule, spec.optimizer.lr, run.step, steps)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        run.skipped += 1
        bad = bad_tensors(result.grads)
        run.say(f"step {run.step}: loss {loss}, the step is skipped; {'; '.join(bad[:3])}")
        if run.skipped > MAX_SKIPPED:
            raise RunError(f"more than {MAX_SKIPPED} steps had numbers that are not finite: {'; '.join(bad[:3])}")
        return loss, norm, lr
    run.optimizer.step(result.grads, lr)
    if run.ema and spec.ema is not None:
        torch._foreach_lerp_(list(run.ema.values()), [run.params[n] for n in run.ema], 1 - spec.ema)
    return loss, norm, lr
