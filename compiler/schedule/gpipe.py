"""GPipe (arXiv:1811.06965): all microbatches forward, then all backward."""

from __future__ import annotations

from specc.compiler.schedule.slots import Slot, Table


def gpipe(ranks: int, microbatches: int, chunks: int = 1) -> Table:
    assert chunks == 1
    return Table(tuple(tuple(Slot(k, r, m) for k in ("F", "B") for m in range(microbatches)) for r in range(ranks)))
