"""Elaboration: names resolve, types flow, mistakes are all found at once with a code."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from specc.compiler.elaborate import elaborate_model
from specc.compiler.masks import expand, reach
from specc.compiler.program import Program
from specc.spec.errors import SpecError
from specc.spec.model import ModelSpec

BASE = """
dims: {D: 8, H: 2, E: D // H, F: 12, V: 16, L: 3}
inputs:
  tokens: int[B S]
  labels: int[B S]
attributes:
  doc: int[B S]
steps:
  - embedding: {rows: V, out: D, name: embed, from: tokens, as: x}
"""


def program(text: str, **kwargs: Any) -> Program:
    return elaborate_model(ModelSpec.model_validate(yaml.safe_load(text)), "m", **kwargs)


def codes(text: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        program(text)
    return list(caught.value.codes)


def test_a_decoder_is_stem_layers_and_head(golden: Callable[[str, str], None]) -> None:
    from importlib.resources import files

    text = (files("specc.spec.models") / "llama.yaml").read_text()
    model = program(yaml.safe_dump(yaml.safe_load(text)["model"]))
    assert list(model.bodies) == ["stem", "layers", "head"]
    assert len(model.calls) == 10
    golden("llama_program.txt", str(model))


def test_a_block_is_inlined_with_its_path() -> None:
    p = program(BASE + "  - glu: {hidden: F, name: ffn}\n")
    assert [x for x in p.params if x.startswith("ffn")] == ["ffn.gate.weight", "ffn.up.weight", "ffn.down.weight"]


def test_a_mask_is_made_once_and_captured() -> None:
    layer = "  - attention: {heads: H, head_dim: E, mask: causal & document, name: %s}\n"
    p = program(BASE + layer % "a" + layer % "b")
    assert sum(e.op == "mask" for b in p.bodies.values() for e in b.eqns) == 1


def test_plain_causal_needs_no_mask() -> None:
    p = program(BASE + "  - attention: {heads: H, head_dim: E, mask: causal}\n")
    eqns = [e for b in p.bodies.values() for e in b.eqns]
    assert not any(e.op == "mask" for e in eqns)
    assert next(e for e in eqns if e.op == "attend").attrs["causal"] is True


def test_a_tied_head_shares_the_parameter() -> None:
    p = program(BASE + "  - linear: {out: V, tie: embed, name: head}\n")
    assert list(p.params) == ["embed.weight"]
    assert p.calls[0].params == ("embed.weight",)


def test_a_repeat_carries_and_sums() -> None:
    text = BASE.replace("steps:", """blocks:
  layer:
    in: {x: [B S D]}
    out: [x, cost]
    steps:
      - linear: {out: D}
      - expr: x + _
        as: x
      - mean: {as: cost}
steps:""") + "  - repeat: {block: layer, times: L, name: layers, as: [x, cost]}\nloss: cost\n"  # fmt: skip
    p = program(text)
    assert [c.body for c in p.calls] == ["stem", "layers", "layers", "layers", "head"]
    assert len(p.calls[-1].ins) == 3  # the three costs


def test_per_gives_each_modality_its_own_weights() -> None:
    text = BASE.replace("  doc: int[B S]", "  doc: int[B S]\n  modality: int[B S]")
    p = program(text + "  - linear: {out: F, per: {by: modality, of: [text, image]}, name: up}\nfreeze: ['*.text.*']\n")
    assert not p.params["up.text.weight"].trainable
    assert p.params["up.image.weight"].trainable


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ("  - liner: {out: D}", "S106"),
        ("  - linear: {oot: D}", "S102"),
        ("  - linear: {}", "S107"),
        ("  - linear: {out: Q}", "S111"),
        ("  - linear: {out: D / 3}", "S104"),
        ("  - linear: {out: -1}", "S103"),
        ("  - linear: {out: D, from: y}", "S105"),
        ("  - linear: {out: D, bias: perhaps}", "S111"),
        ("  - expr: x + import", "S104"),
        ("  - expr: x + tokens.y", "S104"),
        ("  - expr: nope(x)", "S104"),
        ("  - {linear: {out: F, as: y}}\n  - expr: x + y", "S201"),
        ("  - rms_norm: {from: tokens}", "S204"),
        ("  - attention: {heads: 3, kv_heads: 2, head_dim: E}", "S203"),
        ("  - attention: {heads: H, head_dim: E, mask: causl}", "S206"),
        ("  - attention: {heads: H, head_dim: E, mask: prefix}", "S206"),
        ("  - attention: {heads: H, head_dim: E, mask: window(0) & causal}", "S206"),
        ("  - attention: {heads: H, head_dim: E, mask: chunk(1.5)}", "S206"),
        ("  - attention: {heads: H, head_dim: E, mask: window(S)}", "S206"),
        ("  - attention: {heads: H, head_dim: E, mask: window(H - 2)}", "S206"),
        ("  - attention: {heads: H, head_dim: E, mask: causal & q.doc}", "S206"),
        ("  - linear: {out: [H, E]}\n  - rope: {low: 2}", "S103"),
        ("  - linear: {out: [H, E]}\n  - rope: {original: 64, low: 5}", "S103"),
        ("  - attention: {heads: H, head_dim: E, mask: q.doc}", "S206"),
        ("  - attention: {heads: H, head_dim: E, mask: (q.doc == k.doc) * 2 > 1}", "S206"),
        ("  - rms_norm: {eps: -1e-5}", "S103"),
        ("  - expr: -(doc > 1)", "S104"),
        ("  - expr: (doc + 1) ** -1", "S104"),
        ("  - expr: doc > 1 and x", "S104"),
        ("  - expr: not x", "S104"),
        ("  - expr: not doc", "S104"),
        ("  - expr: doc + 1 / 0", "S104"),
        ("  - expr: x / 0", "S104"),
        ("  - expr: doc % (1 - 1)", "S104"),
        ("  - attention: {heads: H, head_dim: E, scale: 0}", "S103"),
        ("  - upsample", "S201"),
        ("  - rope: {scaling: 0}", "S103"),
        ("  - cross_entropy: {from: [x, labels], label_smoothing: 1.5}", "S103"),
        ("  - slice: {over: D, start: -1, length: 2}", "S103"),
        ("  - pick: {over: D, at: 8}", "S203"),
        ("  - pick: {over: D, at: -9}", "S203"),
        ("  - sinusoidal: {out: 7, from: tokens}", "S203"),
        ("  - sinusoidal: {out: 8, shift: 4, from: tokens}", "S203"),
        ("  - relative_bucket: {q: S, k: S, buckets: 3}", "S203"),
        ("  - relative_bucket: {q: S, k: S, max_distance: 8}", "S203"),
        ("  - expand: {dims: [B, D, S, L]}\n  - conv: {out: 4, kernel: 6}", "S203"),
        ("  - rearrange: 'b s (h e) -> b s h'", "S103"),
        ("  - rearrange: {pattern: 'b s (h e) -> b s h e', dims: {h: 3}}", "S203"),
        ("  - split: {into: [3, 3]}", "S203"),
        ("  - linear: {out: D, name: embed}", "S109"),
        ("  - linear: {out: S}", "S205"),
        ("  - linear: {out: V, tie: embd}", "S105"),
        ("  - repeat: {block: glu, times: -1}", "S103"),
        ("loss: x", "S207"),
        ("outputs: {y: z}", "S105"),
        ("freeze: [nothing.*]", "S108"),
    ],
)
def test_a_mistake_has_a_code(steps: str, code: str) -> None:
    assert codes(BASE + steps + "\n") == [code]


def test_independent_mistakes_are_reported_together() -> None:
    text = BASE + "  - linear: {oot: D}\n  - rms_norm\n  - liner: {from: x}\n  - linear: {out: Q, from: x}\n"
    assert codes(text) == ["S102", "S106", "S111"]


def test_a_block_cannot_contain_itself() -> None:
    text = BASE.replace(
        "steps:", "blocks:\n  a: {in: {x: [B S D]}, steps: [b]}\n  b: {in: {x: [B S D]}, steps: [a]}\nsteps:"
    )
    assert codes(text + "  - a\n") == ["S106"]


def test_a_mismatch_names_dims_and_source() -> None:
    with pytest.raises(SpecError, match=r"`a` needs the last dim `D`=8 of its input 'x', got `F`=12 from `linear`"):
        program(
            BASE.replace("steps:", "blocks:\n  a: {in: {x: [B S D]}, steps: [rms_norm]}\nsteps:")
            + "  - linear: {out: F}\n  - a\n"
        )


@pytest.mark.parametrize("written", ["window(W) & causal", "near(W)", "window(D // 2 - 1) & causal", "mine"])
def test_a_mask_takes_the_size_of_a_dim(written: str) -> None:
    """As a number, as an argument of a mask of one's own, and inside of one."""
    base = BASE.replace("L: 3}", "L: 3, W: 3}") + "  - attention: {heads: H, head_dim: E, mask: HERE}\n"
    base += "masks: {near(n): window(n) & causal, mine: window(W) & causal}"
    found, plain = (
        [
            str(e.attrs["predicate"])
            for b in program(base.replace("HERE", m)).bodies.values()
            for e in b.eqns
            if e.op == "mask"
        ]
        for m in (written, "window(3) & causal")
    )
    assert len(plain) == 1
    assert found == plain


def test_a_masks_number_may_have_the_name_of_a_mask() -> None:
    block = "blocks:\n  b:\n    args: {window: int}\n    in: {x: [B S D]}\n    steps:\n"
    block += "      - attention: {heads: 2, head_dim: 4, mask: window(window) & causal}\n"
    p = program(block + BASE.lstrip() + "  - b: {window: 3}")
    (mask,) = (e for b in p.bodies.values() for e in b.eqns if e.op == "mask")
    assert "q.index - k.index < 3" in str(mask.attrs["predicate"])


def test_mistakes_of_a_block_that_is_never_called_are_told() -> None:
    block = "blocks:\n  b:\n    in: {x: [B S D]}\n    steps:\n      - linear: {out: NOTHING}\n"
    assert codes(block + BASE.lstrip() + "  - repeat: {block: b, times: 0}") == ["S111"]


@pytest.mark.parametrize(
    ("text", "back", "ahead"),
    [("window(3)", 2, 2), ("q.index - k.index < 2.5", 2, None), ("q.index - k.index <= 2.5", 2, None),
     ("k.index - q.index <= 4 and q.index - k.index < 9", 8, 4), ("q.index - k.index < 9 or k.index == 0", None, None),
     ("not q.index - k.index < 9", None, None)],
)  # fmt: skip
def test_how_far_a_mask_reaches_is_read_off_its_form(text: str, back: int | None, ahead: int | None) -> None:
    e = expand(text, {}, {})
    assert reach(e, ("q.index", "k.index")) == back
    assert reach(e, ("k.index", "q.index")) == ahead


@pytest.mark.parametrize(
    ("formula", "dtype"),
    [("sqrt(doc)", "float"), ("sigmoid(doc + 1)", "float"), ("doc / 2", "float"), ("doc // 2", "int"),
     ("x * (doc > 1)", "float"), ("where(doc > 1, 1, 0)", "int"), ("where(doc > 1, 0.5, 0)", "float"),
     ("max(doc, 3)", "int"),
     ("x * D ** -0.5", "float"), ("doc ** -0.5", "float"), ("2 ** -1 * doc", "float"),
     ("doc > 1 and doc < 3", "bool"), ("float(doc) ** -1", "float"),
     ("-float(doc > 3)", "float")],
)  # fmt: skip
def test_a_formula_has_the_type_that_tensors_will_have(formula: str, dtype: str) -> None:
    p = program(BASE + f"  - expr: {{formula: '{formula}', as: y}}\noutputs: {{y: y}}")
    assert p.value_types()[p.outputs["y"]].dtype == dtype
