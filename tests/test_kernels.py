"""Regions of row-wise work as generated kernels: what is cut, how the files read, and that they compute what they say.

The kernels run in Triton's interpreter, in a process of its own (tests/kernels/interpret.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from specc.compiler.kernels.attention import attentions, make_attention
from specc.compiler.kernels.attention_ranges import Ranges
from specc.compiler.kernels.cross_entropy import Head, make_cross_entropy
from specc.compiler.kernels.cut import Cut
from specc.compiler.kernels.emit import impl, kernels_of, with_kernels
from specc.compiler.kernels.load import load_kernel
from specc.compiler.kernels.mask_forms import mask_mod
from specc.compiler.kernels.region import Region, sub_body, trace
from specc.compiler.kernels.source import make, plain
from specc.compiler.lower.run import run_program
from specc.compiler.masks import expand
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.program import Eqn
from specc.compiler.types import Dim, TensorType
from specc.spec.expr import Expr, parse
from tests.grid.models import TRACERS, inputs_of, weights_of
from tests.kernels.interpret import NARROW
from tests.kernels.losses import PARTS
from tests.kernels.masks import N_K, N_Q, attributes, dense, predicates
from tests.kernels.regions import ATTENTIONS, ODD, cuts

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
B, S = Dim("B"), Dim("S")
# The largest error, as a share of the largest entry. bf16 has 8 bits, and a region rounds to it a few times.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-2}


# One with more layers has the same bodies.
MODELS = sorted(set(TRACERS) - {"llama_deep"})


@cache
def found(model: str) -> dict[str, Cut]:
    tracer = TRACERS[model]
    return cuts(tracer.program(), tracer.sizes, torch.bfloat16)


@cache
def kernels(model: str) -> dict[str, Cut]:
    """Those of a whole program, attentions too, in fp32."""
    tracer = TRACERS[model]
    return kernels_of(sink_masks(tracer.program()), tracer.sizes, torch.float32)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the interpreter made of everything."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.interpret", str(tmp_path_factory.mktemp("kernels"))]
    env = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def interpreted(process: dict[str, Any]) -> list[dict[str, Any]]:
    """What every kernel did, forward and backward, in fp32 and bf16."""
    rows: list[dict[str, Any]] = process["kernels"]
    return rows


def test_every_model_has_kernels_that_run(interpreted: list[dict[str, Any]]) -> None:
    assert {r["model"] for r in interpreted if r["dtype"] == "float32"} == {*ODD, "broadcasts"}
    assert {r["model"] for r in interpreted if r["dtype"] == "bfloat16"} == set(NARROW)


def test_kernels_compute_what_the_body_does(interpreted: list[dict[str, Any]]) -> None:
    assert [r for r in interpreted if not r["forward"] <= TOLERANCE[r["dtype"]]] == []


def test_kernels_give_the_gradients_of_the_body(interpreted: list[dict[str, Any]]) -> None:
    assert [r for r in interpreted if not r["backward"] <= TOLERANCE[r["dtype"]]] == []


def test_kernels_write_nothing_beside_their_results(interpreted: list[dict[str, Any]]) -> None:
    assert [r["name"] for r in interpreted if not r["untouched"]] == []


def test_torch_accepts_every_op(interpreted: list[dict[str, Any]]) -> None:
    assert {r["name"]: r["checked"] for r in interpreted if r["checked"]} == {}


def test_attention_of_all_masks_is_among_them(interpreted: list[dict[str, Any]]) -> None:
    assert {r["model"] for r in interpreted if r["name"].startswith("attention_")} == set(ATTENTIONS)


def test_losses_of_rows_and_their_gradients_are_those_of_torch(process: dict[str, Any]) -> None:
    """Of a whole vocabulary, and of ranks' parts of one."""
    rows = process["losses"]
    assert {(r["dtype"], r["n_parts"]) for r in rows} == {(d, n) for d in TOLERANCE for n in (1, PARTS)}
    assert [r for r in rows if not r["loss"] <= TOLERANCE["float32"]] == []  # in fp32 whatever logits are in
    assert [r for r in rows if not r["gradient"] <= TOLERANCE[r["dtype"]]] == []
    assert [r["name"] for r in rows if not r["untouched"] or r["checked"]] == []


def test_grouped_products_and_their_gradients_are_those_of_a_loop(process: dict[str, Any]) -> None:
    assert process["grouped"]["forward"] <= TOLERANCE["float32"]
    assert process["grouped"]["backward"] <= TOLERANCE["float32"]
    assert process["grouped"]["untouched"]


def test_parts_of_attention_put_together_are_the_whole(process: dict[str, Any]) -> None:
    rows = process["parts"]
    assert [r for r in rows if not max(r["forward"], r["backward"]) <= TOLERANCE[r["dtype"]]] == []
    assert [r for r in rows if not r["untouched"] or r["checked"]] == []
    assert any(r["sees_nothing"] for r in rows)


def test_windows_of_whole_sequences_cost_their_tiles_alone(process: dict[str, Any]) -> None:
    rows = process["wholes"]
    assert [r for r in rows if not max(r["forward"], r["backward"]) <= TOLERANCE["float32"]] == []
    back, both, _, ahead = (r["text"] for r in rows)
    keys = "range(tl.maximum(0, tl.program_id(0) * BLOCK_Q - {}) // BLOCK_K * BLOCK_K, {}, BLOCK_K)"
    assert keys.format(8, "tl.minimum(n_k, (tl.program_id(0) + 1) * BLOCK_Q + 8)") in back
    assert keys.format(19, "tl.minimum(n_k, (tl.program_id(0) + 1) * BLOCK_Q)") in both
    assert "range(0, tl.minimum(n_k, (tl.program_id(0) + 1) * BLOCK_Q + 3), BLOCK_K)" in ahead


def test_documents_and_chunks_cost_their_tiles_alone(process: dict[str, Any]) -> None:
    rows = process["documents"]
    assert [r for r in rows if not max(r["forward"], r["backward"]) <= TOLERANCE["float32"]] == []
    assert len(rows) == 6


@pytest.mark.parametrize("text", ["full", "causal", "window(9) & causal", "causal & 1 < 2"])
def test_a_predicate_whose_form_tells_it_all_looks_at_no_tiles(text: str) -> None:
    assert Ranges(expand(text, {}, {}), (), False).functions() == []


def test_a_tile_goes_over_all_that_it_sees(process: dict[str, Any]) -> None:
    assert process["sights"]["wrong"] == []
    assert process["sights"]["tried"] > 100
    assert process["sights"]["left_out"] > 10


def test_a_ring_of_kernels_is_attention(process: dict[str, Any]) -> None:
    rows = process["rings"]
    assert [r for r in rows if not max(r["forward"], r["backward"]) <= TOLERANCE[r["dtype"]]] == []


def test_a_predicate_is_the_same_in_a_tile_and_dense(process: dict[str, Any]) -> None:
    assert process["masks"] == []


@pytest.mark.parametrize("e", predicates(), ids=str)
def test_a_predicate_is_the_same_for_flex_attention_and_dense(e: Expr) -> None:
    given = attributes(1)
    mod = mask_mod(e, {n: x[None] for n, x in given.items()})
    made = create_mask(mod, 1, None, N_Q, N_K, device="cpu")
    assert torch.equal(made[0, 0], dense(e, given))


def test_a_residual_sum_and_the_norm_behind_it_are_one_kernel(golden: Callable[[str, str], None]) -> None:
    made = found("llama")["layers"].made
    golden("kernel_expr_rms_norm.py.txt", next(m.source for n, m in made.items() if n.startswith("expr_rms_norm")))


def test_a_gated_sum_a_norm_and_its_modulation_are_one_kernel(golden: Callable[[str, str], None]) -> None:
    made = found("sd3")["layers"].made
    golden("kernel_expr_layer_norm.py.txt", next(m.source for n, m in made.items() if n.startswith("expr_layer_norm")))


@pytest.mark.skipif(torch.__version__ < "2.13", reason="older ones take the gradient of silu apart in another way")
def test_a_body_reads_as_its_regions(golden: Callable[[str, str], None]) -> None:
    golden("llama_regions.txt", str(found("llama")["layers"].body) + "\n")


@pytest.mark.parametrize("model", MODELS)
def test_what_is_left_to_aten_is_no_work_of_rows(model: str) -> None:
    reasons = {reason for c in kernels(model).values() for reason in c.left.values()}
    assert reasons <= {
        "alone, it gains nothing", "it sums over rows", "it has dims beside those of its rows",
    }  # fmt: skip


def test_attention_reads_its_mask_from_attributes(golden: Callable[[str, str], None]) -> None:
    body = next(b for b in sink_masks(TRACERS["llama"].program()).bodies.values() if attentions(b))
    golden("kernel_attention.py.txt", make_attention(next(iter(attentions(body).values())), torch.bfloat16).source)


@pytest.mark.parametrize("is_part", [False, True])
def test_a_loss_is_two_walks_over_a_row(is_part: bool, golden: Callable[[str, str], None]) -> None:
    made = make_cross_entropy(Head(32000, is_part, "a head"), torch.float32)
    golden(f"kernel_cross_entropy{'_part' if is_part else ''}.py.txt", made.source)


def test_attention_of_a_part_takes_the_places_of_its_tokens(golden: Callable[[str, str], None]) -> None:
    body = next(b for b in sink_masks(TRACERS["llama"].program()).bodies.values() if attentions(b))
    part = replace(next(iter(attentions(body).values())), is_part=True)
    golden("kernel_attention_part.py.txt", make_attention(part, torch.bfloat16).source)


def test_a_factor_of_whole_samples_sums_whole_rows() -> None:
    """Its gradient sums along rows too, so a program may not hold a part of one."""
    x, g = TensorType((B, S, Dim("D", 1500))), TensorType((B,))
    scaled = Eqn("expr", ("x", "g"), ("y",), (x,), {"formula": parse("x * g * g")}, "scaled")
    region = Region(sub_body([scaled], {"x": x, "g": g, "y": x}, ["y"]), (B, S), x.dims[-1])
    forward, backward = make(region, trace(region, torch.bfloat16), torch.bfloat16).entries
    assert forward.settings[0].constants["BLOCK_D"] == 1024
    assert backward.settings[0].constants["BLOCK_D"] == 2048


def test_equal_regions_are_one_kernel() -> None:
    layers, head = (found("llama")[b].made for b in ("layers", "head"))
    assert set(head) < set(layers)


def test_text_of_a_spec_stays_in_its_comment() -> None:
    assert "\n" not in plain('x"""\nimport os')
    assert plain("a\\nb") == "a?nb"


@pytest.mark.parametrize("model", MODELS)
def test_a_program_of_kernels_computes_what_the_program_does(model: str, tmp_path: Path) -> None:
    """In torch's form of the kernels: what is checked is how they are put into a program."""
    tracer = TRACERS[model]
    program = tracer.program()
    parts = kernels(model)
    for name, made in {n: m for c in parts.values() for n, m in c.made.items()}.items():
        (tmp_path / f"{name}.py").write_text(made.source)
        load_kernel(tmp_path / f"{name}.py")
    impls = {n: impl(n) for c in parts.values() for n in c.made}
    inputs, weights = inputs_of(program, tracer.sizes, torch.float32, 0), weights_of(program, torch.float32)
    leaves = {n: w.requires_grad_() for n, w in weights.items()}
    ends = [
        run_program(p, inputs, leaves, tracer.sizes, impls)
        for p in (program, with_kernels(sink_masks(program), parts, set()))
    ]
    losses = [
        torch.stack([x.double().square().mean() for x in o.values() if x.is_floating_point()]).sum() for o in ends
    ]
    one, other = (torch.autograd.grad(x, list(leaves.values()), allow_unused=True) for x in losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0.0)
    for name, a, b in zip(leaves, one, other, strict=True):
        assert (a is None) == (b is None), name
        if a is not None and b is not None:
            torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-5 * max(1.0, float(a.abs().max())))
