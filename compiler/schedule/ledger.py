"""Books of memory: who holds which, so that what several hold counts once and goes with the last of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping

Key = tuple[Hashable, ...]
HOST = "on the host"  # the kind of what is not on the device


def on_device(nbytes: Mapping[str, int]) -> int:
    """All bytes but those of the host."""
    return sum(n for kind, n in nbytes.items() if kind != HOST)


class Ledger:
    """Memories are numbers; each has its bytes and its kind."""

    def __init__(self) -> None:
        self.sizes: list[tuple[str, int]] = []
        self.holders: Counter[int] = Counter()
        self.held: dict[Key, tuple[int, ...]] = {}
        self.alive: Counter[str] = Counter()
        self.most: Counter[str] = Counter()  # where the device is fullest

    def new(self, kind: str, nbytes: int) -> int:
        """A memory that nobody holds yet."""
        self.sizes.append((kind, nbytes))
        return len(self.sizes) - 1

    def hold(self, key: Key, memories: Iterable[int]) -> None:
        """`key` holds these from now on, in place of what it held."""
        before = self.held.pop(key, ())
        self.held[key] = tuple(memories)
        for memory in self.held[key]:
            self.holders[memory] += 1
            if self.holders[memory] == 1:
                kind, nbytes = self.sizes[memory]
                self.alive[kind] += nbytes
        self.rise()
        self._release(before)

    def drop(self, key: Key) -> tuple[int, ...]:
        """`key` holds nothing more; what it held."""
        memories = self.held.pop(key, ())
        self._release(memories)
        return memories

    def held_by(self, keys: Iterable[Key]) -> dict[int, int]:
        """Bytes of the memories that these keys hold and no other does."""
        times = Counter(memory for key in keys for memory in self.held.get(key, ()))
        return {memory: self.sizes[memory][1] for memory, n in times.items() if self.holders[memory] == n}

    def _release(self, memories: Iterable[int]) -> None:
        for memory in memories:
            self.holders[memory] -= 1
            if self.holders[memory] == 0:
                kind, nbytes = self.sizes[memory]
                self.alive[kind] -= nbytes

    def begin(self) -> None:
        """Forget the fullest moment so far."""
        self.most = self.alive.copy()

    def rise(self, work: int = 0) -> None:
        """A moment at which `work` bytes are alive beside what is held."""
        if on_device(self.alive) + work > on_device(self.most):
            self.most = self.alive.copy()
            self.most["work space"] += work
