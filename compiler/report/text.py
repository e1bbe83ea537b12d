"""Numbers as a person reads them, and text that is safe in a page."""

from __future__ import annotations

import html
import math

from specc.compiler.units import count

PREFIXES = ("", "K", "M", "G", "T", "P", "E", "Z", "Y")


def esc(text: object) -> str:
    """Any text, for use between tags and inside quoted attributes."""
    return html.escape(str(text), quote=True)


def flops(n: float) -> str:
    """1.52e8 -> 152 MFLOP."""
    power = min(int(math.log10(n) / 3 + 1e-12), len(PREFIXES) - 1) if n >= 1 else 0
    return f"{n / 1000**power:.3g} {PREFIXES[power]}FLOP"


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
