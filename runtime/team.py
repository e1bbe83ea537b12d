"""The ranks that work together, as far as checkpoints and the loop see them: who this one is, and what each says."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

T = TypeVar("T")


class Team(Protocol):
    """Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, said: bytes) -> list[bytes]:
        """What every rank said, in order of rank, on every rank."""
        ...

    def numbers(self, own: Sequence[float]) -> Tensor:
        """Every rank's numbers, [ranks, n] in fp64, on every rank."""
        ...


class Alone:
    """One process."""

    rank, size = 0, 1

    def gather(self, said: bytes) -> list[bytes]:
        return [said]

    def numbers(self, own: Sequence[float]) -> Tensor:
        return torch.tensor([list(own)], dtype=torch.float64)


class Processes:
    """The ranks of torch.distributed's default group."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def gather(self, said: bytes) -> list[bytes]:
        lengths = [int(n) for n in self.numbers([len(said)])[:, 0]]
        own = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        own[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8) if said else own[:0]
        return [t[:n].numpy().tobytes() for t, n in zip(self._all(own), lengths, strict=True)]

    def numbers(self, own: Sequence[float]) -> Tensor:
        return torch.stack(self._all(torch.tensor(list(own), dtype=torch.float64)))

    def _all(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return found


ALONE = Alone()


def say(team: Team, what: Any) -> list[Any]:
    """What every rank says, as JSON."""
    return [json.loads(b) for b in team.gather(json.dumps(what).encode())]


def wait(team: Team) -> None:
    """Go on when all ranks are here."""
    team.gather(b"")


def first(team: Team, make: Callable[[], T]) -> T:
    """Rank 0 makes it, then the others, which find on the disk what it left there."""
    if team.rank:
        wait(team)
    made = make()
    if not team.rank:
        wait(team)
    return made
