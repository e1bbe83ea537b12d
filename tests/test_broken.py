"""Broken specs, one a file: `specc check` names each mistake by its code and line, and never ends in a traceback.

A line with a mistake ends in `# <- CODE`; where no comment can stand, the first lines say `# expect: CODE:LINE`
(or `CODE` alone, where the place lies in the library or in another file)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from specc.runtime import cli

FILES = sorted((Path(__file__).parent / "broken").glob("*.yaml"))
HERE = re.compile(r"# <- (S[0-9]{3})")
EXPECT = re.compile(r"^# expect: (.*)$", re.MULTILINE)


def expected(path: Path) -> list[tuple[str, int | None]]:
    """Codes with their lines (None: any)."""
    text = path.read_text(encoding="utf-8")
    out: list[tuple[str, int | None]] = []
    for i, line in enumerate(text.split("\n"), 1):
        out += [(code, i) for code in HERE.findall(line)]
    if head := EXPECT.search(text):
        for word in head[1].split():
            code, _, line = word.partition(":")
            out.append((code, int(line) if line else None))
    return out


def reported(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[tuple[str, int | None]]]:
    code = cli.main(["check", "--json", str(path)])
    (report,) = json.loads(capsys.readouterr().out)
    return code, [(d["code"], d.get("line")) for d in report.get("diagnostics", [])]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_broken_spec_is_diagnosed(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    want = expected(path)
    assert want, "the file says nothing about what is wrong with it"
    code, got = reported(path, capsys)
    if want == [("nothing", None)]:
        assert (code, got) == (0, [])
        return
    assert code == cli.WRONG_SPEC
    lines = [(c, None if (c, None) in want else line) for c, line in got]
    assert sorted(lines, key=str) == sorted(want, key=str)
    assert not list(tmp_path.iterdir()), "the canary fired"


def test_there_are_enough() -> None:
    assert len(FILES) >= 60
