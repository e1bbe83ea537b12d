"""The snippets of docs/ are specs that check, and what is generated is current."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import specc
from specc.compiler.build import build_spec
from specc.compiler.elaborate import elaborate
from specc.compiler.ops import OPS
from specc.compiler.ops.user import op_files
from specc.runtime.cli import main
from specc.runtime.commands.ops import as_markdown
from specc.spec.dump import dump
from specc.spec.yaml import load_text

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [*sorted(DOCS.glob("*.md")), DOCS.parent / "README.md"]
PLACEMENT = [DOCS / "placement.md"]
FENCE = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)\)")
# What a fragment is merged over: `yaml model` over the model, `yaml steps` behind its first step.
BASE: dict[str, Any] = {
    "dims": {"D": 64, "L": 2, "V": 128},
    "inputs": {"tokens": "int[B S]", "labels": "int[B S]"},
    "steps": [{"embedding": {"rows": "V", "out": "D"}, "from": "tokens", "as": "x", "name": "embed"}],
}


def snippets(language: str, pages: Sequence[Path] = PAGES) -> list[Any]:
    found = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for m in FENCE.finditer(text):
            if m[1] == language:
                line = text[: m.start()].count("\n") + 1
                found.append(pytest.param(m[2], m[3], id=f"{page.name}:{line}"))
    return found


def whole(kind: str, text: str) -> dict[str, Any]:
    """The spec that a snippet stands for."""
    data = load_text(text, kind).data
    if kind == "":
        return {**data}
    if kind == "top":
        return {"specc": 1, **data}
    model = {**BASE, "steps": [*BASE["steps"], *data]} if kind == "steps" else merged(data)
    return {"specc": 1, "model": model}


def merged(data: dict[str, Any]) -> dict[str, Any]:
    return {**BASE, **data, "dims": {**BASE["dims"], **data.get("dims", {})}}


@pytest.mark.parametrize(("kind", "text"), snippets("yaml"))
def test_a_snippet_is_a_spec_that_checks(kind: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(dump(whole(kind, text)))
    spec = specc.load(path)
    for name in [n for n in [spec.name if spec.model else None, *spec.models] if n]:
        assert elaborate(spec, name).calls


@pytest.mark.parametrize(("kind", "text"), snippets("python"))
def test_a_snippet_of_python_declares_an_op(kind: str, text: str, tmp_path: Path) -> None:
    assert kind == "op", "other Python belongs to a test of its own"
    (tmp_path / "ops.py").write_text(text)
    (tmp_path / "s.yaml").write_text(dump({"specc": 1, "ops": ["ops.py"], "model": BASE}))
    (file,) = op_files(specc.load(tmp_path / "s.yaml"))
    assert file.rows


def test_the_page_of_ops_is_current() -> None:
    rows = {name: op for name, op in sorted(OPS.items()) if not op.internal}
    made = as_markdown(rows)
    assert (DOCS / "ops.md").read_text(encoding="utf-8") == made, "run: specc ops --markdown > docs/ops.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [x for x in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in x]
    assert not [x for x in links if not (page.parent / x).exists()]


def test_the_spec_of_the_readme_is_the_example() -> None:
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```yaml\n(specc: 1\n.*?)```", text, re.DOTALL)
    assert found
    assert found[1] == (DOCS.parent / "examples" / "tiny.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("command", "shown"), snippets("console", PLACEMENT))
def test_what_the_page_of_placement_shows_is_what_specc_explain_prints(
    command: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said, _, rest = shown.partition("\n")
    assert command == ""
    words = said.removeprefix("$ specc ").split()
    assert main([str(DOCS.parent / w) if w.endswith(".yaml") else w for w in words]) == 0
    assert capsys.readouterr().out.rstrip() == rest.rstrip()


def test_the_layer_and_the_collectives_of_the_page_of_placement_are_those_of_a_build(tmp_path: Path) -> None:
    build_spec(specc.load(DOCS.parent / "examples" / "tensor_parallel.yaml"), tmp_path / "build")
    home = tmp_path / "build" / "stages" / "pretrain"
    layer, collectives = (p.values[1] for p in snippets("text", PLACEMENT))
    assert layer in (home / "placed.txt").read_text(encoding="utf-8")
    graph = (home / "graphs" / "layers.fwd.txt").read_text(encoding="utf-8").splitlines()
    assert set(collectives.splitlines()) <= set(graph)
