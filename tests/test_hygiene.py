"""What may not stand in the source: ways to execute data, silent fallbacks, files too long to read."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = [p for d in ("spec", "compiler", "runtime", "tests") for p in sorted((ROOT / d).rglob("*.py"))]
PRODUCT = [p for p in FILES if p.relative_to(ROOT).parts[0] != "tests"]
MAX_FILE, MAX_FUNCTION = 400, 60  # lines; the guide asks for functions of 40

# Calls that execute their argument, or can.
DANGEROUS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open",
    "dill.load", "dill.loads", "joblib.load", "torch.load",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all",
}  # fmt: skip
# Where one of them may stand, and why.
ALLOWED: dict[tuple[str, str], str] = {}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def calls(path: Path) -> Iterator[ast.Call]:
    return (n for n in ast.walk(tree(path)) if isinstance(n, ast.Call))


def is_true(node: ast.expr) -> bool:
    return not (isinstance(node, ast.Constant) and not node.value)


def findings(path: Path) -> set[str]:
    """The dangerous calls of a file, by name."""
    found = {ast.unparse(c.func) for c in calls(path)} & DANGEROUS
    keywords = {k.arg for c in calls(path) for k in c.keywords if is_true(k.value)}
    return found | (keywords & {"shell", "trust_remote_code", "allow_pickle"})


def test_nothing_executes_data() -> None:
    found = {(relative(p), name) for p in FILES for name in findings(p)}
    assert found <= set(ALLOWED), f"dangerous calls: {sorted(found - set(ALLOWED))}"
    assert set(ALLOWED) <= found, f"no longer needed: {sorted(set(ALLOWED) - found)}"


@pytest.mark.parametrize(
    "line",
    [
        "eval(x)",
        "torch.load(f)",
        "run(c, shell=True)",
        "from_pretrained(n, trust_remote_code=flag)",
        "pickle.loads(b)",
    ],
)
def test_the_gate_sees(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(line + "\n")
    assert findings(tmp_path / "a.py")


def test_dangerous_names_are_not_imported() -> None:
    """`from torch import load` would hide a call from the test above."""
    bad = set()
    for path in FILES:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{a.name}" for a in node.names}
                bad |= {f"{relative(path)}: {n}" for n in names & DANGEROUS}
    assert not bad


def test_files_are_short() -> None:
    lines = {relative(p): len(p.read_text(encoding="utf-8").splitlines()) for p in FILES}
    assert not {p: n for p, n in lines.items() if n > MAX_FILE}


def test_functions_are_short() -> None:
    long = {}
    for path in PRODUCT:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION:
                    long[f"{relative(path)}:{node.name}"] = length
    assert not long


def test_no_failure_is_swallowed() -> None:
    """`except Exception` and a bare `except` hide mistakes of ours."""
    broad = {
        f"{relative(path)}:{node.lineno}"
        for path in PRODUCT
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and not any(isinstance(n, ast.Raise) for n in ast.walk(node))
    }
    assert not broad


def test_the_environment_is_read_in_one_place() -> None:
    allowed = {"runtime/cli.py", "runtime/terminal.py", "runtime/cache.py"}  # the last one tells Inductor its folder,
    allowed |= {"runtime/compile.py", "runtime/standalone.py"}  # these how it works, and libraries of its an address
    # torchrun tells a rank who it is by the environment, and so where it computes; gloo, which interfaces it talks on
    allowed |= {"runtime/nursery.py", "runtime/worker.py", "runtime/device.py", "runtime/gloo.py"}
    bad = {
        f"{relative(path)}:{node.lineno}"
        for path in PRODUCT
        if relative(path) not in allowed
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"os.environ", "os.getenv"}
    }
    assert not bad


def test_nothing_is_left_to_do() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "X" * 3)
    bad = {relative(p) for p in FILES if any(m in p.read_text(encoding="utf-8") for m in marks)}
    assert not bad


def test_every_module_says_what_it_does() -> None:
    bad = [relative(p) for p in FILES if p.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree(p))]
    assert not bad


def test_pins_are_exact() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(line.count("==") == 1 and " " not in line for line in pins)
    assert "torch==2.13.0" in pins
