"""Graphs as callables: as they are, or as C++ by Inductor, once for all the calls of a body.

This is the only module that touches Inductor."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import SymInt, Tensor, fx
from torch._inductor import compile as inductor

from specc.compiler.graphs import dtype_named
from specc.runtime.products import with_fast_products

Function = Callable[..., Sequence[Tensor]]
Mode = Literal["auto", "on", "off"]
SECONDS_A_GRAPH = 20.0  # what compiling one graph takes on two cores
GAIN = 0.25  # share of a step that compilation saves


def choose(mode: Mode, run_seconds: float, n_graphs: int) -> tuple[bool, str]:
    """Whether to compile, and why, from how long the run would take without."""
    if mode != "auto":
        return mode == "on", f"compile: {mode}"
    cost, gain = n_graphs * SECONDS_A_GRAPH, GAIN * run_seconds
    better = gain > cost
    verb = "pays" if better else "does not pay"
    return better, f"compiling {n_graphs} graphs (about {cost:.0f} s) {verb} in a run of about {run_seconds:.0f} s"


def callable_of(gm: fx.GraphModule, compiled: bool) -> Function:
    """The graph with this machine's fastest products, through Inductor or as it is."""
    gm = with_fast_products(gm)
    return compile_graph(gm) if compiled else gm


def compile_graph(gm: fx.GraphModule) -> Function:
    """The graph through Inductor; its operands' types are those that it was built with."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(private_cache()))
    made: list[Tensor | int | SymInt | None] = [
        example(node.meta["type"]) for node in gm.graph.find_nodes(op="placeholder")
    ]
    compiled: Any = inductor(gm, made)
    return lambda *args: compiled(*args)


def example(type_: tuple[str, list[int], list[int]]) -> Tensor:
    """A tensor of a recorded type, with its strides."""
    name, shape, strides = type_
    return torch.empty_strided(shape, strides, dtype=dtype_named(name)).zero_()


def private_cache() -> Path:
    """A cache folder that only this user can read: code from it is executed."""
    path = Path(os.path.expanduser("~")) / ".cache" / "specc" / "inductor"
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path
