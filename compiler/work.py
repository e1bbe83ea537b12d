"""What running a graph takes: FLOPs of its products, bytes that its ops move, bytes that are alive at once."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from specc.compiler.imports import without_triton
from specc.compiler.lower.own import INSIDE

with without_triton():
    from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Work:
    """FLOPs of products (a multiply-add is two), and bytes that all other ops read and write if nothing is fused."""

    flops: float = 0.0
    bytes: float = 0.0
    nodes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes, self.nodes + other.nodes)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.bytes * times, round(self.nodes * times))


def graph_work(gm: fx.GraphModule) -> Work:
    """The work of one call."""
    total = Work()
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target is not operator.getitem and not is_view(node):
            flops = _flops(node)
            total += Work(flops, 0.0 if flops else _touched(node), 1)
    return total


def is_view(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and bool(node.target.is_view)


def _flops(node: fx.Node) -> float:
    name, operands = str(node.target), [t for a in node.args[:3] if isinstance(a, fx.Node) for t in tensors(a)[:1]]
    if name.startswith("specc.grouped_"):
        products = 2 if name.endswith("_backward.default") else 1
        return products * 2.0 * operands[0].numel() * operands[1].shape[-1]  # each row meets one matrix
    if "flash_attention" in name:
        return _attention_flops(node, name.endswith("_backward.default"))
    count = flop_registry.get(getattr(node.target, "overloadpacket", None))
    if count is None:
        return _kernel_flops(name, operands)
    args = torch.fx.map_arg(node.args, lambda n: n.meta["val"])
    kwargs = torch.fx.map_arg(node.kwargs, lambda n: n.meta["val"])
    found: float = count(*args, **kwargs, out_val=node.meta["val"])
    return found


def _kernel_flops(name: str, operands: list[Tensor]) -> float:
    """Of a generated kernel: row-wise ones have no products."""
    if not name.startswith("specc.attention_"):
        return 0.0
    # q [B S H E], k [B T K E], v [B T K F]: two products, and seven of the same size backward.
    q, k, v = operands
    whole = 2.0 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[1] * (q.shape[3] + v.shape[3])
    return 3.5 * whole if name.endswith("_backward.default") else whole


def _attention_flops(node: fx.Node, backward: bool) -> float:
    """torch's attention of q [B H S E], k [B H T E], v [B H T F]: a causal one computes half of the scores; backward
    has five products for two."""
    assert isinstance(node.target, torch._ops.OpOverload)
    names = [a.name for a in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    q, k, v = (t for x in node.args[backward : backward + 3] if isinstance(x, fx.Node) for t in tensors(x))
    flops = 2.0 * q.shape[:3].numel() * k.shape[2] * (q.shape[3] + v.shape[3])
    return flops * (2.5 if backward else 1.0) * (0.5 if given.get("is_causal") else 1.0)


def _touched(node: fx.Node) -> int:
    return sum(t.numel() * t.element_size() for n in (node, *node.all_input_nodes) for t in tensors(n))


def tensors(node: fx.Node) -> list[Tensor]:
    """The values of a node."""
    val: Any = node.meta.get("val")
    return [t for t in (val if isinstance(val, list | tuple) else [val]) if isinstance(t, Tensor)]


def storages(nodes: Iterable[fx.Node]) -> dict[int, int]:
    """Bytes by storage: views of one tensor are one."""
    held = [t.untyped_storage() for node in nodes for t in tensors(node)]
    return {s._cdata: s.nbytes() for s in held}


def fresh_bytes(kept: Sequence[fx.Node], operands: Sequence[fx.Node]) -> int:
    """Bytes that the kept values hold beyond what came in."""
    known = storages(operands)
    return sum(n for key, n in storages(kept).items() if key not in known)


def _inside(node: fx.Node) -> int:
    """Bytes that an op of our own holds while it runs."""
    inside = INSIDE.get(node.target) if callable(node.target) else None
    return inside(*torch.fx.map_arg(node.args, lambda n: n.meta["val"])) if inside else 0


@dataclass(frozen=True)
class Stretch:
    """Of a call: the most bytes alive beyond what came in, up to where some operands, by place, have their last use."""

    most: int
    last_used: tuple[int, ...]


def stretches(gm: fx.GraphModule) -> tuple[Stretch, ...]:
    """A call from last use to last use of its operands, if values go after theirs."""
    nodes = list(gm.graph.nodes)
    operands: dict[int, list[int]] = {}
    for place, node in enumerate(gm.graph.find_nodes(op="placeholder")):
        for key in storages([node]):
            operands.setdefault(key, []).append(place)
    last: dict[int, int] = {}
    for i, node in enumerate(nodes):
        for key in storages([node, *node.all_input_nodes]):
            last[key] = i
    ends: dict[int, list[int]] = {}
    for key, i in last.items():
        ends.setdefault(i, []).append(key)
    found: list[Stretch] = []
    alive: dict[int, int] = {}
    most = 0
    for i, node in enumerate(nodes):
        alive |= {key: n for key, n in storages([node]).items() if key not in operands}
        most = max(most, sum(alive.values()) + _inside(node))
        gone = [place for key in ends.get(i, []) for place in operands.get(key, [])]
        for key in ends.get(i, []):
            alive.pop(key, None)
        if gone:
            found.append(Stretch(most, tuple(gone)))
            most = sum(alive.values())
    return (*found, Stretch(most, ()))
