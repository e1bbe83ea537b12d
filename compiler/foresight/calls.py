"""Seconds of a call of a body on one microbatch: its work, and what it sends and waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specc.compiler.foresight.kernels import Both, seconds, stream
from specc.compiler.foresight.network import Group, collective
from specc.compiler.foresight.recipe import Again, Recipe
from specc.compiler.foresight.work import BodyWork, Kernel
from specc.spec.hardware import Device, Link, Software


@dataclass(frozen=True)
class Cluster:
    """A device with its links to others, and the software that runs on it."""

    device: Device
    near: Link
    far: Link
    software: Software
    host: Link | None = None

    def seconds(self, kind: str, nbytes: float, size: int, stride: int) -> float:
        """Of a collective that joins `nbytes` of `size` ranks, each `stride` devices from the next."""
        return collective(kind, nbytes, Group(size, stride, self.device.node), self.near, self.far)


@dataclass(frozen=True)
class CallTime:
    """Work of one call, and what is sent and not hidden beside it."""

    work: Both
    sent: Both

    def __add__(self, other: CallTime) -> CallTime:
        return CallTime(self.work + other.work, self.sent + other.sent)

    @property
    def forward(self) -> float:
        return self.work.forward + self.sent.forward

    @property
    def backward(self) -> float:
        return self.work.backward + self.sent.backward

    @property
    def busy(self) -> float:
        return self.work.forward + self.work.backward

    @property
    def total(self) -> float:
        return self.forward + self.backward


def call_time(work: BodyWork, recipe: Recipe, cluster: Cluster, again: Again) -> CallTime:
    """`again` says what of the forward is done once more in the backward."""
    done = _work(work, recipe, cluster, again)
    return CallTime(done, _messages(work, recipe, cluster, again) + _weights(work, recipe, cluster, done))


def exposed(sent: float, beside: float, hidden: float) -> float:
    """What is not hidden of something sent beside work."""
    return sent - hidden * min(sent, beside)


def _work(work: BodyWork, recipe: Recipe, cluster: Cluster, again: Again) -> Both:
    """Kernels one after the other, or as fast as the host starts them."""
    total, software = Both(), cluster.software
    for kernel in _side_by_side(work.kernels) if software.merged else work.kernels:
        once = seconds(kernel, cluster.device, software, recipe.format)
        share = {"product": again.products, "attention": again.attention}.get(kernel.kind, again.rows)
        total += Both(once.forward, once.backward + share * once.forward, once.weight)
    adds = stream(work.trained * software.adds, cluster.device) if software.adds else 0.0
    total += Both(0.0, adds, adds)
    if work.experts:
        total += Both(software.experts * 1e-6, 2 * software.experts * 1e-6)
    host = software.host * 1e-6 * len(work.kernels)
    return Both(max(total.forward, host), max(total.backward, host * (1 + again.products)), total.weight)


def tensors(work: BodyWork, software: Software) -> int:
    """How many trained parameters a call has: products that are one have one."""
    trained = [k for k in work.kernels if k.kind == "product" and not k.frozen]
    products = trained if software.merged else []
    return work.params - len(products) + len(_side_by_side(products))


def _side_by_side(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Products of one operand as one product: queries, keys and values; gate and up."""
    found: dict[object, Kernel] = {}
    for i, kernel in enumerate(kernels):
        key = (kernel.operand, kernel.m, kernel.k, kernel.groups, kernel.frozen) if kernel.kind == "product" else i
        have = found.get(key)
        found[key] = kernel if have is None else replace(have, n=have.n + kernel.n, flops=have.flops + kernel.flops)
    return list(found.values())


def _messages(work: BodyWork, recipe: Recipe, cluster: Cluster, again: Again) -> Both:
    """What tensor, context and expert parallelism send."""
    software, total = cluster.software, Both()
    axes = {
        "tp": (recipe.tp, 1, software.hidden_tensor), "cp": (recipe.cp, recipe.tp, software.hidden_context),
        "ep": (recipe.ep, recipe.tp * recipe.cp, 0.0),
    }  # fmt: skip
    for m in work.messages:
        size, stride, hidden = axes[m.axis]
        share = _once_a_node(m.copies, size * stride / cluster.device.node)
        once = (1 - hidden) * cluster.seconds(m.kind, share * m.nbytes, size, stride)
        total += Both(once, once * again.messages) if m.is_forward else Both(0.0, once)
    return total


def _once_a_node(copies: float, nodes: float) -> float:
    """The share of a token's rows that is sent if those for experts of one node go there as one."""
    return nodes * (1 - (1 - 1 / nodes) ** copies) / copies if nodes > 1 else 1.0


def _weights(work: BodyWork, recipe: Recipe, cluster: Cluster, done: Both) -> Both:
    """What ZeRO-3 gathers before each use of weights and sums after, beside the work of other calls."""
    if recipe.zero < 3:
        return Both()
    software, gather, reduce = cluster.software, 0.0, 0.0
    itemsize = 1 if recipe.format == "fp8" and software.gathers_fp8 else 2
    frozen = work.frozen - work.frozen_experts
    others = (work.weights - work.experts, frozen, recipe.shards, recipe.tp)
    experts = (work.experts, work.frozen_experts, recipe.expert_shards, recipe.tp * recipe.ep)
    for n, still, size, stride in (others, experts):
        gather += cluster.seconds("all-gather", itemsize * n, size, stride)
        reduce += cluster.seconds("reduce-scatter", software.reduce * (n - still), size, stride)
    hidden = software.hidden_data
    return Both(exposed(gather, done.forward, hidden), exposed(gather + reduce, done.backward, hidden))
