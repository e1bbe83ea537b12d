"""Memory as stacked bars, and a schedule as a row of cells for each rank with the live bytes below."""

from __future__ import annotations

from collections.abc import Sequence

from specc.compiler.report.data import Action, Memory, Schedule
from specc.compiler.report.text import esc
from specc.compiler.units import size

WIDTH, ROW, CURVE = 1080, 30, 90
MAX_CELLS = 1500
# Colour of a category or an action kind: a CSS class of page.css.
COLOURS = {
    "weights": "c1", "gradients": "c2", "optimizer": "c3", "activations": "c4", "saved": "c4", "temporaries": "c5",
    "master": "c6", "ema": "c6", "F": "c1", "B": "c2", "I": "c2", "W": "c3", "STEP": "c4", "REDUCE": "c5",
    "UNSHARD": "c6", "RECOMPUTE": "c5", "SEND": "c5", "RECV": "c5", "SHARE": "c5", "OFFLOAD": "c6", "FETCH": "c6",
}  # fmt: skip
MEANING = {
    "F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient", "STEP": "optimizer step",
    "REDUCE": "gradient reduction", "UNSHARD": "parameter gathering and casts", "RECOMPUTE": "recomputed forward",
    "SEND": "send", "RECV": "receive", "SHARE": "gradients of shared parameters", "OFFLOAD": "to the host",
    "FETCH": "from the host",
}  # fmt: skip


def memory_bars(rows: Sequence[Memory]) -> str:
    """One bar a stage, all to the same scale; the measured peak and the limit are marked."""
    if not rows:
        return ""
    totals = [sum(s["bytes"] for s in m["shares"]) for m in rows]
    scale = max([*totals, *(m["measured"] or 0 for m in rows), 1])
    return "".join(_memory(m, total, scale) for m, total in zip(rows, totals, strict=True))


def _memory(m: Memory, total: int, scale: int) -> str:
    parts = "".join(_share(s["category"], s["bytes"], scale) for s in m["shares"] if s["bytes"])
    keys = "".join(
        f"<span><i class='key {_colour(s['category'])}'></i>{esc(s['category'])} <b>{size(s['bytes'])}</b></span>"
        for s in m["shares"]
    )
    mark = ""
    if m["measured"]:
        mark = f"<i class=mark style='left:{m['measured'] / scale:.2%}' title='measured peak'></i>"
        keys += f"<span><i class='key mark'></i>measured peak <b>{size(m['measured'])}</b></span>"
    limit = ""
    if m["limit"]:
        over = total > m["limit"]
        limit = f"<span class={'bad' if over else 'quiet'}>{total / m['limit']:.0%} of {size(m['limit'])}</span>"
    head = f"<b>{esc(m['stage'])}</b> <span>peak {size(total)}</span> {limit}"
    return f"<div class=memory><p>{head}</p><div class=bar>{parts}{mark}</div><p class=keys>{keys}</p></div>"


def _share(category: str, n: int, scale: int) -> str:
    tip = f"{category}: {size(n)}"
    return f"<i class={_colour(category)} style='width:{n / scale:.2%}' title='{esc(tip)}'></i>"


def _colour(category: str) -> str:
    return COLOURS.get(category.split()[0], "c7")


def schedule_chart(schedule: Schedule) -> str:
    """Ranks from top to bottom, work from left to right; below it the bytes that live."""
    ranks = [r for r in schedule["ranks"] if r]
    if not ranks:
        return ""
    span = max(r[-1]["start"] + _work(r[-1]) for r in ranks)
    rows = "".join(_rank(k, r, span) for k, r in enumerate(ranks))
    high = len(ranks) * (ROW + 6)
    fullest = max(ranks, key=lambda r: max(a["live"] for a in r))
    of = f" of rank {ranks.index(fullest)}, the fullest" if len(ranks) > 1 else ""
    curve = _live(fullest, span, high + 8, of)
    total = high + (CURVE + 10 if curve else 0)
    svg = f"<svg class=schedule viewBox='0 0 {WIDTH} {total}'>{rows}{curve}</svg>"
    kinds = dict.fromkeys(a["kind"] for r in ranks for a in r)
    keys = "".join(f"<span><i class='key {_colour(k)}'></i>{esc(k)} {esc(MEANING.get(k, ''))}</span>" for k in kinds)
    n = sum(len(r) for r in ranks)
    head = f"<b>{esc(schedule['stage'])}</b> <span class=quiet>{n} actions a step; {esc(schedule['note'])}</span>"
    return f"<div class=plan><p>{head}</p>{svg}<p class=keys>{keys}</p></div>"


def _work(action: Action) -> float:
    return max(action["work"], 1e-12)


def _rank(k: int, actions: Sequence[Action], span: float) -> str:
    """The cells of a rank; when there are too many, runs of one kind and microbatch become one cell."""
    y = k * (ROW + 6)
    cells = []
    for kind, label, micro, start, work in _merged(actions):
        x, width = start / span * WIDTH, work / span * WIDTH
        tip = f"{kind} {label}" + (f" microbatch {micro}" if micro >= 0 else "")
        text = f"{kind}{micro}" if micro >= 0 else kind
        shown = (
            f"<text x='{x + width / 2:.1f}' y='{y + ROW / 2 + 4}'>{esc(text)}</text>" if width > 7.5 * len(text) else ""
        )
        rect = f"<rect x='{x:.2f}' y='{y}' width='{max(width - 0.6, 0.4):.2f}' height='{ROW}' rx='2'/>"
        cells.append(f"<g class='cell {_colour(kind)}'><title>{esc(tip)}</title>{rect}{shown}</g>")
    return "".join(cells)


def _merged(actions: Sequence[Action]) -> list[tuple[str, str, int, float, float]]:
    cells: list[tuple[str, str, int, float, float]] = []
    for a in actions:
        last = cells[-1] if cells else None
        alike = last is not None and (last[0], last[2]) == (a["kind"], a["microbatch"])
        if len(actions) > MAX_CELLS and last and alike and last[3] + last[4] >= a["start"] * (1 - 1e-9):
            end = a["start"] + _work(a)
            cells[-1] = (last[0], f"{last[1].split(' … ')[0]} … {a['label']}", last[2], last[3], end - last[3])
        else:
            cells.append((a["kind"], a["label"], a["microbatch"], a["start"], _work(a)))
    return cells


def _live(actions: Sequence[Action], span: float, top: float, of: str) -> str:
    """Bytes that live after each action, as an area."""
    peak = max((a["live"] for a in actions), default=0)
    if not peak:
        return ""
    bottom, end = top + CURVE, 0.0
    path = f"M0 {bottom}"
    for a in actions:
        y = bottom - a["live"] / peak * (CURVE - 14)
        end = a["start"] + _work(a)
        path += f"L{a['start'] / span * WIDTH:.1f} {y:.1f}L{end / span * WIDTH:.1f} {y:.1f}"
    text = f"<text class=tick x='4' y='{top + 10}'>live memory{of}, peak {size(peak)}</text>"
    return f"<path class=live d='{path}L{end / span * WIDTH:.1f} {bottom}Z'/>{text}"
