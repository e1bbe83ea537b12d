"""The YAML layer and `use:`: YAML-1.2 scalars, limits that hold, files that stay inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from specc.spec.errors import SpecError
from specc.spec.loader import load_document
from specc.spec.spec import load
from specc.spec.yaml import MAX_CHARACTERS, load_text
from tests.pace import within

SCALARS: list[tuple[str, Any]] = [
    ("1e-4", 1e-4), ("1.0e-4", 1e-4), (".5", 0.5), ("3.", 3.0), ("+7", 7), ("-0", 0), ("017", 17), ("1_000", 1000),
    ("0x1f", "0x1f"), ("0o17", "0o17"), ("12:30:45", "12:30:45"), ("2024-01-02", "2024-01-02"), ("no", "no"),
    ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("n", "n"), ("true", True), ("False", False),
    ("null", None), ("~", None), ("Null", None), ("nul", "nul"), ("'1'", "1"), ('"true"', "true"), ("!!str 1", "1"),
    ("! 1", "1"), ("!!int 1", 1), ("1.5M", "1.5M"), ("=", "="), ("'<<'", "<<"), ("[]", []), ("{}", {}), ("e5", "e5"),
    ("1e5", 1e5), ("1E5", 1e5), ("_1", "_1"), ("1__0", "1__0"), ("inf", "inf"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), SCALARS, ids=[t for t, _ in SCALARS])
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    got = load_text(f"x: {text}", "a.yaml").data["x"]
    assert got == value
    assert type(got) is type(value)


BOMBS = {
    "aliases": "a: &a [x]\n" + "\n".join(f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]"
                                        for p, c in zip("abcdefghi", "bcdefghij", strict=True)),
    "many aliases": "a: &a x\nb: [" + "*a, " * 300 + "]",
    "circle": "a: &a [*a]",
    "flow": "[" * 10_000,
    "flow maps": "{a: " * 10_000,
    "block": "\n".join(" " * i + "a:" for i in range(400)),
    "dashes": "- " * 10_000,
    "keys": "? " * 10_000,
    "alias depth": "a: &a " + "[" * 40 + "]" * 40 + "\nb: " + "[" * 40 + "*a" + "]" * 40,
    "values": "[" + "1," * 131_000 + "]",  # read to its end it takes 4 s
    "text": "x: " + "y" * (MAX_CHARACTERS + 1),
}  # fmt: skip


@pytest.mark.alone
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_at_once(name: str) -> None:
    with within(1.5), pytest.raises(SpecError) as caught:
        load_text(BOMBS[name], "a.yaml")
    assert caught.value.codes == ("S004" if name == "keys" else "S005",)


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("", "S002", 1),
        ("# only a comment\n", "S002", 1),
        ("a: 1\na: 2\n", "S003", 2),
        ("a: 1\nb: {c: 1, c: 2}\n", "S003", 2),
        ("a: [1\n", "S002", 2),
        ("a: 'x\n", "S002", 2),
        ("a: b: c\n", "S002", 1),
        ("a: 1\n\tb: 2\n", "S002", 2),
        ("a: *b\n", "S002", 1),
        ("a: 1\n--- \nb: 2\n", "S002", 2),
        ("a: 1\nb: \x07\n", "S002", 2),
        ("? [1]\n: 2\n", "S004", 1),
        ("x: 1\n<<: {a: 1}\n", "S004", 2),
        ("x: 1\ny: !!python/object/apply:os.system [id]\n", "S004", 2),
        ("x: !!binary aGk=\n", "S004", 1),
        ("x: !thing 1\n", "S004", 1),
        ("x: !!int yes\n", "S004", 1),
        ("x: !!timestamp 2001-01-01\n", "S004", 1),
        ("x: 1\ny: " + "9" * 5000 + "\n", "S004", 2),
        ("x: 1e999\n", "S004", 1),
        ("x: .nan\n", "S004", 1),
        ("x: -.inf\n", "S004", 1),
    ],
)
def test_bad_yaml_has_a_code_and_a_line(text: str, code: str, line: int) -> None:
    with pytest.raises(SpecError) as caught:
        load_text(text, "a.yaml")
    (found,) = caught.value.diagnostics
    assert (found.code, found.mark and found.mark.line) == (code, line)


def test_an_alias_is_a_copy_with_places() -> None:
    document = load_text("a: &a {x: [1]}\nb: *a\n", "a.yaml")
    assert document.data["a"] == document.data["b"]
    assert document.data["a"] is not document.data["b"]
    mark = document.mark(("b", "x", 0))
    assert mark is not None
    assert mark.line == 1


LAYER = """
specc: 1
model:
  dims: {D: 8}
  inputs: {x: 'float[B S D]'}
  blocks:
    layer:
      in: {x: [B S D]}
      steps:
        - rms_norm
        - linear: {out: D}
  steps:
    - layer
"""


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / "a.yaml"


def test_a_part_of_a_file_is_used(tmp_path: Path) -> None:
    mine = LAYER.replace("      in: {x: [B S D]}\n      steps:\n        - rms_norm\n        - linear: {out: D}\n",
                         "      use: b.yaml#model.blocks.layer\n      set: {steps.1.linear.out: 2 * D}\n")  # fmt: skip
    path = write(tmp_path, a=mine, b=LAYER)
    spec = load(path)
    assert spec.model is not None
    block = spec.model.blocks["layer"]
    assert [s.op for s in block.steps] == ["rms_norm", "linear"]
    assert block.steps[1].args == {"out": "2 * D"}
    mark = spec.mark(("model", "blocks", "layer", "steps", 0))
    assert mark is not None
    assert mark.file.endswith("b.yaml")


def test_models_and_blocks_use_the_library(tmp_path: Path) -> None:
    text = """
specc: 1
models:
  small: {use: models/llama, set: {dims.L: 2}}
  large: {use: llama, dims: {L: 4}}
  own:
    dims: {D: 8}
    inputs: {x: 'float[B S D]'}
    blocks: {mine: {use: library/glu, doc: as it is}}
    steps: [mine: {hidden: 16, from: x}]
"""
    spec = load(write(tmp_path, a=text))
    assert [spec.models[n].dims["L"] for n in ("small", "large")] == [2, 4]
    assert spec.models["own"].blocks["mine"].doc == "as it is"


def failing(path: Path) -> tuple[str, int | None]:
    with pytest.raises(SpecError) as caught:
        load_document(path)
    (found,) = caught.value.diagnostics
    return found.code, found.mark.line if found.mark else None


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../b.yaml", "S007"),
        ("../../../../../../etc/passwd", "S007"),
        ("/etc/passwd", "S007"),
        ("link.yaml", "S007"),
        ("folder/b.yaml", "S007"),
        ("../inside_secret/b.yaml", "S007"),
        ("loop.yaml", "S001"),
        ("file:///etc/passwd", "S001"),
        ("~/b.yaml", "S001"),
        ("x" * 5000, "S001"),
        ("'x\\0y'", "S001"),
        ("nothing.yaml", "S001"),
        (".", "S001"),
        ("a.yaml", "S008"),
        ("lama", "S001"),
        ("b.yaml#model.blocks.nothing", "S006"),
        ("b.yaml#model.dims.D", "S006"),
        ("[]", "S103"),
        ("''", "S103"),
    ],
)
def test_what_is_used_stays_inside(name: str, code: str, tmp_path: Path) -> None:
    root, outside = tmp_path / "inside", tmp_path / "inside_secret"
    root.mkdir()
    outside.mkdir()
    (outside / "b.yaml").write_text(LAYER)
    (tmp_path / "b.yaml").write_text(LAYER)
    (root / "link.yaml").symlink_to(outside / "b.yaml")
    (root / "folder").symlink_to(outside)
    (root / "loop.yaml").symlink_to("loop.yaml")
    name = name.replace("'x\\0y'", '"x\\0y"')
    path = write(root, a=f"specc: 1\nuse: {name}\n", b=LAYER)
    assert failing(path) == (code, 2)


def test_uses_do_not_multiply(tmp_path: Path) -> None:
    for i in range(7):
        uses = "\n".join(f"  m{j}: {{use: b{i + 1}.yaml#models.m0}}" for j in range(20))
        (tmp_path / f"b{i}.yaml").write_text(f"specc: 1\nmodels:\n{uses}\n")
    (tmp_path / "b7.yaml").write_text("specc: 1\nmodels: {m0: {doc: x}}\n")
    assert failing(tmp_path / "b0.yaml")[0] == "S005"


def test_an_override_reaches_sections_that_are_not_written(tmp_path: Path) -> None:
    path = write(tmp_path, a="specc: 1\nuse: models/llama\n")
    spec = load(path, ["plan.compile=off", "plan.precision.compute=bf16", "model.dims.L=3"])
    assert (spec.plan.compile, spec.plan.precision.compute) == ("off", "bf16")


@pytest.mark.parametrize("text", ["x", "model.dmis.L=2", "modl.dims.L=2", "model.steps.99=x", "model.dims.L.x.y=2"])
def test_a_wrong_override_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(write(tmp_path, a="specc: 1\nuse: models/llama\n"), [text])
    assert set(caught.value.codes) <= {"S006", "S101"}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("plan.cluster.memory=70GB", "plan.cluster.memory: should be a valid number"),
        ("plan.offload={activations: 2}", "plan.offload.activations: should be less than"),
        ("plan.zerro=3", "'zerro' is not a key here"),
    ],
)
def test_a_mistake_of_an_override_is_told_of_it(override: str, told: str, tmp_path: Path) -> None:
    """Also where the file has no such section."""
    (tmp_path / "a.yaml").write_text("specc: 1\nuse: models/llama\n")
    with pytest.raises(SpecError) as caught:
        load(tmp_path / "a.yaml", [override])
    (one,) = caught.value.diagnostics
    assert one.message.startswith(told)
    assert one.mark is not None
    assert (one.mark.file, one.mark.text) == ("--set", override)
