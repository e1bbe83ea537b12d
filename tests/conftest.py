"""The `golden` fixture: compares a text with a committed file; `pytest --update-golden` rewrites it. And the order in
which two processes take tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


def pytest_configure(config: pytest.Config) -> None:
    """Tests are of the CPU, wherever they run, but for those that say otherwise."""
    os.environ.setdefault("SPECC_DEVICE", "cpu")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each worker of two begins with half of the list: put files with long tests first in both, so that none is alone
    with one at the end. A file stays together, for its fixtures."""
    if not hasattr(config, "workerinput"):
        return
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    long = [f for f in files.values() if any(i.get_closest_marker(m) for i in f for m in ("slow", "dist"))]
    short = [i for f in files.values() if f not in long for i in f]
    one, two = ([i for f in long[k::2] for i in f] for k in (0, 1))
    n = max(0, len(items) // 2 - len(one))
    items[:] = [*one, *short[:n], *two, *short[n:]]


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden("cli.txt", text)` asserts that tests/golden/cli.txt holds exactly this text."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no {path}: run pytest --update-golden and read the diff"
        assert text == path.read_text(encoding="utf-8"), f"{name} differs: pytest --update-golden, read the diff"

    return compare
