"""Numbers as a person reads them, and text that is safe in a page."""

from __future__ import annotations

import html
import math


def esc(text: object) -> str:
    """Any text, for use between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def count(n: float) -> str:
    """1234 -> 1,234; 25_300_000 -> 25.3 M."""
    return _scaled(n, 1000, ("", " K", " M", " B", " T"), whole=10_000)


def size(n: float) -> str:
    """Bytes: 1536 -> 1.5 KiB."""
    return _scaled(n, 1024, (" B", " KiB", " MiB", " GiB", " TiB", " PiB"), whole=1024)


def flops(n: float) -> str:
    """1.52e8 -> 152 MFLOP."""
    return _scaled(n, 1000, ("", " K", " M", " G", " T", " P", " E"), whole=1000) + "FLOP"


def duration(seconds: float) -> str:
    """0.0123 -> 12.3 ms; 75 -> 1 min 15 s; 7500 -> 2 h 5 min."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def number(y: float) -> str:
    """A value on an axis or in a tooltip: four significant digits, no exponent where none is needed."""
    if y == 0 or not math.isfinite(y):
        return f"{y:g}"
    if 1e-3 <= abs(y) < 1e4:
        return f"{y:.4g}"
    if abs(y) >= 1e4:
        return count(y)
    digits, power = f"{y:.2e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def _scaled(n: float, base: int, units: tuple[str, ...], whole: int) -> str:
    if abs(n) < whole:
        return f"{round(n):,}{units[0]}"
    power = min(int(math.log(abs(n), base) + 1e-12), len(units) - 1)
    return f"{n / base**power:.3g}{units[power]}"
