"""Numbers for people: counts in K, M, B, T and sizes in powers of 1024."""

from __future__ import annotations


def count(n: float) -> str:
    """25300000 -> `25.3 M`."""
    for unit, base in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(n) >= base:
            return f"{n / base:.1f} {unit}"
    return f"{n:.0f}"


def size(n: float) -> str:
    """Bytes: 1610612736 -> `1.5 GiB`."""
    for unit, base in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(n) >= base:
            return f"{n / base:.1f} {unit}"
    return f"{n:.0f} B"


def duration(seconds: float) -> str:
    """93 -> `1 min 33 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours / 24:.1f} days" if hours < 48 * 365 else f"{hours / (24 * 365):,.0f} years"
