"""Bounds of time that hold on slow and busy machines: seconds count in the pace of the machine that runs them.

A test that bounds a time looks for work that grows without end or happens twice, which no machine hides; that this
machine is slow today is not its business. `within` times a fixed piece of work of the interpreter before and after and
gives the body as much more time as that took longer than on the machine of reference.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

UNIT = 0.12
"""Seconds that `unit` takes where the bounds of the tests were set."""


def unit(clock: Callable[[], float] = time.process_time) -> float:
    """Seconds of a fixed piece of work like what specs ask for: short strings, small objects, dictionaries."""
    began = clock()
    for _ in range(150):
        table = {f"k{i}": (i, [str(i)]) for i in range(1000)}
        for key, (number, words) in table.items():
            if key[1:] != words[0] or int(words[0]) != number:
                raise AssertionError("this cannot be")
    return clock() - began


def slowness(clock: Callable[[], float] = time.process_time) -> float:
    """How many times slower than the machine of reference this one is now; 1 where it is faster."""
    return max(1.0, unit(clock) / UNIT)


@contextlib.contextmanager
def within(seconds: float, clock: Callable[[], float] = time.process_time) -> Iterator[None]:
    """Bound what the body takes to `seconds` of the machine of reference, by `clock`.

    Raises:
        AssertionError: it took longer than the slower of the paces before and after it explains.
    """
    before, began = slowness(clock), clock()
    yield
    took = clock() - began
    pace = max(before, slowness(clock))
    assert took <= seconds * pace, f"{took:.2f} s, more than {seconds:g} s at a pace of {pace:.2f}"
