"""What ranks of a pipeline send each other: values between calls, and their gradients. Only a use waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch import distributed as dist

from specc.compiler.lower.named_groups import resolve
from specc.runtime.device import CPU

Sent = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Arrival:
    """A value on its way here from a rank."""

    buffer: Tensor
    work: dist.Work
    peer: int
    device: torch.device

    def take(self) -> Tensor:
        self.work.wait()
        return self.buffer.to(self.device)


@dataclass
class Wire:
    """This rank's end of a pipeline's lines. `rank` is its place along the axis whose group is called `group`, `values`
    are those that are sent, with their types, `shared` the ranks of each parameter that several have.

    A message has a tag of its own in a step, so that the order in which ends speak and listen need not be the same;
    NCCL has no tags, and so what GPUs send goes through the memory of their hosts."""

    group: str
    rank: int
    values: Mapping[str, Sent]
    shared: Mapping[str, Sequence[int]]
    microbatches: int
    device: torch.device = CPU
    leaving: dict[tuple[int, int], tuple[dist.Work, Tensor]] = field(default_factory=dict)  # by rank and tag

    def send(self, name: str, is_gradient: bool, microbatch: int, peer: int, x: Tensor) -> None:
        """Begin to send; the tensor is held until `received` or `settle`."""
        self._send(x.contiguous(), peer, self._tag(name, is_gradient, microbatch))

    def receive(self, name: str, is_gradient: bool, microbatch: int, peer: int) -> Arrival:
        """Begin to receive."""
        return self._receive(self.values[name], peer, self._tag(name, is_gradient, microbatch))

    def share(self, name: str, gradient: Tensor) -> Tensor:
        """The sum of a parameter's gradients over the ranks that have it: in one order, so that all get the same."""
        own, ranks = gradient.contiguous(), self.shared[name]
        tag = 2 * self.microbatches * len(self.values) + list(self.shared).index(name)
        coming = {r: self._receive((own.dtype, tuple(own.shape)), r, tag) for r in ranks if r != self.rank}
        for peer in coming:
            self._send(own, peer, tag)
        parts = [own if r == self.rank else coming[r].take() for r in ranks]
        total = parts[0] + parts[1]
        for part in parts[2:]:
            total += part
        return total

    def received(self, name: str, microbatch: int, peer: int) -> None:
        """Hold a value no longer: its gradient has come from that rank."""
        work, _ = self.leaving.pop((peer, self._tag(name, False, microbatch)))
        work.wait()

    def settle(self) -> None:
        """Wait until all that was sent has been received."""
        for work, _ in self.leaving.values():
            work.wait()
        self.leaving.clear()

    def _send(self, x: Tensor, peer: int, tag: int) -> None:
        x = x.cpu()
        work = dist.isend(x, group=resolve(self.group), tag=tag, group_dst=peer)
        assert work is not None
        self.leaving[peer, tag] = (work, x)

    def _receive(self, kind: Sent, peer: int, tag: int) -> Arrival:
        buffer = torch.empty(kind[1], dtype=kind[0])
        work = dist.irecv(buffer, group=resolve(self.group), tag=tag, group_src=peer)
        assert work is not None
        return Arrival(buffer, work, peer, self.device)

    def _tag(self, name: str, is_gradient: bool, microbatch: int) -> int:
        return (list(self.values).index(name) * self.microbatches + microbatch) * 2 + is_gradient


def to_first(x: Tensor | None, source: int, rank: int, kind: Sent, device: torch.device) -> Tensor | None:
    """The tensor that the rank `source` of the whole run has, on rank 0; None on the others."""
    if rank == source:
        assert x is not None
        dist.send(x.contiguous().cpu(), 0)
    if rank:
        return None
    dtype, shape = kind
    found = torch.empty(shape, dtype=dtype)
    dist.recv(found, source)
    return found.to(device)
