"""SIGINT and SIGTERM as a flag that is read between steps."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


@dataclass
class Signals:
    """The first signal is kept in `asked`; a second one acts at once."""

    asked: int | None = None
    before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> Signals:
        self.before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for s, handler in self.before.items():
            signal.signal(s, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
