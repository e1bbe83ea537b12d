"""The installed package is exactly the three folders, layered spec <- compiler <- runtime."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from specc.compiler.imports import IS_FOR_GPUS

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["spec", "compiler", "runtime"]  # each may import itself and those before it
FILES = [p for layer in LAYERS for p in sorted((ROOT / layer).rglob("*.py"))]
SHIPPED = {".py", ".yaml", ".md", ".js", ".css", ".cpp"}
# What may be imported inside a function: it is not always installed,
OPTIONAL = {"PIL", "datasets", "diffusers", "liger_kernel", "pyarrow", "tensorboard", "transformers", "triton"}
# imports the compiler, which takes seconds and which a run does without,
COMPILES = ("specc.runtime.tables", "specc.runtime.kernels", "specc.runtime.make")
# or is slow to import beside all of `specc check`.
SLOW = ("importlib.metadata",)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> set[str]:
    """The modules that a node's import statements name; `from a import b` gives both `a` and `a.b`."""
    names: set[str] = set()
    for n in ast.walk(node):
        if isinstance(n, ast.ImportFrom) and n.module:
            names |= {n.module, *(f"{n.module}.{a.name}" for a in n.names)}
        elif isinstance(n, ast.Import):
            names |= {a.name for a in n.names}
    return names


def module_name(path: Path) -> str:
    name = "specc." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__").replace("specc.runtime.specc", "specc")


def in_a_fresh_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_down(layer: str) -> None:
    above = tuple(f"specc.{a}" for a in LAYERS[LAYERS.index(layer) + 1 :])
    bad = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == layer
        for name in imported(tree(path))
        if above and name.startswith(above)
    }
    assert not bad, f"the order is {' <- '.join(LAYERS)}: {sorted(bad)}"


def test_imports_stand_at_the_top() -> None:
    bad = set()
    for path in FILES:
        functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        names = {name for f in functions for name in imported(f)}
        late = {n for n in names if n.split(".")[0] not in OPTIONAL and not n.startswith(COMPILES + SLOW)}
        bad |= {f"{path.relative_to(ROOT)}: {n}" for n in late}
    assert not bad, f"import inside a function only what is optional, compiles or is slow: {sorted(bad)}"


def test_every_folder_is_packaged() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [p for layer in LAYERS for p in (ROOT / layer).rglob("*") if "__pycache__" not in p.parts]
    dirs = {p.parent for p in files if p.suffix in SHIPPED}
    dirs.discard(ROOT / "runtime" / "specc")
    names = {"specc"} | {"specc." + ".".join(d.relative_to(ROOT).parts) for d in dirs}
    assert set(config["packages"]) == names


def test_nothing_generic_is_importable() -> None:
    code = "import importlib.util as u, specc, specc.spec, specc.compiler, specc.runtime;"
    out = in_a_fresh_python(code + "print([n for n in ('spec', 'compiler', 'runtime') if u.find_spec(n)])")
    assert out.strip() == "[]"


def test_the_spec_layer_does_not_import_torch() -> None:
    names = [module_name(p) for p in FILES if p.relative_to(ROOT).parts[0] == "spec"]
    code = f"import sys, importlib; [importlib.import_module(n) for n in {names!r}];"
    heavy = "('torch', 'numpy', 'triton', 'rich', 'tokenizers')"
    out = in_a_fresh_python(code + f"print([m for m in {heavy} if m in sys.modules])")
    assert out.strip() == "[]"


def test_a_run_imports_no_compiler() -> None:
    code = """
import sys, torch
from specc.runtime.commands import run
from specc.runtime.optimizer import Updater
from specc.runtime.rows import sum_rows
from specc.spec.optimizer import Optimizer
x = torch.ones(2, 2)
Updater(Optimizer(lr=0.1), {"x": x}).step({"x": x}, 0.1)
sum_rows(x[None])  # ops of our own do not import it either
print(*(m for m in ("torch._dynamo", "torch._inductor", "sympy", "triton", "specc.compiler.build") if m in sys.modules))
"""
    assert set(in_a_fresh_python(code).split()) <= ({"triton"} if IS_FOR_GPUS else set())


def test_every_module_imports() -> None:
    names = [module_name(p) for p in FILES if p.name != "__main__.py"]
    in_a_fresh_python(f"import importlib; [importlib.import_module(n) for n in {names!r}]")


@pytest.mark.slow
def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in [*LAYERS, "pyproject.toml", "README.md", "LICENSE"]:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(ROOT / name, source / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        source,
    ]
    subprocess.run(command, check=True, timeout=300)
    (wheel,) = tmp_path.glob("specc-*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {n.split("/")[0].split("-")[0] for n in packed} == {"specc"}
    files = [p for layer in LAYERS for p in (source / layer).rglob("*") if p.suffix in SHIPPED]
    wanted = {f"specc/{p.relative_to(source)}".replace("specc/runtime/specc/", "specc/") for p in files}
    assert not wanted - packed, f"not in the wheel: {sorted(wanted - packed)}"
