"""The next steps' batches, made by a thread while a step computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """`make(step)` for step = start, start + 1, ... below stop, at most `depth` ahead of what was taken.

    Used in a `with`; leaving it ends the thread. What `make` raises is raised by the `take` of its step."""

    def __init__(self, make: Callable[[int], T], start: int, stop: int, depth: int = 2) -> None:
        assert depth >= 1
        self.make, self.at, self.next, self.stop, self.depth = make, start, start, stop, depth
        self.ready: deque[Future[T]] = deque()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def __enter__(self) -> Prefetch[T]:
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        self.thread.shutdown(wait=True, cancel_futures=True)

    def take(self, step: int) -> T:
        """What was made for the step; steps are taken in order."""
        assert step == self.at < self.stop, (step, self.at, self.stop)
        made = self.ready.popleft().result()
        self.at += 1
        self._fill()
        return made

    def _fill(self) -> None:
        while self.next < self.stop and len(self.ready) < self.depth:
            self.ready.append(self.thread.submit(self.make, self.next))
            self.next += 1
