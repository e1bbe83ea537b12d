"""Commands on specs: check, show, schema, new. What they print and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specc.runtime import cli
from specc.runtime.commands import new
from tests.pace import within

STARTER = """\
specc: 1
name: small
use: llama
set: {model.dims.L: 2}
stages:
  pretrain:
    tokenizer: {vocab: 8192}
    data: {sources: [{corpus: python-stdlib}], seq_len: 128}
    budget: {steps: 10}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(STARTER)
    return path


def test_check_says_what_is_there(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(spec)]) == cli.OK
    assert f"{spec}: ok: small 14.3 M parameters; stages pretrain" in capsys.readouterr().out


def test_check_goes_on_behind_a_wrong_spec(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = spec.with_name("wrong.yaml")
    wrong.write_text(STARTER.replace("budget", "budgt"))
    assert cli.main(["check", str(wrong), str(spec)]) == cli.WRONG_SPEC
    out, err = capsys.readouterr()
    assert f"{wrong}:9:5: error[S101]: 'budgt' is not a key here" in err
    assert "the key 'budget' is missing" in err
    assert "2 errors" in err
    assert f"{spec}: ok" in out


def test_check_as_json(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = spec.with_name("wrong.yaml")
    wrong.write_text(STARTER.replace("budget", "budgt"))
    assert cli.main(["check", "--json", str(spec), str(wrong)]) == cli.WRONG_SPEC
    good, bad = json.loads(capsys.readouterr().out)
    assert good["ok"]
    assert good["stages"] == ["pretrain"]
    first = bad["diagnostics"][0]
    assert (first["code"], first["line"], first["column"]) == ("S101", 9, 5)


def test_check_takes_overrides(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", str(spec), "--set", "model.dims.L=8"]) == cli.OK
    assert "32.0 M parameters" in capsys.readouterr().out


def test_check_of_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "nowhere.yaml"]) == cli.WRONG_SPEC
    assert "nowhere.yaml" in capsys.readouterr().err


def test_check_never_imports_torch(spec: Path) -> None:
    code = (
        "import sys; from specc.runtime.cli import main;"
        f"main(['check', {str(spec)!r}]); print([m for m in ('torch', 'numpy', 'tokenizers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.alone
def test_check_of_a_deep_model_is_quick(spec: Path) -> None:
    """The target is 0.5 s of wall time for 126 layers; there is room here for other work."""
    command = [sys.executable, "-m", "specc", "check", str(spec), "--set", "model.dims.L=126"]
    with within(1.0, time.perf_counter):
        subprocess.run(command, check=True, capture_output=True, timeout=60)


def test_show_draws_the_model(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(spec)]) == cli.OK
    out = capsys.readouterr().out
    assert "layers x2" in out
    assert "weight [D=512 H=8 E=64]" in out
    assert "FLOPs/token" in out


EACH = """specc: 1
model:
  dims: {widths: [16, 32, 64], V: 512}
  inputs: {tokens: "int[B S]"}
  blocks:
    level:
      args: {out: dim}
      in: {x: [... C]}
      steps: [{linear: {out: out}}]
  steps:
    - embedding: {rows: V, out: first(widths), from: tokens, name: embed}
    - repeat: {block: level, each: {out: widths}, name: levels}
"""


def test_show_counts_tiles_of_different_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "each.yaml").write_text(EACH, encoding="utf-8")
    assert cli.main(["show", str(tmp_path / "each.yaml")]) == cli.OK
    assert f"levels x3  {(16 * 16 + 16 * 32 + 32 * 64) / 1000:.1f} K" in capsys.readouterr().out


def test_show_prints_a_block_of_the_program(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(spec), "--emit", "program", "--block", "layers"]) == cli.OK
    assert capsys.readouterr().out.startswith("block layers(")
    assert cli.main(["show", str(spec), "--emit", "program", "--block", "layer"]) == cli.WRONG_SPEC
    assert "did you mean 'layers'?" in capsys.readouterr().err


def test_show_writes_a_spec_that_checks(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(spec), "--emit", "spec"]) == cli.OK
    whole = spec.with_name("whole.yaml")
    whole.write_text(capsys.readouterr().out)
    assert "use:" not in whole.read_text()
    assert cli.main(["check", str(whole)]) == cli.OK
    assert "small 14.3 M parameters" in capsys.readouterr().out


def test_show_of_graphs_points_to_the_build(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", str(spec), "--emit", "graphs"]) == cli.WRONG_SPEC
    assert "specc build" in capsys.readouterr().err


def test_schema_is_written_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "specc.schema.json"
    assert cli.main(["schema", "-o", str(path)]) == cli.OK
    assert "yaml-language-server" in capsys.readouterr().out
    schema = json.loads(path.read_text())
    assert {"specc", "model", "plan", "stages", "use", "set"} <= set(schema["properties"])


@pytest.mark.parametrize("model", new.library())
def test_every_starter_checks(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    assert cli.main(["new", "mine", "--from", model, "-o", str(path)]) == cli.OK
    assert cli.main(["check", str(path)]) == cli.OK, capsys.readouterr().err


def test_new_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("mine")
    assert cli.main(["new", "mine", "-o", str(path)]) == cli.RUN_FAILED
    assert path.read_text() == "mine"
    assert "exists" in capsys.readouterr().err


def test_new_lists_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["new", "--list"]) == cli.OK
    assert "llama" in capsys.readouterr().out
    assert cli.main(["new", "x", "--from", "lama"]) == cli.WRONG_SPEC
    assert "did you mean 'llama'?" in capsys.readouterr().err
