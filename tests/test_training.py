"""Steps of a tiny model: accumulation, precision, the moving average, the guard, what is logged, and what is shown."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from specc.compiler.elaborate import elaborate_model
from specc.compiler.ops.loss import IGNORE
from specc.runtime import checkpoint, metrics
from specc.runtime.built import Build
from specc.runtime.data.batches import batch
from specc.runtime.errors import RunError
from specc.runtime.evaluate import validation_loss
from specc.runtime.loop import Run, one_step, report
from specc.runtime.metrics import Metrics, forget_after
from specc.runtime.optimizer import clip
from specc.runtime.progress import Progress
from specc.runtime.run import run_build
from specc.runtime.signals import Signals
from specc.runtime.terminal import has_progress
from specc.runtime.train import stage_folder
from specc.spec.model import ModelSpec
from specc.spec.stage import Batch, Eval
from tests.parity.case import executor
from tests.training import begun, made, write_spec


def steps(run: Run, n: int) -> list[float]:
    """The losses of n steps."""
    losses = []
    for _ in range(n):
        losses.append(one_step(run, 6).loss)
        run.step += 1
    return losses


def folder_of(build: Build) -> Path:
    return stage_folder(build, next(iter(build.stages.values())))


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t.clone() for n, t in tensors.items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The build without overrides."""
    return made(tmp_path_factory.mktemp("plain"))


def test_accumulation_equals_the_big_batch(tmp_path: Path) -> None:
    """In fp64, where sums in another order agree to many digits; eps keeps AdamW from blowing up their difference."""
    write_spec(tmp_path, "plan: {precision: {compute: fp64, master: fp64, reduce: fp64}}")
    sizes = [(f"batch.microbatch={n}", f"of{n}") for n in (1, 2, 4)]
    runs = [begun(made(tmp_path, size, "optimizer.eps=1e-4", name=name)) for size, name in sizes]
    losses = [steps(run, 3) for run in runs]
    assert losses[0] == pytest.approx(losses[2], rel=1e-13)
    assert losses[1] == pytest.approx(losses[2], rel=1e-13)
    for run in runs[:2]:
        for name, t in run.params.items():
            assert t.dtype == torch.float64
            torch.testing.assert_close(t, runs[2].params[name], rtol=1e-11, atol=1e-13)


def test_parameters_with_one_gradient_do_not_share_its_sum() -> None:
    """Those of a and b in x + a + b: added up over microbatches in place, each of its own."""
    steps = [{"param": {"shape": "D", "name": n}, "as": n} for n in "ab"]
    model = {"dims": {"D": 4}, "inputs": {"x": "float[B D]"}, "loss": "loss", "outputs": {}}
    model["steps"] = [*steps, {"expr": "square(x + a + b)"}, {"sum": {}, "as": "loss"}]
    program = elaborate_model(ModelSpec.model_validate(model), "m")
    batches = [{"x": torch.full((3, 4), float(m))} for m in (1, 2)]
    run = executor(program, batches[0], torch.float64, n_microbatches=2)
    params = {n: torch.zeros(4, dtype=torch.float64) for n in "ab"}
    grads = run.step(params, [{"x": b["x"].double()} for b in batches], [1.0, 1.0]).grads
    for name in "ab":
        assert grads[name].tolist() == [2 * 3 * (1 + 2)] * 4
    assert clip(grads, 1.0) == pytest.approx(math.sqrt(8) * 18)
    assert float(grads["a"].square().sum() + grads["b"].square().sum()) == pytest.approx(1.0)


def test_smoothed_labels_are_those_of_torch() -> None:
    steps = [
        {"linear": {"out": "V", "name": "head", "from": "x", "as": "logits"}},
        {"cross_entropy": {"from": ["logits", "labels"], "label_smoothing": 0.2, "z_loss": 0.01, "as": "loss"}},
    ]
    inputs = {"x": "float[B S D]", "labels": "int[B S]"}
    model = {"dims": {"D": 4, "V": 11}, "inputs": inputs, "steps": steps, "loss": "loss"}
    program = elaborate_model(ModelSpec.model_validate(model), "m")
    draw = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((2, 3, 4), (4, 11)))
    labels = torch.tensor([[1, 10, IGNORE], [0, 7, 7]])
    batch = {"x": x, "labels": labels}
    made = executor(program, batch, torch.float64).step({"head.weight": w}, [batch], [1.0])
    w.requires_grad_()
    logits = (x @ w).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, labels.flatten(), label_smoothing=0.2)
    z = logits.logsumexp(-1)[labels.flatten() != IGNORE]
    (loss + 0.01 * z.square().mean()).backward()
    assert float(made.losses[0]) == pytest.approx(float((loss + 0.01 * z.square().mean()).detach()), rel=1e-12)
    torch.testing.assert_close(made.grads["head.weight"], w.grad)


def test_bf16_computes_over_fp32_weights(plain: Build, tmp_path: Path) -> None:
    write_spec(tmp_path, "plan: {precision: {compute: bf16, master: fp32}}")
    run, exact = begun(made(tmp_path, name="bf16")), begun(plain)
    assert run.executor.compute == torch.bfloat16
    before = copies(run.params)
    assert steps(run, 4) == pytest.approx(steps(exact, 4), rel=0.02)
    state = run.optimizer.state()
    assert {t.dtype for t in (*run.params.values(), *state.values())} == {torch.float32}
    kept = [float((run.params[n] - run.params[n].bfloat16()).abs().max()) for n in before if before[n].ndim > 1]
    assert min(kept) > 0, "the weights have more digits than bf16"


def test_the_average_follows_its_formula_and_is_what_is_evaluated(tmp_path: Path) -> None:
    build = made(tmp_path, "ema=0.5")
    run = begun(build)
    average = copies(run.params)
    for _ in range(4):
        steps(run, 1)
        average = {n: 0.5 * average[n] + 0.5 * t for n, t in run.params.items()}
    for name, t in run.ema.items():
        torch.testing.assert_close(t, average[name], rtol=1e-6, atol=1e-7)
    assert equal(run.best, run.ema)
    run_build(build.path, say=lambda _: None)
    loaded = checkpoint.load_newest(folder_of(build) / "checkpoints")
    assert loaded is not None
    assert not equal(loaded.tensors["ema"], loaded.tensors["weights"])
    found = json.loads((folder_of(build) / "done.json").read_text())["validation_loss"]
    rows = run.data.validation
    assert found == validation_loss(run.stage, run.executor, loaded.tensors["ema"], rows)
    assert found != validation_loss(run.stage, run.executor, loaded.tensors["weights"], rows)


def test_validation_counts_each_label_once(plain: Build) -> None:
    """Against the loss of each row alone, weighted by its labels; the last batch is not full."""
    run = begun(plain)
    rows, stage = run.data.validation, run.stage
    rows = replace(rows, n=len(rows) - 1) if len(rows) % 2 == 0 else rows
    assert len(rows) % 2 == 1
    total, count = 0.0, 0
    for i in range(len(rows)):
        pair = batch(rows, [i, i], stage.fields)
        pair["labels"][1] = IGNORE
        n = int((pair["labels"] != IGNORE).sum())
        total += n * float(run.executor.forward(run.params, pair)["loss"])
        count += n
    assert validation_loss(stage, run.executor, run.params, rows) == pytest.approx(total / count, rel=1e-6)


def test_microbatches_do_not_choose_the_rows_that_are_validated(plain: Build) -> None:
    """Of one batch of four sequences, two at a time, all four."""
    run = begun(plain)
    rows, spec = run.data.validation, run.stage.spec
    assert spec.batch.size == 2
    assert len(rows) > 4
    halves = Batch(sequences=4, microbatch=2)
    few, all_ = (
        replace(run.stage, spec=spec.model_copy(update={"batch": halves, "eval": Eval(batches=n)})) for n in (1, 99)
    )
    found = validation_loss(few, run.executor, run.params, rows)
    assert found == validation_loss(all_, run.executor, run.params, replace(rows, n=4))
    assert found != validation_loss(all_, run.executor, run.params, replace(rows, n=2))


def test_a_bad_weight_is_named_and_nothing_is_updated(plain: Build) -> None:
    run = begun(plain)
    steps(run, 2)
    run.params["layers.1.glu.up.weight"].view(-1)[7] = math.nan
    before, moments = copies(run.params), copies(run.optimizer.state())
    assert one_step(run, 6).bad[0] == "the parameter layers.1.glu.up.weight (1 of 384 elements)"
    assert all(torch.equal(t.nan_to_num(), before[n].nan_to_num()) for n, t in run.params.items())
    assert equal(run.optimizer.state(), moments)


def test_an_overflow_is_traced_to_its_block(plain: Build) -> None:
    run = begun(plain)
    steps(run, 1)
    run.params["layers.1.glu.up.weight"].fill_(3e38)
    before, moments = copies(run.params), copies(run.optimizer.state())
    step = one_step(run, 6)
    assert not math.isfinite(step.loss)
    assert step.bad[0] == "the output of layers.1 (block 'layers')"
    assert any(b.startswith("the gradient of ") for b in step.bad)
    assert equal(run.params, before)
    assert equal(run.optimizer.state(), moments)


def test_five_bad_steps_in_a_row_end_the_run(plain: Build) -> None:
    said: list[str] = []
    run = begun(plain, said)
    good = copies(run.params)
    progress = Progress("pretrain", 0, 6, 64, said.append)

    def step() -> None:
        made_step = one_step(run, 6)
        run.step += 1
        report(run, made_step, None, progress)

    run.params["layers.0.attention_norm.weight"].fill_(math.nan)
    for _ in range(4):
        step()
    assert (run.guard.skipped, run.guard.in_a_row) == (4, 4)
    run.params["layers.0.attention_norm.weight"].copy_(good["layers.0.attention_norm.weight"])
    step()
    assert (run.guard.skipped, run.guard.in_a_row) == (4, 0)
    run.params["layers.0.attention_norm.weight"].fill_(math.nan)
    for _ in range(4):
        step()
    with pytest.raises(RunError, match=r"5 steps in a row, to step 10, had numbers .*layers.0.attention_norm.weight"):
        step()
    lines = [json.loads(x) for x in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [x["loss"] is None for x in lines] == [True] * 4 + [False] + [True] * 5
    assert lines[0]["skipped"][0].startswith("the parameter layers.0.attention_norm.weight")
    assert sum("the step is skipped" in line for line in said) == 9


def test_every_line_has_its_times_and_events(tmp_path: Path) -> None:
    build = made(tmp_path)
    run_build(build.path, say=lambda _: None)
    lines = [json.loads(x) for x in (folder_of(build) / "metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [1, 2, 3, 4, 5, 6]
    assert [("validation_loss" in x) for x in lines] == [False, False, True] * 2
    for line in lines:
        assert set(line["seconds"]) == {"data", "compute", "optimizer"}
        assert line["memory"] > 1e7
        assert line["tokens_per_s"] > 0
    events = EventAccumulator(str(folder_of(build) / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [
        (x["step"], pytest.approx(x["loss"], rel=1e-6)) for x in lines
    ]
    assert [e.step for e in events.Scalars("validation_loss")] == [3, 6]


def test_events_of_steps_that_are_done_again_go(tmp_path: Path) -> None:
    for begin, end in ((0, 5), (2, 4)):
        made_metrics = Metrics(tmp_path, begin, metrics.open_events(tmp_path / "tensorboard", begin))
        for step in range(begin + 1, end + 1):
            made_metrics.add(step, {"loss": float(10 * begin + step)})
        made_metrics.close()
        time.sleep(1.1)  # readers go by the names of files, which tell seconds apart
    assert [json.loads(x)["loss"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 23, 24]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == [1, 2, 23, 24]


def test_a_run_without_tensorboard_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "find_spec", lambda _: None)
    said: list[str] = []
    build = made(tmp_path)
    run_build(build.path, say=said.append)
    assert sum("tensorboard is not installed" in line for line in said) == 1
    assert not (folder_of(build) / "tensorboard").exists()


@pytest.mark.parametrize("tail", ["", '{"step": 4, "lo', '{"step": 4}\n{"step": 5}\n', "\0\0\0\0", '{"step": 3}'])
def test_lines_behind_the_resumed_step_go(tmp_path: Path, tail: str) -> None:
    good = '{"step": 1}\n{"step": 2}\n{"step": 3}\n'
    (tmp_path / "m.jsonl").write_text(good + tail)
    forget_after(tmp_path / "m.jsonl", 3)
    assert (tmp_path / "m.jsonl").read_text() == good


def test_a_bar_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "CI", "TERM"):
        monkeypatch.delenv(name, raising=False)
    assert has_progress(Terminal())
    assert not has_progress(io.StringIO())
    for name, value in (("NO_COLOR", "1"), ("CI", "true"), ("TERM", "dumb")):
        with monkeypatch.context() as m:
            m.setenv(name, value)
            assert not has_progress(Terminal())


def test_the_bar_shows_loss_speed_time_and_memory() -> None:
    out, said = io.StringIO(), list[str]()
    with Progress("pretrain", 0, 1000, 64, said.append, out) as progress:
        for step in (1, 2):
            progress.update(step, 3.21, progress.rate(step), 4.5 if step == 2 else None)
    text = out.getvalue()
    for part in ("pretrain", "2/1000", "loss 3.2100", "tokens/s", " left", "validation 4.5000"):
        assert part in text
    assert re.search(r"[0-9.]+ [MG]B", text)
    assert said == []


def test_a_second_signal_acts_at_once() -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.asked == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
