"""The generated kernels of a build: what they replace, block by block, and what each takes of a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from specc.compiler.report.data import Cover, Kernel
from specc.compiler.report.text import esc
from specc.compiler.units import size


def kernel_tables(covers: Sequence[Cover], kernels: Sequence[Kernel]) -> str:
    """Two tables, or nothing without kernels."""
    return (_covers(covers) + _kernels(kernels)) if kernels else ""


def _covers(covers: Sequence[Cover]) -> str:
    rows = "".join(
        f"<tr><td>{esc(c['stage'])}<td><code>{esc(c['block'])}</code><td class=n>{c['ops'][0]}<td class=n>{c['ops'][1]}"
        f"<td class=n>{size(c['bytes'][0])}<td class=n>{size(c['bytes'][1])}<td>{esc(_left(c))}"
        for c in covers
    )
    head = "<th>stage<th>block<th class=n>ops of ATen<th class=n>ops with kernels<th class=n>bytes moved by ATen"
    return _table(f"{head}<th class=n>with kernels<th>row-wise ops in none", rows)


def _left(c: Cover) -> str:
    return ", ".join(f"{n}: {why}" for why, n in c["left"].items())


def _kernels(kernels: Sequence[Kernel]) -> str:
    rows = "".join(
        f"<tr><td><code>{esc(k['name'])}</code><td>{esc(', '.join(k['places']))}<td>{esc(k['used'])}"
        f"<td>{esc(', '.join(k['targets']))}<td class=n>{k['registers']}<td class=n>{k['spilled']}"
        f"<td class=n>{size(k['shared'])}"
        for k in kernels
    )
    head = "<th>kernel<th>from<th>runs<th>compiled for<th class=n>registers<th class=n>spilled"
    return _table(f"{head}<th class=n>shared memory", rows)


def _table(head: str, rows: str) -> str:
    return f"<div class=wide><table><thead><tr>{head}<tbody>{rows}</table></div>"
