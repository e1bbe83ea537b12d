"""The library's language models: each trains with its objective; their variants; their name tables."""

from __future__ import annotations

import json
import math
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

import specc
from specc.compiler.elaborate import elaborate
from specc.compiler.program import Program
from specc.runtime.convert.names import links
from specc.spec.errors import SpecError
from specc.spec.names import NameTable, load_names
from specc.spec.spec import load
from tests.text_models import SMALL, built


def program_of(name: str, *changes: str) -> Program:
    return elaborate(load(Path(str(files("specc.spec.models") / f"{name}.yaml")), list(changes)))


@pytest.mark.parametrize("name", SMALL)
def test_a_model_trains_with_its_objective(name: str, tmp_path: Path) -> None:
    """To less than two thirds of what it began with: words come in any order, so frequencies are all there is."""
    specc.run(built(tmp_path, name), say=lambda _: None, base=tmp_path)
    lines = next(tmp_path.glob("build.runs/*/metrics.jsonl")).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in json.loads(line)]
    assert len(losses) == 30
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-5:]) < 0.67 * losses[0], losses


def test_the_first_t5_has_a_tied_head_and_no_gate() -> None:
    old = program_of("t5", *(f"model.numbers.{n}={v}" for n, v in (("gated", 0), ("tied", 1), ("scaled", 1))))
    new = program_of("t5")
    assert set(new.params) - set(old.params) == {"head.weight", *(p for p in new.params if p.endswith("gate.weight"))}
    assert set(old.params) < set(new.params)
    assert [e.op for e in old.bodies["head"].eqns][:2] == ["rms_norm", "expr"]
    assert "embed.weight" in old.calls[-1].params


def test_the_biases_of_t5_are_made_once_for_all_layers() -> None:
    program = program_of("t5")
    assert sum(e.op == "relative_bucket" for b in program.bodies.values() for e in b.eqns) == 2
    assert [p for p in program.params if "bias" in p] == ["encoder_bias.weight", "decoder_bias.weight"]


@pytest.mark.parametrize("name", SMALL)
def test_a_name_table_names_every_parameter(name: str) -> None:
    program = program_of(name)
    rules = [r for rule in load_names(name).names for r in rule.chosen()]
    shapes = {n: p.type.shape({}) for n, p in program.params.items()}
    assert {p for link in links(rules, shapes) for p in link.ours} == set(shapes)


def test_a_table_may_assume_one_of_several_values() -> None:
    table = NameTable.model_validate({"specc": 1, "model": "t5", "names": [], "assumes": {"act": ["relu", "gelu"]}})
    assert table.overrides({"act": "gelu"}) == []
    with pytest.raises(SpecError, match=r"act is 'silu', not \['relu', 'gelu'\]"):
        table.overrides({"act": "silu"})
