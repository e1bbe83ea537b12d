"""`specc report`: the page of a build with what its runs have shown so far."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specc.compiler.report import Report, render
from specc.compiler.report.data import Sample, Series
from specc.compiler.report.data import Stage as StageData
from specc.compiler.report.gather import read_build, read_json
from specc.compiler.report.stages import HELD
from specc.compiler.units import count
from specc.runtime.built import Build, Stage, open_build
from specc.runtime.train import stage_folder

# Keys of metrics.jsonl and the curves that they become.
CURVES = {
    "loss": "loss",
    "validation_loss": f"{HELD}loss",
    "lr": "lr",
    "grad_norm": "grad_norm",
    "tokens_per_s": "tokens_per_s",
    "images_per_s": "images_per_s",
}


def run(args: argparse.Namespace) -> int:
    build = open_build(Path(args.target))
    if args.json:
        print(json.dumps(with_runs(build), indent=1))
        return 0
    print(f"{write_page(build, Path(args.out) if args.out else None)}: written")
    return 0


def write_page(build: Build, out: Path | None = None) -> Path:
    """Write the page, by default into the build."""
    path = out or build.path / "report.html"
    path.write_text(render(with_runs(build)), encoding="utf-8")
    return path


def with_runs(build: Build) -> Report:
    """The build's report with the state, curves and samples of each stage."""
    report = read_build(build.path)
    for data in report["stages"]:
        add_run(data, build.stages[data["name"]], stage_folder(build, build.stages[data["name"]]))
    last = next((s for s in reversed(report["stages"]) if _values(s, "val_loss")), None)
    for s in [s for s in report["stages"] if s["entropy"] is not None and _values(s, "val_loss")]:
        figure = f"{_values(s, 'val_loss')[-1]:.3f}"
        what = "nats per token; unigram entropy" if s["unit"] == "token" else "entropy of what it tells:"
        note = f"{what} {s['entropy']:.3f}"
        report["figures"].append({"label": f"validation loss, {s['name']}", "value": figure, "note": note})
    if last is not None and (rates := _values(last, f"{last['unit']}s_per_s")):
        value = f"{count(rates[-1])} {last['unit']}s/s"
        report["figures"].append({"label": "speed", "value": value, "note": f"measured in {last['name']}"})
    return report


def add_run(data: StageData, stage: Stage, folder: Path) -> None:
    """Put what a stage's folder holds into its data."""
    rows = read_lines(folder / "metrics.jsonl")
    curves = {**CURVES, **{n: n for n in stage.metrics}, **{f"validation_{n}": f"{HELD}{n}" for n in stage.metrics}}
    data["series"] = [s for key, name in curves.items() if (s := _series(rows, key, name))["x"]]
    data["steps_done"] = int(rows[-1]["step"]) if rows else 0
    data["tokens"] = data["steps_done"] * stage.spec.units
    data["seconds"] = _seconds(rows, data["tokens"], f"{data['unit']}s_per_s")
    data["status"] = "done" if (folder / "done.json").is_file() else "partial" if rows else "waiting"
    data["samples"] = [_sample(s) for s in read_lines(folder / "samples.jsonl")]
    if (folder / "facts.json").is_file():
        data["entropy"] = read_json(folder / "facts.json")["unigram_entropy"]


def read_runs(build: Build) -> dict[str, Mapping[str, Any]]:
    """Each stage's state and last losses, for `specc run --json`."""
    found: dict[str, Mapping[str, Any]] = {}
    for s in with_runs(build)["stages"]:
        last = {name: _values(s, name)[-1] for name in ("loss", "val_loss") if _values(s, name)}
        found[s["name"]] = {"status": s["status"], "steps": s["steps_done"], "entropy": s["entropy"], **last}
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a last line that a killed run left half written is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _series(rows: list[dict[str, Any]], key: str, name: str) -> Series:
    points = [(float(r["step"]), float(r[key])) for r in rows if r.get(key) is not None]
    return {"name": name, "x": [x for x, _ in points], "y": [y for _, y in points]}


def _values(stage: StageData, name: str) -> list[float]:
    return next((s["y"] for s in stage["series"] if s["name"] == name), [])


def _seconds(rows: list[dict[str, Any]], tokens: int, rate_of: str) -> float:
    rate = rows[-1].get(rate_of) if rows else None
    return tokens / rate if rate else 0.0


def _sample(row: dict[str, Any]) -> Sample:
    return {"step": int(row["step"]), "prompt": str(row["prompt"]), "text": str(row["text"])}
