"""Line charts as inline SVG: axes with round ticks, several curves, reference lines, points for a tooltip."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from specc.compiler.report.text import esc, number

WIDTH, HEIGHT = 620, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 30
MAX_POINTS = 320
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve; `style` is a CSS class (`train`, `val`, `raw`, `dot`)."""

    name: str
    points: Points
    style: str = "train"


@dataclass(frozen=True)
class Reference:
    """A dashed horizontal line with a text."""

    name: str
    y: float


def line_chart(title: str, lines: Sequence[Line], references: Sequence[Reference] = (), log: bool = False) -> str:
    """A figure with a title, a legend and the curves; points that are not finite leave a gap."""
    shown = [Line(n.name, thin([p for p in n.points if _drawable(p[1], log)]), n.style) for n in lines]
    ys = [y for n in shown for _, y in n.points] + [r.y for r in references if _drawable(r.y, log)]
    xs = [x for n in shown for x, _ in n.points]
    if not xs:
        return ""
    low_x, high_x = min(xs), max(max(xs), min(xs) + 1)
    low, high = _bounds(ys, log)
    ticks = log_ticks(low, high) if log else round_ticks(low, high, 5)
    to_x = _Scale(low_x, high_x, LEFT, WIDTH - RIGHT)
    to_y = _Scale(_t(low, log), _t(high, log), HEIGHT - BOTTOM, TOP)
    body = [_grid_y(t, to_y(_t(t, log))) for t in ticks]
    body += [_tick_x(t, to_x(t)) for t in round_ticks(low_x, high_x, 6)]
    body.append(f"<text class=tick x='{LEFT - 7}' y='{HEIGHT - 9}' text-anchor=end>step</text>")
    body += [_reference(r, to_y(_t(r.y, log))) for r in references if _drawable(r.y, log)]
    body += [_curve(n, to_x, to_y, log) for n in shown]
    data = {"x": [to_x.low, to_x.high], "lines": [{"name": n.name, "points": _short(n.points)} for n in shown]}
    attrs = f"data-chart='{esc(json.dumps(data, separators=(',', ':')))}' data-box='{LEFT} {WIDTH - RIGHT}'"
    svg = f"<svg class=chart viewBox='0 0 {WIDTH} {HEIGHT}' {attrs}>{''.join(body)}</svg>"
    return f"<figure><figcaption>{esc(title)}{_legend(lines, references)}</figcaption>{svg}</figure>"


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points: the least and the greatest of each bucket, so that spikes stay."""
    if len(points) <= limit:
        return points
    buckets = limit // 2
    kept: Points = []
    for b in range(buckets):
        part = points[b * len(points) // buckets : (b + 1) * len(points) // buckets]
        ends = {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def smooth(points: Points, span: float = 0.015) -> Points:
    """Exponential moving average over a share of the curve, corrected for its start."""
    alpha = 1 / max(1.0, span * len(points))
    mean = weight = 0.0
    out: Points = []
    for x, y in points:
        if not math.isfinite(y):
            continue
        mean, weight = (1 - alpha) * mean + alpha * y, (1 - alpha) * weight + alpha
        out.append((x, mean / weight))
    return out


def round_ticks(low: float, high: float, n: int) -> list[float]:
    """About n multiples of 1, 2 or 5 times a power of ten, between low and high."""
    if not high > low:
        return [low]
    raw = (high - low) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or round values where the range is less than one power."""
    powers = range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)
    ticks = [10.0**p for p in powers]
    return ticks if len(ticks) > 1 else round_ticks(low, high, 4)


class _Scale:
    """Linear map of [low, high] to pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, v: float) -> float:
        return self.start + (v - self.low) / (self.high - self.low) * (self.end - self.start)


def _drawable(y: float, log: bool) -> bool:
    return math.isfinite(y) and (y > 0 or not log)


def _t(y: float, log: bool) -> float:
    return math.log10(y) if log else y


def _bounds(ys: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(ys), max(ys)
    if log:
        return (low / 1.2, high * 1.2)
    pad = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return (max(low - pad, 0.0) if low >= 0 else low - pad, high + pad)


def _grid_y(t: float, y: float) -> str:
    line = f"<path class=grid d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>"
    return f"{line}<text class=tick x='{LEFT - 7}' y='{y + 4:.1f}' text-anchor=end>{esc(number(t))}</text>"


def _tick_x(t: float, x: float) -> str:
    return f"<text class=tick x='{x:.1f}' y='{HEIGHT - 9}' text-anchor=middle>{esc(number(t))}</text>"


def _reference(r: Reference, y: float) -> str:
    line = f"<path class=reference d='M{LEFT} {y:.1f}H{WIDTH - RIGHT}'/>"
    text = f"<text class=tick x='{WIDTH - RIGHT - 4}' y='{y - 5:.1f}' text-anchor=end>{esc(r.name)}</text>"
    return line + text


def _curve(n: Line, to_x: _Scale, to_y: _Scale, log: bool) -> str:
    spots = [(to_x(x), to_y(_t(y, log))) for x, y in n.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots) if spots else ""
    dots = ""
    if n.style == "val":
        dots = "".join(f"<circle class='dot {n.style}' cx='{x:.1f}' cy='{y:.1f}' r='2.6'/>" for x, y in spots)
    return f"<path class='line {n.style}' d='{path}'/>{dots}"


def _legend(lines: Sequence[Line], references: Sequence[Reference]) -> str:
    if len(lines) + len(references) < 2:
        return ""
    keys = "".join(f"<span class='swatch {n.style}'></span>{esc(n.name)}" for n in lines if n.style != "raw")
    keys += "".join(f"<span class='swatch reference'></span>{esc(r.name)}" for r in references)
    return f"<span class=keys>{keys}</span>"


def _short(points: Points) -> list[list[float]]:
    return [[float(f"{x:.6g}"), float(f"{y:.5g}")] for x, y in points]
