"""Graphs as callables: as they are, or as C++ by Inductor, once for all the calls of a body.

This is the only module that touches Inductor."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch._functorch import config as functorch
from torch._subclasses.fake_tensor import FakeTensorMode

from specc.compiler.fused import fuses
from specc.compiler.graphs import dtype_named, to_json
from specc.compiler.imports import without_triton
from specc.compiler.units import duration
from specc.compiler.work import Work
from specc.runtime import standalone
from specc.runtime.attention import with_own_attention
from specc.runtime.boxed import Function, boxed
from specc.runtime.cache import has_caches, kept, key, own_code, settings, use_private_cache
from specc.runtime.device import CPU
from specc.runtime.products import with_fast_products
from specc.runtime.rows import with_row_sums

Mode = Literal["auto", "on", "off"]
SECONDS_A_GRAPH, SECONDS_A_NODE = 2.0, 0.025  # what compiling takes on two cores, with nothing in the cache,
BESIDE = 2.0  # and times as long beside a run;
MOST = 7  # 2 to this is the most steps that are run meanwhile


@dataclass(frozen=True)
class Decision:
    """Whether to compile, why, the predicted seconds of a step either way, graphs that stay as they are, and the first
    step with compiled ones."""

    compiled: bool
    why: str
    step_seconds: float
    device: str = "cpu"
    plain: list[str] = field(default_factory=list)
    begins: int = 0


def decide(
    mode: Mode, seconds: tuple[float, float], graphs: Work, n_graphs: int, steps: int, device: torch.device = CPU,
    slower: Sequence[str] = (), beside: bool = True,
) -> Decision:  # fmt: skip
    """Compile if that takes less time than it saves in all steps; `seconds` of a step are those of the graphs as they
    are and compiled, but for those that would be `slower`. Where a process can do so `beside` a
    run on a CPU, the first steps do not wait for it."""
    plain, compiled = seconds
    cost = n_graphs * SECONDS_A_GRAPH + graphs.nodes * SECONDS_A_NODE
    begins = meanwhile(BESIDE * cost / plain) if mode == "auto" and beside and device == CPU else 0
    pays = (plain - compiled) * (steps - begins) > cost
    chosen = pays if mode == "auto" else mode == "on"
    verb = "pays" if pays else "does not pay"
    note = f"compiling {n_graphs} graphs (about {duration(cost)}) {verb} in a run of {duration(plain * steps)}"
    why = note if mode == "auto" else f"compile: {mode}"
    if not chosen:
        return Decision(False, why, plain, device.type)
    if slower:
        why += f"; not {', '.join(slower)}, as measured"
    if begins:
        why += f"; from step {begins} on, until then beside the run"
    return Decision(True, why, compiled, device.type, list(slower), begins)


def meanwhile(steps: float) -> int:
    """A power of two near to that many steps, so that runs alike begin alike, though no two measure the same speed."""
    return int(2 ** min(MOST, round(math.log2(max(1.0, steps)))))


def decided(path: Path, make: Callable[[], Decision], device: torch.device = CPU) -> Decision:
    """The decision of a run, made once: a run that goes on computes as it began, unless on another kind of device."""
    if path.is_file():
        known = Decision(**json.loads(path.read_text(encoding="utf-8")))
        if known.device == device.type:
            return known
    made = make()
    path.write_text(json.dumps(asdict(made)) + "\n", encoding="utf-8")
    return made


def callable_of(gm: fx.GraphModule, compiled: bool, device: torch.device = CPU) -> Function:
    """The graph with this machine's fastest products: as it is, or through Inductor if there is something to fuse."""
    if device == CPU:
        gm = with_fast_products(gm)
    if not compiled or not fuses(gm):
        return boxed(gm)
    if device != CPU:
        return compile_graph(gm, device)[0]
    gm = with_own_attention(gm)
    folder = kept() / _key(gm)
    return (standalone.load(folder) if has_caches() else None) or _compiled_here(gm, folder)


def _compiled_here(gm: fx.GraphModule, folder: Path) -> Function:
    """The graph through Inductor, kept in a folder if that can be."""
    with without_triton():
        from specc.runtime.tables import without_tables  # late: it imports what cuts graphs, a second

        tables, rest = without_tables(with_row_sums(gm))
        made, source = compile_graph(rest)
        program = standalone.keep(folder, source, tables) if has_caches() else None
    return program or (made if tables is None else standalone.after_tables(tables, made))


def _key(gm: fx.GraphModule) -> str:
    """What the C++ of a graph depends on: the graph, what is done to it here, torch, processor, threads, settings."""
    here = [own_code(), sys.version, torch.get_num_threads(), settings(), torch.are_deterministic_algorithms_enabled()]
    return key(*here, to_json(gm))


def compile_graph(gm: fx.GraphModule, device: torch.device = CPU) -> tuple[Function, str]:
    """The graph through Inductor, and its program; its operands' types are those that it was built with."""
    use_private_cache()
    if device == CPU:
        os.environ.setdefault("TORCH_WARM_POOL", "0")  # processes that compile Triton's kernels: here are none
    # Without a shape environment Inductor would neither look into its cache nor put anything there.
    shapes: Any = import_module("torch.fx.experimental.symbolic_shapes")  # imported late: it takes a second
    mode = FakeTensorMode(shape_env=shapes.ShapeEnv(), allow_non_fake_inputs=True)
    operands = [example(node.meta["type"], device) for node in gm.graph.find_nodes(op="placeholder")]
    made = [mode.from_tensor(x, static_shapes=True) for x in operands]
    found: list[Any] = []
    inductor: Any = import_module("torch._inductor.compile_fx")  # late too

    def keep(*args: Any, **kwargs: Any) -> Any:
        found.append(inductor.compile_fx_inner(*args, **kwargs))
        return found[-1]

    # What compile_fx returns takes operands one by one and holds them to the end; what it wraps takes a list. Nodes
    # stay in the graph's order: values are made late and go early, as a backward's are in torch.compile.
    settings = inductor.config.patch(reorder_for_locality=False)
    with settings, functorch.patch(enable_autograd_cache=False):  # from that cache would come the wrapper alone
        inductor.compile_fx(gm, made, inner_compile=keep)
    return found[-1], getattr(found[-1], "source_code", "")


def example(type_: tuple[str, list[int], list[int]], device: torch.device = CPU) -> Tensor:
    """A tensor of a recorded type, with its strides."""
    name, shape, strides = type_
    return torch.empty_strided(shape, strides, dtype=dtype_named(name), device=device).zero_()
