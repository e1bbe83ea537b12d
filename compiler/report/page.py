"""The page: one HTML file without any outside resource, readable without its script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from specc.compiler.report.architecture import architecture
from specc.compiler.report.bars import memory_bars, schedule_chart
from specc.compiler.report.data import Compiled, File, Report
from specc.compiler.report.kernels import kernel_tables
from specc.compiler.report.stages import stage_chips, stage_page
from specc.compiler.report.text import esc
from specc.compiler.units import size

HERE = Path(__file__).parent
MARKER = (
    "<svg class=defs width=0 height=0><defs><marker id=arrow viewBox='0 0 8 8' refX=4 refY=4 markerWidth=7 "
    "markerHeight=7 orient=auto><path d='M0 0L8 4L0 8Z'/></marker></defs></svg>"
)


def render(report: Report) -> str:
    """The report as HTML. Every text in it is escaped; the policy in its head allows only its own script."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    style = (HERE / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv=Content-Security-Policy content="{policy}">'
        "<meta name=viewport content='width=device-width,initial-scale=1'><meta name=color-scheme content='light dark'>"
        f"<title>{esc(report['name'])} · specc</title><style>{style}</style></head><body>{MARKER}"
        f"{_head(report)}<main>{_sections(report)}</main>{_foot(report)}<script>{script}</script></body></html>\n"
    )


def _head(report: Report) -> str:
    tiles = "".join(
        f"<div class=tile><span>{esc(f['label'])}</span><b>{esc(f['value'])}</b><small>{esc(f['note'])}</small></div>"
        for f in report["figures"]
    )
    links = "".join(f"<a href='#{key}'>{title}</a>" for key, title, body in _parts(report) if body)
    return (
        f"<header><div class=title><h1>{esc(report['name'])}</h1><p>{esc(report['doc'])}</p></div>"
        f"<nav>{links}</nav><div class=tiles>{tiles}</div></header>"
    )


def _parts(report: Report) -> list[tuple[str, str, str]]:
    """(anchor, title, body) of each section, in order; an empty body is left out."""
    models = [(m["name"] if len(report["models"]) > 1 else "", architecture(m)) for m in report["models"]]
    cards = "".join((f"<h3>{esc(name)}</h3>" if name else "") + body for name, body in models)
    return [
        ("stages", "Stages", stage_chips(report["stages"]) if report["stages"] else ""),
        ("training", "Training", "".join(stage_page(s) for s in report["stages"])),
        ("architecture", "Architecture", cards),
        ("memory", "Memory", memory_bars(report["memory"])),
        ("schedule", "Schedule", "".join(schedule_chart(s) for s in report["schedules"])),
        ("graphs", "Graphs", _compiled(report["compiled"])),
        ("kernels", "Kernels", kernel_tables(report["covers"], report["kernels"])),
        ("files", "Files", _files(report["files"])),
    ]


def _sections(report: Report) -> str:
    return "".join(
        f"<section class=card id={key}><h2>{title}</h2>{body}</section>" for key, title, body in _parts(report) if body
    )


def _compiled(rows: Sequence[Compiled]) -> str:
    if not rows:
        return ""
    head = ("stage", "block", "calls", "forward ops", "backward ops", "saved a call", "runs as")
    body = "".join(
        f"<tr><td>{esc(r['stage'])}<td><code>{esc(r['block'])}</code><td class=n>{r['times']}"
        f"<td class=n>{r['forward']}<td class=n>{r['backward']}<td class=n>{size(r['saved'])}<td>{esc(r['how'])}"
        for r in rows
    )
    titles = "".join(f"<th{' class=n' if 2 <= i <= 5 else ''}>{h}" for i, h in enumerate(head))
    return f"<div class=wide><table><thead><tr>{titles}<tbody>{body}</table></div>"


def _files(files: Sequence[File]) -> str:
    if not files:
        return ""
    rows = "".join(
        f"<tr><td><code>{esc(f['path'])}</code><td class=n>{size(f['bytes'])}<td><code>{esc(f['sha256'][:16])}</code>"
        for f in files
    )
    total = size(sum(f["bytes"] for f in files))
    table = f"<table><thead><tr><th>file<th class=n>size<th>SHA-256<tbody>{rows}</table>"
    return f"<details><summary>{len(files)} files, {total}</summary><div class=wide>{table}</div></details>"


def _foot(report: Report) -> str:
    return f"<footer>specc {esc(report['version'])} · build <code>{esc(report['key'][:16])}</code></footer>"
