"""Stages: their order and state as chips, and for each one its curves and samples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from specc.compiler.report.charts import Line, Points, Reference, line_chart, smooth
from specc.compiler.report.data import Sample, Series, Stage
from specc.compiler.report.text import esc
from specc.compiler.units import count, duration

STATUS = {"done": "done", "partial": "stopped half way", "waiting": "not run yet"}
HELD = "val_"  # begins the name of a series of held-out rows
SHOWN_SAMPLES = 3  # of the last step; earlier ones are folded away
# Curves below the loss: the name of a series, its title, whether its axis is logarithmic.
CURVES = (
    ("lr", "learning rate", False),
    ("grad_norm", "gradient norm", True),
    ("tokens_per_s", "tokens per second", False),
    ("images_per_s", "images per second", False),
    ("memory", "memory, bytes", False),
)


def stage_chips(stages: Sequence[Stage]) -> str:
    """One chip a stage with an arrow from what it starts from."""
    chips = []
    for s in stages:
        arrow = f"<span class=from>from {esc(', '.join(s['after']))} →</span>" if s["after"] else ""
        share = s["steps_done"] / s["steps"] if s["steps"] else 0.0
        chips.append(
            f"<li class='{s['status']}'>{arrow}<b>{esc(s['name'])}</b> <span class=quiet>{esc(s['kind'])}</span>"
            f"<span class=state>{STATUS[s['status']]}</span>"
            f"<span class=meter><i style='width:{share:.1%}'></i></span>"
            f"<span class=quiet>{s['steps_done']:,} of {s['steps']:,} steps{_effort(s)}</span>"
            f"<code>{esc(s['key'][:12])}</code></li>"
        )
    return f"<ol class=chips>{''.join(chips)}</ol>"


def _effort(s: Stage) -> str:
    tokens = f", {count(s['tokens'])} {s['unit']}s" if s["tokens"] else ""
    return tokens + (f", {duration(s['seconds'])}" if s["seconds"] else "")


def stage_page(s: Stage) -> str:
    """Curves, notes and samples of a stage; empty if it was not run."""
    charts = _loss(s) + "".join(_metric(s, name) for name in _metrics(s)) + "".join(_curve(s, *row) for row in CURVES)
    notes = "".join(f"<li>{esc(n)}</li>" for n in s["notes"])
    notes = f"<ul class=notes>{notes}</ul>" if notes else ""
    samples = _samples(s["samples"])
    if not (charts or notes or samples):
        return ""
    return f"<section><h3>{esc(s['name'])}</h3>{notes}<div class=charts>{charts}</div>{samples}</section>"


def _points(series: Sequence[Series], name: str) -> Points:
    found = next((s for s in series if s["name"] == name), None)
    return list(zip(found["x"], found["y"], strict=True)) if found else []


def _metrics(s: Stage) -> list[str]:
    """The series that a model logs beside its loss."""
    known = {"loss", *(name for name, *_ in CURVES)}
    return [name for x in s["series"] if (name := x["name"]) not in known and not name.startswith(HELD)]


def _metric(s: Stage, name: str) -> str:
    train, val = _points(s["series"], name), _points(s["series"], f"{HELD}{name}")
    lines = [Line("train", smooth(train)), *([Line("validation", val, "val")] if val else [])]
    return line_chart(name.replace("_", " "), lines)


def _loss(s: Stage) -> str:
    train, val = _points(s["series"], "loss"), _points(s["series"], f"{HELD}loss")
    if not train and not val:
        return ""
    lines = [Line("train, each step", train, "raw"), Line("train", smooth(train))]
    lines += [Line("validation", val, "val")] if val else []
    entropy = [Reference(f"unigram entropy {s['entropy']:.2f}", s["entropy"])] if s["entropy"] else []
    return line_chart("loss of pairs" if s["kind"] == "preference" else "loss, nats per token", lines, entropy)


def _curve(s: Stage, name: str, title: str, log: bool) -> str:
    points = _points(s["series"], name)
    return line_chart(title, [Line(title, points)], log=log) if points else ""


def _samples(samples: Sequence[Sample]) -> str:
    """The newest samples in the open, those of earlier steps folded, so that progress can be read."""
    by_step = [(step, list(group)) for step, group in itertools.groupby(samples, key=lambda x: x["step"])]
    if not by_step:
        return ""
    *earlier, (last, newest) = by_step
    shown = "".join(_sample(x) for x in newest[:SHOWN_SAMPLES])
    more = "".join(_sample(x) for x in newest[SHOWN_SAMPLES:])
    more = f"<details><summary>more of step {last:,}</summary>{more}</details>" if more else ""
    old = "".join(
        f"<details><summary>step {step:,}</summary>{''.join(_sample(x) for x in group)}</details>"
        for step, group in reversed(earlier)
    )
    return f"<div class=samples><h4>Samples at step {last:,}</h4>{shown}{more}{old}</div>"


def _sample(x: Sample) -> str:
    return f"<pre class=sample><span class=prompt>{esc(x['prompt'])}</span>{esc(x['text'])}</pre>"
