"""Placed programs as graphs: which collectives they have, and that every rank has the same."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import fx

from specc.compiler.fused import is_sent
from specc.compiler.graphs import CARRIED, Graphs, from_json, to_json
from specc.compiler.lower.collectives import WAIT
from specc.compiler.lower.placed_bodies import lower_placed
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.placement.place import Options, place
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.types import Axis, Mesh
from specc.compiler.program import check
from tests.grid.models import TRACERS
from tests.grid.plans import PLANS, cp, dp, tp

WIDE = replace(
    TRACERS["llama"], dims={"D": 512, "L": 2, "H": 8, "K": 8, "F": 2048, "V": 4096}, sizes={"B": 4, "S": 2048}
)  # fmt: skip


def llama(mesh: Mesh, options: Options) -> Placed:
    program = WIDE.program()
    return place(sink_masks(program) if options.context == "ring" else program, mesh, WIDE.sizes, options)


def layer(placed: Placed) -> Graphs:
    return lower_placed(placed, torch.float32)[0]["layers"]


def collectives(gm: fx.GraphModule | None) -> dict[str, int]:
    """How often each collective stands in a graph, under its short name."""
    assert gm is not None
    found = Counter(
        str(node.target).split(".")[1].removesuffix("_tensor").removesuffix("_into").removesuffix("_single")
        for node in gm.graph.nodes
        if node.op == "call_function" and is_sent(node) and node.target is not WAIT
    )
    return dict(found)


def test_tensor_parallel_layer_has_two_all_reduces_each_way() -> None:
    whole = {f"layers.{path}": {"tp": "rep"} for path in ("attention_norm", "glu_norm", "expr")}
    g = layer(llama(Mesh((tp(4),)), Options(sequence_parallel=False, pins=whole)))
    assert collectives(g.fwd) == {"all_reduce": 2}
    assert collectives(g.bwd) == {"all_reduce": 2}


def test_sequence_parallel_layer_gathers_and_scatters_twice_each_way() -> None:
    g = layer(llama(Mesh((tp(4),)), Options(sequence_parallel=True)))
    assert collectives(g.fwd) == {"all_gather": 2, "reduce_scatter": 2}
    assert collectives(g.bwd) == {"all_gather": 2, "reduce_scatter": 2}


def test_ulysses_layer_has_four_all_to_alls_each_way() -> None:
    g = layer(llama(Mesh((cp(4),)), Options(context="ulysses")))
    assert collectives(g.fwd) == {"all_to_all": 4}
    assert collectives(g.bwd) == {"all_to_all": 4}


def test_ring_layer_passes_keys_on_and_gradients_home() -> None:
    g = layer(llama(Mesh((cp(4),)), Options(context="ring")))
    assert collectives(g.fwd) == {"shift": 3}
    assert collectives(g.bwd) == {"shift": 3 + 4}


def test_zero_3_gathers_parameters_at_each_use_and_scatters_gradients() -> None:
    placed = llama(Mesh((dp(4),)), Options(zero=3))
    g = layer(placed)
    assert placed.gather_each_use
    assert collectives(g.fwd) == collectives(g.bwd) == {}
    assert g.carry
    assert collectives(g.carry.unshard_start) == {"all_gather": 9}
    assert collectives(g.carry.unshard_finish) == {}
    assert collectives(g.carry.reduce_start) == {"reduce_scatter": 9}
    assert collectives(g.carry.reduce_finish) == {}
    parts = {name: str(gm.graph).count("wait_tensor") for name, gm in g.parts().items() if name in CARRIED}
    assert parts["unshard_start"] == parts["reduce_start"] == 0 < parts["unshard_finish"] == parts["reduce_finish"]


def test_data_parallel_only_adds_gradients() -> None:
    g = layer(llama(Mesh((dp(4),)), Options()))
    assert g.carry
    assert (g.carry.unshard_start, g.carry.gathered) == (None, ())
    assert collectives(g.carry.reduce_start) == {"all_reduce": 9}


@pytest.mark.parametrize("plan", ["tp+sp", "ulysses", "ring", "zero3"])
def test_the_backward_recomputes_no_collective_and_saves_no_view_of_a_parameter(plan: str) -> None:
    p = PLANS[plan]
    g = layer(llama(p.mesh(2), p.options))
    saved = g.fwd.graph.output_node().args[0]
    assert isinstance(saved, tuple)
    places = {node: i for i, node in enumerate(g.fwd.graph.find_nodes(op="placeholder"))}
    for node in saved[g.n_outs :]:
        source = node
        while source not in places and len(source.all_input_nodes) == 1 and "view" in str(source.target):
            (source,) = source.all_input_nodes
        assert source is node or source not in places, f"{node} is a view of an operand"


@pytest.mark.parametrize(
    ("axes", "options"),
    [((tp(2),), Options(sequence_parallel=True)), ((dp(2), tp(2)), Options(zero=3, sequence_parallel=True))],
    ids=["tp+sp", "zero3+tp+sp"],
)
def test_no_graph_computes_what_nobody_uses(axes: tuple[Axis, ...], options: Options) -> None:
    for body, g in lower_placed(llama(Mesh(axes), options), torch.float32)[0].items():
        for part, gm in g.parts().items():
            idle = [str(n.target) for n in gm.graph.nodes if n.op == "call_function" and not n.users]
            assert not idle, f"{body}.{part}: {idle}"


def test_graphs_with_collectives_survive_their_file() -> None:
    g = layer(llama(Mesh((dp(2), tp(2))), Options(zero=3, sequence_parallel=True)))
    for gm in g.parts().values():
        again = from_json(to_json(gm))
        assert [str(n.target) for n in again.graph.nodes if n.op == "call_function"] == [
            "<built-in function getitem>" if n.target is operator.getitem else str(n.target)
            for n in gm.graph.nodes if n.op == "call_function"
        ]  # fmt: skip
    assert '"specc_tp"' in to_json(g.fwd)


def test_masks_are_made_where_they_are_used() -> None:
    program = TRACERS["llama"].program()
    sunk = check(sink_masks(program))
    assert not any(e.op == "mask" for e in sunk.bodies["stem"].eqns)
    assert sunk.bodies["layers"].eqns[0].op == "mask"
    assert [v.name for v in sunk.bodies["layers"].ins] == ["x_x", "c_pos", "mask_doc"]
    assert sink_masks(sunk) is sunk
