"""Graphs that Inductor has compiled for this machine, kept as files that run without it.

Importing the compiler and asking its cache takes a process seconds and some 130 MB. What it makes of a graph for a
processor is a short program in Python around functions in C++: kept with the libraries of these, it needs neither. A
program that uses more than is known here is not kept; the compiler's own cache then has it."""

from __future__ import annotations

import ast
import builtins
import os
import shutil
import symtable
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from specc.compiler.graphs import from_json, to_json
from specc.compiler.kernels.load import module_of
from specc.runtime.boxed import Function, boxed
from specc.runtime.cache import made_beside

PROGRAM, TABLES = "program.py", "tables.json"
NONE = "null"  # stands in the latter where there are none
HEAD = "import torch as extern_kernels\nfrom specc.runtime.standalone import assert_tensor_metadata, kernel_of"
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm"}  # which torch has under the names that Inductor uses
# What programs import of Inductor, and what stands in them for its benchmarks: none of it is needed.
IMPORTED = {
    "run_intermediate_hooks", "maybe_profile", "_align", "AsyncCompile", "extern_kernels", "assert_tensor_metadata"
}  # fmt: skip
BENCHMARKS = {"get_args", "benchmark_compiled_module"}
COMPILER, MADE = "async_compile", "async_compile.cpp_pybinding"
ADDRESS = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"  # where a library finds the function of torch's that it calls
DAMAGED = (OSError, ImportError, SyntaxError, AttributeError, ValueError)
STALE = 60 * 86400.0  # seconds; what nobody has used for so long goes


def kernel_of(program: str, library: str) -> Any:
    """The function of a library beside a program."""
    os.environ[ADDRESS] = str(torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr)  # type: ignore[attr-defined]
    return module_of(f"{Path(library).stem}.kernel", Path(program).parent / library).kernel


def assert_tensor_metadata(
    x: Tensor | None, size: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, op: str
) -> None:  # fmt: skip
    """What programs of torch 2.14 ask of the results of ops that are not torch's; one may be none."""
    if x is None:
        return
    if x.dtype != dtype:
        raise RuntimeError(f"expected dtype {dtype} but got {x.dtype}\nError in op: {op}")
    torch._C._dynamo.guards.assert_size_stride(x, size, stride, op)


def load(folder: Path) -> Function | None:
    """The graph that is kept in a folder, if one is whole there and may be read."""
    try:
        tables = (folder / TABLES).read_text(encoding="utf-8")
        first = None if tables == NONE else from_json(tables)
        call: Function = module_of("specc_program", folder / PROGRAM).call
        with suppress(OSError):
            os.utime(folder / TABLES)  # this is in use
    except DAMAGED:
        return None
    return call if first is None else after_tables(first, call)


def after_tables(tables: fx.GraphModule, then: Function) -> Function:
    """Two graphs of the same operands; the second one takes the first one's results behind them."""
    first = boxed(tables)

    def both(box: list[Tensor]) -> Sequence[Tensor]:
        box.extend(first([*box]))
        return then(box)

    return both


def keep(folder: Path, source: str, tables: fx.GraphModule | None) -> Function | None:
    """Keep what Inductor made of a graph, and the tables that it takes behind its operands. The graph as it is kept;
    None if that cannot be, also for want of room or rights."""
    made = program_of(source)
    if made is None:
        return None
    text, functions = made
    try:
        with made_beside(folder, lambda: load(folder) is not None) as begun:
            for name, (types, code) in functions.items():
                shutil.copyfile(_compiled(types, code), begun / name)
            (begun / TABLES).write_text(to_json(tables) if tables else NONE, encoding="utf-8")
            (begun / PROGRAM).write_text(text, encoding="utf-8")
        _prune(folder.parent)
    except OSError:
        return None
    return load(folder)


def _prune(root: Path) -> None:
    """Remove what is stale: what older versions kept, and what a process that was killed left half made."""
    for path in root.iterdir():
        used = path / TABLES if (path / TABLES).is_file() else path
        if used.stat().st_mtime < time.time() - STALE:
            shutil.rmtree(path, ignore_errors=True)


Functions = dict[str, tuple[list[str], str]]  # by the file of the library: types of operands, and the code in C++


def program_of(source: str) -> tuple[str, Functions] | None:
    """A program of Inductor's without Inductor, and the functions in C++ that it calls; None if it needs more."""
    cut = _Cut()
    tree = ast.parse(source)
    tree.body = [cut.visit(node) for node in tree.body if not _is_dropped(node)]
    text = f"{HEAD}\n{ast.unparse(ast.fix_missing_locations(tree))}\n"
    defined, used = _names(text)
    is_free = not any(f"torch.{m}" in text for m in ("_inductor", "_dynamo"))
    return (text, cut.functions) if is_free and cut.products <= PRODUCTS and {*used, "call"} <= defined else None


def _names(text: str) -> tuple[set[str], set[str]]:
    """What a program makes, and what its functions use of that. A name that stands for None is one of a constant, which
    the compiler puts in from outside."""
    whole = symtable.symtable(text, PROGRAM, "exec")
    made = {s.get_name() for s in whole.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    none = {
        ast.unparse(target) for node in ast.parse(text).body if isinstance(node, ast.Assign)
        for target in node.targets if isinstance(node.value, ast.Constant) and node.value.value is None
    }  # fmt: skip
    return made - none | set(dir(builtins)) | {"__file__"}, _used(whole)


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
        return ast.parse(f"kernel_of(__file__, {name!r})", mode="eval").body

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
