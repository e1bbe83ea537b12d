"""What a placement costs in seconds: a roofline for equations, rings for collectives.

What devices and links reach stands in compiler/hardware."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from specc.compiler.cost import eqn_cost
from specc.compiler.hardware.tables import hardware, row_of
from specc.compiler.ops.route import MOVES_ROWS
from specc.compiler.placement.placed import Strategy
from specc.compiler.placement.reshard import Move, moves
from specc.compiler.placement.types import Layout, Mesh
from specc.compiler.program import Eqn
from specc.compiler.types import TensorType, size_of
from specc.spec.hardware import Format, Hardware

BACKWARD = 2.0  # work of a backward over that of its forward
RING_HIDDEN = 0.5  # of what a ring of keys and values sends goes beside its work
INDEX_BYTES = {"int": 8, "bool": 1}


@dataclass(frozen=True)
class Device:
    """What one device reaches, not what its maker names."""

    name: str
    flops: float  # of products, a second
    bandwidth: float  # bytes of its memory, a second
    launch: float  # seconds before a kernel begins
    memory: float  # bytes


@dataclass(frozen=True)
class Links:
    """Bytes that a rank sends a second, and seconds before the first arrives; `node` ranks are joined by fast links."""

    node: int
    near: float
    far: float
    near_latency: float
    far_latency: float


def rates(name: str, tables: Hardware, form: Format = "bf16") -> tuple[Device, Links]:
    """What a row of the hardware tables comes down to."""
    d = row_of(tables.devices, name, "device")
    near, far = (row_of(tables.links, link, "link") for link in (d.near, d.far))
    flops = d.peak[form] * d.product[form] * 1e12
    device = Device(name, flops, d.bandwidth * d.stream * 1e9, d.launch * 1e-6, d.memory * 2**30)
    return device, Links(d.node, near.bandwidth * 1e9, far.bandwidth * 1e9, near.latency * 1e-6, far.latency * 1e-6)


H100, NVLINK = rates("h100-sxm", hardware())

# Bytes that a rank of n sends in a ring, over those of the whole value.
COLLECTIVES: Mapping[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n, "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n, "all-to-all": lambda n: (n - 1) / n / n,
}  # fmt: skip
# Forward and backward collective of a move by the kinds of its ends.
BY_KINDS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("S", "R"): ("all-gather", ""), ("S", "V"): ("all-gather", "reduce-scatter"), ("S", "S"): ("all-to-all",) * 2,
    ("P", "R"): ("all-reduce", ""), ("P", "V"): ("all-reduce",) * 2, ("P", "S"): ("reduce-scatter", "all-gather"),
    ("R", "V"): ("", "all-reduce"), ("R", "S"): ("", "all-gather"), ("V", "S"): ("", ""), ("V", "R"): ("", ""),
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A mesh of devices; `itemsize` is that of a real number in compute."""

    mesh: Mesh
    device: Device = H100
    links: Links = NVLINK
    itemsize: int = 2

    def is_near(self, axis: int) -> bool:
        """Whether the ranks along an axis sit in one node."""
        return math.prod(a.size for a in self.mesh.axes[axis:]) <= self.links.node

    def collective(self, kind: str, whole: float, axis: int) -> float:
        """Seconds of one that joins `whole` bytes along an axis."""
        n = self.mesh.axes[axis].size
        if not kind or n == 1:
            return 0.0
        near = self.is_near(axis)
        rate = self.links.near if near else self.links.far
        return (self.links.near_latency if near else self.links.far_latency) + COLLECTIVES[kind](n) * whole / rate

    def nbytes(self, type_: TensorType, layout: Layout, sizes: Mapping[str, int], skip: int = -1) -> float:
        """What a rank holds; along the axis `skip` as if it held all."""
        n = float(math.prod(size_of(d, sizes) for d in type_.dims)) * INDEX_BYTES.get(type_.dtype, self.itemsize)
        for a, (place, axis) in enumerate(zip(layout, self.mesh.axes, strict=False)):
            if place.kind == "S" and a != skip:
                n /= axis.size
        return n


def collectives(src: Layout, dst: Layout) -> Iterator[tuple[Move, Layout, str, str]]:
    """The steps of a move with the layout before each, and their collectives forward and backward."""
    here = list(src)
    for m in moves(src, dst) or []:
        before = tuple(here)
        here[m.axis] = m.dst
        yield m, before, *BY_KINDS[m.src.kind, m.dst.kind]


def edge_cost(
    type_: TensorType, src: Layout, dst: Layout, machine: Machine, sizes: Mapping[str, int], gradient: bool = True
) -> float:
    """Seconds of a move forward and backward; infinite if there is none. A value without a gradient has no backward."""
    if src == dst:
        return 0.0
    if moves(src, dst) is None:
        return math.inf
    total = 0.0
    for m, before, forward, backward in collectives(src, dst):
        whole = machine.nbytes(type_, before, sizes, skip=m.axis)
        total += machine.collective(forward, whole, m.axis)
        if gradient and type_.dtype == "float":
            total += machine.collective(backward, whole, m.axis)
    return total


def work_cost(
    eqn: Eqn, ins: Sequence[TensorType | None], strategies: Sequence[Strategy], machine: Machine,
    sizes: Mapping[str, int],
) -> float:  # fmt: skip
    """Seconds of an equation forward and backward on one rank."""
    share = math.prod(a.size for s, a in zip(strategies, machine.mesh.axes, strict=True) if divides(s))
    flops = eqn_cost(eqn, list(ins), sizes, machine.itemsize).flops / share * _unskipped(eqn, strategies, machine)
    touched = 0.0
    for i, t in enumerate(ins):
        found = [s.ins[i] for s in strategies]
        if t is not None and t.dtype != "bool":  # a mask is made block by block
            touched += machine.nbytes(t, tuple(p for p in found if p is not None), sizes)
    for j, t in enumerate(eqn.types if eqn.op != "mask" else ()):
        touched += machine.nbytes(t, tuple(s.outs[j] for s in strategies), sizes)
    device = machine.device
    seconds = (1 + BACKWARD) * (max(flops / device.flops, touched / device.bandwidth) + device.launch)
    return seconds + sum(_inside(eqn, ins, strategies, a, machine, sizes) for a in range(len(strategies)))


def _unskipped(eqn: Eqn, strategies: Sequence[Strategy], machine: Machine) -> float:
    """The part of a causal attention that is not skipped.

    Rings lie in zigzag, so all ranks have as much; of queries cut in order the last rank has most."""
    if eqn.op != "attend" or not eqn.attrs.get("causal"):
        return 1.0
    cuts = (a.size for s, a in zip(strategies, machine.mesh.axes, strict=True) if s.name == "gather_kv")
    return 1 - 1 / (2 * math.prod(cuts))


def _inside(
    eqn: Eqn, ins: Sequence[TensorType | None], strategies: Sequence[Strategy], axis: int, machine: Machine,
    sizes: Mapping[str, int],
) -> float:  # fmt: skip
    """Seconds of what a strategy itself sends along an axis."""
    name, n = strategies[axis].name, machine.mesh.axes[axis].size

    def whole(i: int) -> float:
        t = ins[i]
        found = tuple(p for s in strategies if (p := s.ins[i]) is not None)
        return machine.nbytes(t, found, sizes, skip=axis) if t is not None else 0.0

    if name == "ring":  # keys and values go round, and in the backward their gradients with them
        return (1 - RING_HIDDEN) * 3 * machine.collective("all-gather", whole(1) + whole(2), axis) * (n - 1) / n
    if name == "experts" and eqn.op in MOVES_ROWS:
        copies = sum(machine.nbytes(t, (), sizes) for t in (ins[:1] if eqn.op == "combine" else eqn.types[:1]) if t)
        share = math.prod(a.size for b, a in enumerate(machine.mesh.axes) if b != axis and divides(strategies[b]))
        return 2 * machine.collective("all-to-all", copies / share, axis)
    if name == "vocab":  # of each row the log-sum-exp and the label's logit, in fp32: as many bytes as labels have
        return machine.collective("all-gather", n * whole(2 if len(ins) > 2 else 1), axis)
    return 0.0


def divides(s: Strategy) -> bool:
    """Whether the ranks share the work."""
    return not s.name.startswith(("rep", "linear"))
