"""What the graphs of a build take on this machine: each of their ops is measured, with the shapes that it has there.

A graph as it is takes the sum of its ops. Compiled, products, attention and the like take what they took by themselves,
and the rest goes in kernels as compiler.fused has them: one moves its bytes as fast as a sum of as many does, and
computes besides what its ops took by themselves beyond moving theirs (exponentials, say)."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from specc.compiler.fused import fused_bytes, fuses, is_alone, is_heavy, is_sent, name_of
from specc.compiler.graphs import from_json, node_type, tensor_bytes
from specc.compiler.schedule.actions import PARTS
from specc.compiler.work import is_view
from specc.runtime.built import Build, Stage
from specc.runtime.compile import apart, example
from specc.runtime.device import CPU
from specc.runtime.products import with_fast_products
from specc.runtime.rates import clocked
from specc.runtime.tuned import Op, Seconds, Tuned

TIMES = 5  # runs of an op
TABLES = ("aten.embedding", "aten.embedding_dense_backward")
SIZES = tuple(1 << n for n in range(14, 27, 2))  # bytes of which moving is measured


@dataclass
class Clock:
    """Seconds of ops and of moving bytes, each measured once."""

    device: torch.device
    known: dict[str, float] = field(default_factory=dict)
    moved: dict[int, float] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    spent: dict[str, float] = field(default_factory=dict)

    def beyond_moving(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        """Seconds that an op takes by itself beyond those of its bytes."""
        touched = sum(tensor_bytes(node_type(n)) for n in (node, *node.all_input_nodes))
        return max(0.0, self.op(node, args, kwargs) - self.moving(touched))

    def op(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        key = f"{node.target}{_kinds(args)}{_kinds(kwargs)}"
        if key not in self.known:
            self.known[key] = typical(lambda: node.target(*args, **kwargs), self.device)  # type: ignore[operator]
        return self.known[key]

    def count(self, ops: Iterable[tuple[str, float]]) -> None:
        for name, seconds in ops:
            self.rows[name] += 1
            self.spent[name] = self.spent.get(name, 0.0) + seconds

    def moving(self, nbytes: int) -> float:
        """Seconds of a kernel that reads and writes so many bytes; between two sizes, as a straight line has it."""
        for size in SIZES:
            if size not in self.moved:
                x = torch.zeros(size // 8, device=self.device)
                y = torch.empty_like(x)
                self.moved[size] = typical(lambda x=x, y=y: torch.add(x, 1.0, out=y), self.device)  # type: ignore[misc]
        low = max((s for s in SIZES[:-1] if s <= nbytes), default=SIZES[0])
        high = SIZES[SIZES.index(low) + 1]
        slope = (self.moved[high] - self.moved[low]) / (high - low)
        return max(self.moved[SIZES[0]], self.moved[low] + slope * (nbytes - low))


class Timing(fx.Interpreter):
    """Runs a graph once, and measures each op on the way."""

    def __init__(self, gm: fx.GraphModule, clock: Clock) -> None:
        super().__init__(gm)
        self.clock, self.alone = clock, 0.0
        self.ops: list[tuple[str, float]] = []

    @property
    def plain(self) -> float:
        return sum(seconds for _, seconds in self.ops)

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and is_sent(n):
            return _drawn(node_type(n), self.clock.device)  # what other ranks send is not computed here
        if n.op == "call_function" and name_of(n) and not is_view(n):
            args, kwargs = self.fetch_args_kwargs_from_env(n)
            seconds = self.clock.op(n, args, kwargs)
            self.ops.append((name_of(n), seconds))
            if is_alone(n):
                self.alone += seconds
            elif is_heavy(n):
                self.alone += self.clock.beyond_moving(n, args, kwargs)
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
    whole = timed(gm, clock)
    clock.count(whole.ops)
    plain = whole.plain
    if not fuses(gm):
        return Seconds(plain, plain)
    tables, rest = apart(gm, clock.device)
    before = timed(tables, clock).plain if tables else 0.0
    return Seconds(plain, before + timed(rest, clock).alone + sum(map(clock.moving, fused_bytes(rest))))


def timed(gm: fx.GraphModule, clock: Clock) -> Timing:
    """The graph, run on drawn values."""
    timing = Timing(gm, clock)
    timing.run(*(_operand(n, clock.device) for n in gm.graph.find_nodes(op="placeholder")))
    return timing


def typical(run: Callable[[], object], device: torch.device) -> float:
    """The median seconds of several runs: a step sees no best ones."""
    return statistics.median(clocked(run, device, TIMES))


def _operand(node: fx.Node, device: torch.device) -> Any:
    """Values for an operand: of a table's rows any, since those that follow one another are found in caches."""
    x = _drawn(node_type(node), device)
    rows = [_rows(u) for u in node.users if name_of(u) in TABLES]
    return x.random_(min(rows)) if rows and isinstance(x, Tensor) and not x.is_floating_point() else x


def _rows(lookup: fx.Node) -> int:
    """Of the table that is read, or whose gradient is made."""
    if name_of(lookup) == "aten.embedding":
        return int(node_type(lookup.all_input_nodes[0])[1][0])
    return int(node_type(lookup)[1][0])


def _drawn(kind: Any, device: torch.device) -> Any:
    """Values of a recorded type: zeros, which are places everywhere, and numbers of which sums of some hundreds of
    products stay near 1, since exponentials that underflow take several times as long."""
    if kind and not isinstance(kind[0], str):
        return tuple(_drawn(part, device) for part in kind)
    x = example(kind, device)
    return x.uniform_(0.02, 0.04) if x.is_floating_point() else x


def _kinds(args: Any) -> str:
    """Arguments as text: of tensors their types."""
    if isinstance(args, Tensor):
        return f"<{args.dtype}{tuple(args.shape)}{args.stride()}>"
    if isinstance(args, Mapping):
        return "{" + ",".join(f"{k}:{_kinds(v)}" for k, v in args.items()) + "}"
    if isinstance(args, list | tuple):
        return "[" + ",".join(map(_kinds, args)) + "]"
    return str(args)
