"""Graphs that Inductor has compiled for this machine, kept as files that run without it.

Importing the compiler and asking its cache takes a process seconds and some 130 MB. What it makes of a graph for a
processor is a short program in Python around functions in C++: kept with the libraries of these, it needs neither. A
program that uses more than is known here is not kept; the compiler's own cache then has it."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import os
import shutil
import symtable
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx

from specc.compiler.graphs import from_json, to_json
from specc.runtime.boxed import Function, boxed

PROGRAM, TABLES = "program.py", "tables.json"
HEAD = "import torch as extern_kernels\nfrom specc.runtime.standalone import function"
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}  # which torch has under the names that Inductor uses
# What programs import of Inductor, and what stands in them for its benchmarks: none of it is needed.
IMPORTED = {"run_intermediate_hooks", "maybe_profile", "_align", "AsyncCompile", "extern_kernels"}
BENCHMARKS = {"get_args", "benchmark_compiled_module"}
COMPILER, MADE = "async_compile", "async_compile.cpp_pybinding"
ADDRESS = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"  # where a library finds the function of torch's that it calls


def function(program: str, library: str) -> Any:
    """The function of a library beside a program."""
    os.environ[ADDRESS] = str(torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr)  # type: ignore[attr-defined]
    return _module("kernel", Path(program).parent / library).kernel


def load(folder: Path) -> Function | None:
    """The graph that is kept in a folder, if one is whole there."""
    if not (folder / PROGRAM).is_file():
        return None
    try:
        call: Function = _module("program", folder / PROGRAM).call
        tables = (folder / TABLES).read_text(encoding="utf-8") if (folder / TABLES).is_file() else ""
    except (ImportError, OSError, SyntaxError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    return before(from_json(tables), call) if tables else call


def before(tables: fx.GraphModule, then: Function) -> Function:
    """Two graphs of the same operands; the second one takes the first one's results behind them."""
    first = boxed(tables)

    def both(box: list[Tensor]) -> Sequence[Tensor]:
        box.extend(first([*box]))
        return then(box)

    return both


def keep(folder: Path, source: str, tables: fx.GraphModule | None) -> bool:
    """Keep what Inductor made of a graph, and the tables that it takes behind its operands; whether it is kept."""
    made = standalone(source)
    if made is None:
        return False
    text, functions = made
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        for name, (types, code) in functions.items():
            shutil.copyfile(_compiled(types, code), begun / name)
        if tables is not None:
            (begun / TABLES).write_text(to_json(tables), encoding="utf-8")
        (begun / PROGRAM).write_text(text, encoding="utf-8")
        begun.rename(folder)
    except OSError:  # another process was faster, or the disk is full
        shutil.rmtree(begun, ignore_errors=True)
    return (folder / PROGRAM).is_file()


Functions = dict[str, tuple[list[str], str]]  # by the file of the library: types of operands, and the code in C++


def standalone(source: str) -> tuple[str, Functions] | None:
    """A program of Inductor's without Inductor, and the functions in C++ that it calls; None if it needs more."""
    cut = _Cut()
    tree = ast.parse(source)
    tree.body = [cut.visit(node) for node in tree.body if not _is_dropped(node)]
    text = ast.unparse(ast.fix_missing_locations(tree))
    whole = f"{HEAD}\n{text}\n"
    is_free = not any(f"torch.{m}" in text for m in ("_inductor", "_dynamo"))
    return (whole, cut.functions) if is_free and cut.products <= PRODUCTS and not _undefined(whole) else None


def _undefined(text: str) -> set[str]:
    """Names that a program uses and does not make: constants of a graph, say, which the compiler puts in."""
    whole = symtable.symtable(text, PROGRAM, "exec")
    defined = {s.get_name() for s in whole.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    return _used(whole) - defined - set(dir(builtins)) - {"__file__"}


def _used(table: symtable.SymbolTable) -> set[str]:
    """Names that stand for what the whole program has."""
    own = {s.get_name() for s in table.get_symbols() if s.is_referenced() and s.is_global()}
    return own.union(*map(_used, table.get_children()))


@dataclass
class _Cut(ast.NodeTransformer):
    """Functions become those of libraries."""

    functions: Functions = field(default_factory=dict)
    products: set[str] = field(default_factory=set)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.func) != MADE or len(node.args) != 2 or node.keywords:
            return node
        types, code = map(ast.literal_eval, node.args)
        name = sha256(f"{types} {code}".encode()).hexdigest()[:32] + ".so"
        self.functions[name] = types, code
        return ast.parse(f"function(__file__, {name!r})", mode="eval").body

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if ast.unparse(node.value) == "extern_kernels":
            self.products.add(node.attr)
        return self.generic_visit(node)


def _is_dropped(node: ast.stmt) -> bool:
    """Imports of Inductor, what is done with its compiler but for functions, benchmarks."""
    match node:
        case ast.ImportFrom(module=str(module), names=[name]) if module.startswith("torch._inductor"):
            return name.name in IMPORTED
        case ast.FunctionDef(name=name):
            return name in BENCHMARKS
        case ast.If():
            return ast.unparse(node.test) == "__name__ == '__main__'"
    return ast.unparse(node) in (
        f"{COMPILER} = AsyncCompile()", f"{COMPILER}.wait(globals())", f"del {COMPILER}"
    )  # fmt: skip


def _compiled(types: list[str], code: str) -> str:
    """The library that Inductor has made of a function."""
    cache: Any = import_module("torch._inductor.codecache").CppPythonBindingsCodeCache
    found: str = cache.load_pybinding(types, code).__self__.__file__
    return found


def _module(name: str, path: Path) -> ModuleType:
    """A module of a file. A library's is called as the function that it has."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
