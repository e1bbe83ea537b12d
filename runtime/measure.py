"""What the graphs of a build take on this machine, as they are and compiled, and which of their ops take longest.

A graph runs by itself on drawn values, with caches as other graphs leave them in a step. What other ranks send is drawn
too. Each op is measured by itself besides, with the shapes that it has there."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from specc.compiler.fused import fuses, is_sent, name_of
from specc.compiler.graphs import from_json, node_type
from specc.compiler.work import is_view
from specc.runtime.allocator import keep_memory
from specc.runtime.boxed import Function
from specc.runtime.built import Build, Stage
from specc.runtime.compile import callable_of, example
from specc.runtime.device import CPU
from specc.runtime.products import with_fast_products
from specc.runtime.rates import clocked
from specc.runtime.tuned import Op, Seconds, Tuned

TIMES = 5  # runs of an op, and of a graph at least
SECONDS, MOST = 0.2, 50  # that runs of a graph go on, and how many they are at most
TABLES = ("aten.embedding", "aten.embedding_dense_backward")
GROUPED = "specc.grouped_"  # products of rows, of a matrix a group, and of the ends of groups
CACHED = 1 << 26  # bytes that are written before a graph runs, more than caches hold


@dataclass
class Clock:
    """Seconds of ops, each measured once, and of graphs."""

    device: torch.device
    known: dict[str, float] = field(default_factory=dict)
    rows: Counter[str] = field(default_factory=Counter)
    spent: dict[str, float] = field(default_factory=dict)

    def op(self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
        key = f"{node.target}{_kinds(args)}{_kinds(kwargs)}"
        if key not in self.known:
            self.known[key] = typical(lambda: node.target(*args, **kwargs), self.device, TIMES)  # type: ignore[operator]
        return self.known[key]

    def count(self, name: str, seconds: float) -> None:
        self.rows[name] += 1
        self.spent[name] = self.spent.get(name, 0.0) + seconds

    def whole(self, function: Function, operands: Sequence[Any]) -> float:
        others = torch.zeros(CACHED // 4, device=self.device)

        def run(times: int) -> float:
            return typical(lambda: function([*operands]), self.device, times, lambda: others.add_(1.0))

        first = run(TIMES)
        return first if (more := min(MOST, round(SECONDS / first))) <= TIMES else run(more)


class Timing(fx.Interpreter):
    """Runs a graph once, and measures each op on the way."""

    def __init__(self, gm: fx.GraphModule, clock: Clock) -> None:
        super().__init__(gm)
        self.clock = clock

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "call_function" and name_of(n) and not is_view(n):
            self.clock.count(name_of(n), self.clock.op(n, *self.fetch_args_kwargs_from_env(n)))
        return super().run_node(n)


def measure(build: Build, device: torch.device = CPU) -> Tuned:
    """Measure all graphs of a build's steps, and their ops."""
    keep_memory()
    clock = Clock(device)
    graphs = {name: _stage(stage, clock) for name, stage in build.stages.items()}
    ops = [Op(name, clock.rows[name], seconds) for name, seconds in clock.spent.items()]
    return Tuned(device.type, torch.get_num_threads(), graphs, sorted(ops, key=lambda o: -o.seconds))


def _stage(stage: Stage, clock: Clock) -> dict[str, Seconds]:
    found: dict[str, Seconds] = {}
    if isinstance(stage.plan["threads"], int):
        torch.set_num_threads(stage.plan["threads"])
    stage.register_kernels()
    compiles = stage.plan["compile"] != "off"
    for name in sorted(stage.run_by_any):
        text = (stage.path / "graphs" / f"{name}.json").read_text(encoding="utf-8")
        found[name] = graph_seconds(text, clock, compiles)
    return found


def graph_seconds(text: str, clock: Clock, compiles: bool = True) -> Seconds:
    """Those of a call of a recorded graph; as it is for both if it is not to be compiled, or has nothing to fuse."""
    gm = given_what_is_sent(from_json(text, clock.device))
    operands = [_operand(n, clock.device) for n in gm.graph.find_nodes(op="placeholder")]
    Timing(with_fast_products(gm) if clock.device == CPU else gm, clock).run(*operands)
    plain = clock.whole(callable_of(gm, False, clock.device), operands)
    if not compiles or not fuses(gm):
        return Seconds(plain, plain)
    again = given_what_is_sent(from_json(text, clock.device))
    return Seconds(plain, clock.whole(callable_of(again, True, clock.device), operands))


def given_what_is_sent(gm: fx.GraphModule) -> fx.GraphModule:
    """The graph with what other ranks send as operands, behind its own, and what it sends among its results."""
    sends: list[fx.Node] = []
    for node in list(gm.graph.nodes):
        if is_sent(node):
            sends += [n for n in node.all_input_nodes if not is_sent(n) and n.op != "placeholder"]
            parts = [(node, node_type(node))] if isinstance(node_type(node)[0], str) else _parts(node)
            for value, kind in parts:
                with gm.graph.inserting_before(_first_op(gm)):
                    operand = gm.graph.placeholder(f"sent_{value.name}")
                operand.meta["type"] = kind
                value.replace_all_uses_with(operand)
    output = gm.graph.output_node()
    output.args = ((*output.args[0], *sends),)  # type: ignore[misc]
    gm.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
    gm.recompile()
    return gm


def _parts(node: fx.Node) -> list[tuple[fx.Node, Any]]:
    """The values that a node of several gives, and their types."""
    return [(user, node_type(node)[user.args[1]]) for user in node.users]


def _first_op(gm: fx.GraphModule) -> fx.Node:
    found: fx.Node = next(n for n in gm.graph.nodes if n.op != "placeholder")
    return found


def typical(
    run: Callable[[], object], device: torch.device, times: int, before: Callable[[], object] = lambda: None
) -> float:  # fmt: skip
    """The median seconds of several runs: a step sees no best ones."""
    return statistics.median(clocked(run, device, times, before))


def _operand(node: fx.Node, device: torch.device) -> Any:
    """Values for an operand: any rows where it is for a table or reorders rows, since those that follow one another are
    found in caches; for ends of groups, groups of equal size."""
    x = _drawn(node_type(node), device)
    if not isinstance(x, Tensor) or x.is_floating_point():
        return x
    for user in node.users:
        if name_of(user).startswith(GROUPED) and user.args[2] is node:
            return (torch.arange(1, len(x) + 1, device=device) * _length(user.args[0]) // len(x)).to(x.dtype)
    rows = [n for user in node.users if (n := _rows(user, node))]
    return x.random_(min(rows)) if rows else x


def _rows(user: fx.Node, indices: fx.Node) -> int:
    """Of what is read at these indices, or whose gradient is made; 0 for other uses."""
    name, given = name_of(user), user.args
    if name == "aten.index.Tensor" and indices in (places := list[Any](given[1])):  # type: ignore[arg-type]
        return int(node_type(given[0])[1][places.index(indices)])  # type: ignore[arg-type]
    if name in TABLES:
        return _length(given[0] if name == TABLES[0] else user)
    return 0


def _length(node: Any) -> int:
    return int(node_type(node)[1][0])


def _drawn(kind: Any, device: torch.device) -> Any:
    """Values of a recorded type: zeros, which are places everywhere, masks that hide nothing, and numbers of which sums
    of some hundreds of products stay near 1, since exponentials that underflow take several times as long."""
    if kind and not isinstance(kind[0], str):
        return tuple(_drawn(part, device) for part in kind)
    x = example(kind, device)
    if x.dtype == torch.bool:
        return x.fill_(value=True)
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
