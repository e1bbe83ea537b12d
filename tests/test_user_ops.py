"""Ops of the user's own: checked by their rule without running them, lowered and trained like any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import specc
from specc.compiler.elaborate import elaborate
from specc.compiler.lower.run import bound_sizes, run_program
from specc.compiler.lower.user import user_impls
from specc.runtime import cli
from specc.runtime.errors import RunError

EXAMPLES = Path(__file__).parent.parent / "examples"
SPEC = """
specc: 1
ops: [mine.py]
model:
  dims: {D: 8, V: 300}
  inputs: {tokens: "int[B S]", labels: "int[B S]"}
  steps:
    - embedding: {rows: V, out: D, from: tokens, name: embed}
    - STEP
    - linear: {out: V, as: logits, name: head}
    - cross_entropy: {from: [logits, labels], as: loss}
  outputs: {logits: logits}
  loss: loss
stages:
  pretrain:
    data: {sources: [{path: texts}], seq_len: 8}
    tokenizer: {vocab: 300}
    batch: {sequences: 2}
    budget: {steps: 2}
"""
GOOD = """
import torch
import specc

@specc.op("b s d, d -> b s d", weights={"scale": "ones"})
def scaled(x, scale, *, power: int = 1):
    \"\"\"x times scale.\"\"\"
    return x * scale**power
"""
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(ops: str = GOOD, step: str = "scaled") -> Path:
        (tmp_path / "mine.py").write_text(ops)
        (tmp_path / "s.yaml").write_text(SPEC.replace("STEP", step))
        return tmp_path / "s.yaml"

    return make


def function(head: str, body: str) -> str:
    return f"import torch\nimport specc\n\n@specc.op({head}\n    {body}\n"


def test_checking_runs_no_code_of_the_file(write: Write, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    path = write(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n{GOOD}")
    program = elaborate(specc.load(path))
    assert "scaled" in str(program)
    assert program.params["scaled.scale"].type.shape({}) == (8,)
    assert cli.main(["check", str(path)]) == cli.OK
    assert cli.main(["build", str(path), "-o", str(tmp_path / "b")]) == cli.WRONG_SPEC
    assert not canary.exists()


def test_a_build_wants_to_be_told_that_the_file_is_trusted(write: Write, tmp_path: Path) -> None:
    with pytest.raises(specc.SpecError) as e:
        specc.build(write(), tmp_path / "b")
    assert e.value.codes == ("S403",)
    assert "mine.py (SHA-256 " in str(e.value)


def test_a_user_op_has_the_gradients_of_its_formula(write: Write) -> None:
    spec = specc.load(write(step="scaled: {power: 2}"))
    program = elaborate(spec)
    draw = torch.Generator().manual_seed(0)
    params = {n: torch.randn(p.type.shape({}), generator=draw) for n, p in program.params.items()}
    params = {n: p.requires_grad_() for n, p in params.items()}
    inputs = {n: torch.randint(12, (2, 5), generator=draw) for n in ("tokens", "labels")}
    out = run_program(program, inputs, params, bound_sizes(program, inputs), user_impls(spec, True))["loss"]
    e, s, w = params["embed.weight"], params["scaled.scale"], params["head.weight"]
    logits = (e[inputs["tokens"]] * s**2) @ w
    want = torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"].flatten())
    torch.testing.assert_close(out, want)
    for a, b in zip(torch.autograd.grad(out, (e, s, w)), torch.autograd.grad(want, (e, s, w)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_build_holds_the_file_and_refuses_another(write: Write, tmp_path: Path) -> None:
    path = write()
    build = specc.build(path, tmp_path / "b", allow_ops=True)
    assert (build.path / "mine.py").read_text() == GOOD
    assert "mine.py" in build.manifest["files"]
    assert (tmp_path / "b" / "stages" / "pretrain" / "decode.txt").read_text().strip() == ""
    (build.path / "mine.py").write_text(GOOD + "\n")
    with pytest.raises(RunError, match=r"mine\.py is missing or was changed"):
        specc.run(build.path)


def test_another_text_of_the_file_is_another_stage(write: Write, tmp_path: Path) -> None:
    first = specc.build(write(), tmp_path / "a", allow_ops=True).stages["pretrain"].hash
    second = specc.build(write(GOOD + "# more\n"), tmp_path / "b", allow_ops=True).stages["pretrain"].hash
    assert first != second


def test_an_op_that_mixes_along_the_sequence_does_not_decode(write: Write, tmp_path: Path) -> None:
    ops = function('"b !s d -> b s d")\ndef before(x):', "return torch.cumsum(x, 1)")
    specc.build(write(ops, "before"), tmp_path / "b", allow_ops=True)
    reason = (tmp_path / "b" / "stages" / "pretrain" / "decode.txt").read_text()
    assert "`before` (before) mixes tokens along 'S'" in reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "return x.sum(-1)",
            "by its rule 'b s d -> b s d' the result is float[B S D], here [2, 8, 8]",
        ),
        ("return x.mul_(2)", "changes a tensor in place"),
        ("return x + torch.rand_like(x)", "draws random numbers"),
        ("return x if x.sum().item() > 0 else -x", "fails"),
        ("return undefined", "NameError: name 'undefined' is not defined"),
        ("return x.tolist()", "fails"),
        ("return [x, x]", "has 1 results, the function gave 2"),
        ("return 3", "the result is a int, not a tensor"),
        ("return x.double()", "torch.float64, expected torch.float32"),
        ("return x + torch.tensor([1.0])", "a tensor is made of Python numbers"),
    ],
)
def test_what_a_graph_cannot_hold_is_told_with_its_line(write: Write, tmp_path: Path, body: str, reason: str) -> None:
    path = write(function('"b s d -> b s d")\ndef scaled(x):', body))
    with pytest.raises(specc.SpecError) as e:
        specc.build(path, tmp_path / "b", allow_ops=True)
    (found,) = e.value.diagnostics
    assert found.code == "S404"
    assert reason in found.message
    assert found.mark is not None
    assert found.mark.file == "mine.py"


@pytest.mark.parametrize(
    ("ops", "step", "code"),
    [
        (function('"b s d, d -> b s d")\ndef scaled(x):', "return x"), "scaled", "S402"),
        (function('"b s d")\ndef scaled(x):', "return x"), "scaled", "S402"),
        (function('"b s d -> b s d" + "")\ndef scaled(x):', "return x"), "scaled", "S402"),
        (function('"b s d -> b s n")\ndef scaled(x):', "return x"), "scaled", "S402"),
        (function('"b s d -> b s d")\ndef linear(x):', "return x"), "linear", "S402"),
        ("import specc\n", "scaled", "S402"),
        ("def (:\n", "scaled", "S401"),
        (GOOD, "scaled: {power: two}", "S111"),
        (GOOD, "scaled: {pwr: 2}", "S102"),
        (GOOD, "scaled: {from: tokens}", "S204"),
        (GOOD, "scald", "S106"),
    ],
)
def test_mistakes_are_found_by_reading(write: Write, ops: str, step: str, code: str) -> None:
    with pytest.raises(specc.SpecError) as e:
        elaborate(specc.load(write(ops, step)))
    assert code in e.value.codes


def test_files_outside_are_not_read(write: Write, tmp_path: Path) -> None:
    for name in ("../mine.py", "/etc/passwd", "gone.py", "s.yaml", "a\0b.py"):
        path = write()
        path.write_text(path.read_text().replace("[mine.py]", f'["{name}"]'.replace("\0", "\\0")))
        with pytest.raises(specc.SpecError) as e:
            elaborate(specc.load(path))
        assert e.value.codes == ("S401",)


def test_a_result_may_have_a_size_of_its_own(write: Write, tmp_path: Path) -> None:
    body = "return x.repeat_interleave(n // x.shape[-1], -1)"
    ops = function('"b s d -> b s n")\ndef wider(x, *, n: int):', body)
    build = specc.build(write(ops, "wider: {n: 3 * D}"), tmp_path / "b", allow_ops=True)
    head = next(p for p in build.stages["pretrain"].params if p["path"] == "head.weight")
    assert head["shape"] == [24, 300]


def test_the_example_trains_and_samples(tmp_path: Path) -> None:
    for name in ("user_op.yaml", "my_ops.py"):
        shutil.copy(EXAMPLES / name, tmp_path / name)
    build = specc.build(tmp_path / "user_op.yaml", tmp_path / "b", ["stages.pretrain.budget.steps=3"], allow_ops=True)
    said: list[str] = []
    specc.run(build, say=said.append, base=tmp_path)
    assert any("validation" in line for line in said)
    assert len(specc.sample(build, "def ", tokens=3)) == 1
