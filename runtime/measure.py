"""What the graphs of a build take on this machine: each of their ops is measured, with the shapes that it has there.

A graph as it is takes the sum of its ops. Compiled, products, attention and the like take what they took by themselves,
and the rest goes in kernels as compiler.fused has them, which move their bytes as fast as a sum of as many does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from specc.compiler.fused import fused_bytes, is_alone, is_sent, name_of
from specc.compiler.graphs import from_json, node_type
from specc.compiler.schedule.actions import PARTS
from specc.compiler.work import is_view
from specc.runtime.built import Build, Stage
from specc.runtime.compile import example
from specc.runtime.device import CPU
from specc.runtime.products import with_fast_products
from specc.runtime.rates import best
from specc.runtime.tuned import Op, Seconds, Tuned

SIZES = tuple(1 << n for n in range(14, 27, 2))  # bytes of which moving is measured


@dataclass
class Clock:
    """Seconds of ops and of moving bytes, each measured once."""

    device: torch.device
    known: dict[str, float] = field(default_factory=dict)
    moved: dict[int, float] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    spent: dict[str, float] = field(default_factory=dict)

    def op(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        key = f"{node.target}{_kinds(args)}{_kinds(kwargs)}"
        if key not in self.known:
            self.known[key] = best(lambda: node.target(*args, **kwargs), self.device)  # type: ignore[operator]
        name = name_of(node)
        self.rows[name] += 1
        self.spent[name] = self.spent.get(name, 0.0) + self.known[key]
        return self.known[key]

    def moving(self, nbytes: int) -> float:
        """Seconds of a kernel that reads and writes so many bytes; between two sizes, as a straight line has it."""
        for size in SIZES:
            if size not in self.moved:
                x = torch.zeros(size // 8, device=self.device)
                y = torch.empty_like(x)
                self.moved[size] = best(lambda x=x, y=y: torch.add(x, 1.0, out=y), self.device)  # type: ignore[misc]
        low = max((s for s in SIZES[:-1] if s <= nbytes), default=SIZES[0])
        high = SIZES[SIZES.index(low) + 1]
        slope = (self.moved[high] - self.moved[low]) / (high - low)
        return max(self.moved[SIZES[0]], self.moved[low] + slope * (nbytes - low))


class Timing(fx.Interpreter):
    """Runs a graph once, and measures each op on the way."""

    def __init__(self, gm: fx.GraphModule, clock: Clock) -> None:
        super().__init__(gm)
        self.clock, self.plain, self.alone = clock, 0.0, 0.0

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and is_sent(n):
            return _drawn(node_type(n), self.clock.device)  # what other ranks send is not computed here
        if n.op == "call_function" and name_of(n) and not is_view(n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            seconds = self.clock.op(n, args, kwargs)
            self.plain += seconds
            self.alone += seconds if is_alone(n) else 0.0
        return super().run_node(n)


def measure(build: Build, device: torch.device = CPU) -> Tuned:
    """Measure all ops of a build's graphs, on drawn values."""
    clock = Clock(device)
    graphs = {name: _stage(stage, clock) for name, stage in build.stages.items()}
    ops = [Op(name, clock.rows[name], seconds) for name, seconds in clock.spent.items()]
    return Tuned(device.type, torch.get_num_threads(), graphs, sorted(ops, key=lambda o: -o.seconds))


def _stage(stage: Stage, clock: Clock) -> dict[str, Seconds]:
    found: dict[str, Seconds] = {}
    if isinstance(stage.plan["threads"], int):
        torch.set_num_threads(stage.plan["threads"])
    for body, layout in stage.graphs.items():
        for part in sorted(set(layout["parts"]) & set(PARTS.values())):
            text = (stage.path / "graphs" / f"{body}.{part}.json").read_text(encoding="utf-8")
            found[f"{body}.{part}"] = graph_seconds(from_json(text, clock.device), clock)
    return found


def graph_seconds(gm: fx.GraphModule, clock: Clock) -> Seconds:
    """Those of one call."""
    if clock.device == CPU:
        gm = with_fast_products(gm)
    timing = Timing(gm, clock)
    timing.run(*(_drawn(node_type(n), clock.device) for n in gm.graph.find_nodes(op="placeholder")))
    return Seconds(timing.plain, timing.alone + sum(map(clock.moving, fused_bytes(gm))))


def _drawn(kind: Any, device: torch.device) -> Any:
    """Values of a recorded type: numbers near 1, and zeros, which are places everywhere."""
    if kind and not isinstance(kind[0], str):
        return tuple(_drawn(part, device) for part in kind)
    x = example(kind, device)
    return x.uniform_(0.5, 1.5) if x.is_floating_point() else x


def _kinds(args: Any) -> str:
    """Arguments as text: of tensors their types."""
    if isinstance(args, Tensor):
        return f"<{args.dtype}{tuple(args.shape)}{args.stride()}>"
    if isinstance(args, Mapping):
        return "{" + ",".join(f"{k}:{_kinds(v)}" for k, v in args.items()) + "}"
    if isinstance(args, list | tuple):
        return "[" + ",".join(map(_kinds, args)) + "]"
    return str(args)
