"""Every code that the source can give has a page, and the page's example gives the code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from specc.runtime import cli
from specc.runtime.commands.explain import pages

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = re.compile(r"```yaml\n(.*?)```\n```sh\nspecc (.*?)\n```", re.DOTALL)
WITHOUT = {"S308", "S402", "S403", "S404", "S524"}  # they need files beside the spec; other tests give them
WITHOUT |= {"S560"}  # Triton is missing; tests of kernels take it away
WITHOUT |= {"S501", "S502", "S503", "S504", "S505"}  # placement refuses; its own tests give them


def codes() -> set[str]:
    texts = [p.read_text(encoding="utf-8") for d in ("spec", "compiler", "runtime") for p in (ROOT / d).rglob("*.py")]
    return {code for text in texts for code in re.findall(r'"(S[0-9]{3})"', text)}


def test_every_code_has_a_page() -> None:
    assert codes() == set(pages())


@pytest.mark.parametrize("code", sorted(set(pages()) - WITHOUT))
def test_the_example_gives_the_code(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = EXAMPLE.search(pages()[code])
    assert found
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.yaml").write_text(found[1], encoding="utf-8")
    assert cli.main(shlex.split(found[2])) == cli.WRONG_SPEC
    assert f"error[{code}]" in capsys.readouterr().err


def test_explain_prints_pages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "s102"]) == cli.OK
    assert "## Fix" in capsys.readouterr().out
    assert cli.main(["explain"]) == cli.OK
    assert len(capsys.readouterr().out.splitlines()) == len(pages())
    assert cli.main(["explain", "S999"]) == cli.WRONG_SPEC


def test_a_spec_without_a_path_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "mine.yaml"]) == cli.WRONG_SPEC
    said = capsys.readouterr().err
    assert "'mine.yaml' is a spec: the path of a step or a parameter is missing" in said
    assert "specc explain mine.yaml layers.attention.q" in said
