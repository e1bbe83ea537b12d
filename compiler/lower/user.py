"""Ops of the user's own as implementations: their file is run when a build trusts it, and each result is compared with
the rule. What is traced into graphs is made of torch's own operators, so a run needs none of the user's code."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Mapping, Sequence
from importlib.abc import SourceLoader
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from specc.compiler.graphs import NAMESPACES
from specc.compiler.lower.local import Impl, Local
from specc.compiler.ops.row import Op
from specc.compiler.ops.user import OpFile, op_files
from specc.compiler.types import Dim
from specc.spec.errors import Diagnostic, Mark, SpecError
from specc.spec.spec import Spec


def user_impls(spec: Spec, is_trusted: bool) -> dict[str, Impl]:
    """The implementations of all ops that a spec brings; raises SpecError if it brings some and is not trusted."""
    files = op_files(spec)
    if files and not is_trusted:
        names = ", ".join(f"{f.name} (SHA-256 {f.sha256[:12]})" for f in files)
        hint = "read the file; if you trust it, build with --allow-ops"
        raise SpecError(Diagnostic("S403", f"building this spec runs code of {names}", spec.mark(("ops",)), hint))
    return {name: impl for file in files for name, impl in impls_of(file).items()}


def impls_of(file: OpFile) -> dict[str, Impl]:
    """Run a file and take its ops from it."""
    module = loaded(file)
    return {name: implementation(row, getattr(module, name), file) for name, row in file.rows.items()}


class _Bytes(SourceLoader):
    """Loads exactly the bytes that were hashed; nothing is cached beside the file."""

    def __init__(self, file: OpFile) -> None:
        self.file = file

    def get_filename(self, fullname: str) -> str:
        return str(self.file.path)

    def get_data(self, path: bytes | str) -> bytes:
        return self.file.source


def loaded(file: OpFile) -> ModuleType:
    loader = _Bytes(file)
    found = importlib.util.spec_from_loader(f"specc_ops_{file.sha256[:16]}", loader)
    assert found is not None
    module = importlib.util.module_from_spec(found)
    try:
        loader.exec_module(module)
    except Exception as e:
        raise failed(file, f"'{file.name}' fails when it is imported", e) from None
    return module


def failed(file: OpFile, what: str, e: Exception) -> SpecError:
    """A failure in the user's code, at the last line of theirs that ran."""
    frames = [f for f in traceback.extract_tb(e.__traceback__) if f.filename == str(file.path)]
    mark = None
    if frames:
        lines = file.source.decode("utf-8", errors="replace").splitlines()
        line = frames[-1].lineno or 1
        text = lines[line - 1] if line <= len(lines) else ""
        mark = Mark(file.name, line, len(text) - len(text.lstrip()) + 1, max(1, len(text.strip())), text)
    reason = str(e).strip().split("\n")[0] or "no message"
    return SpecError(Diagnostic("S404", f"{what}: {type(e).__name__}: {reason}", mark))


class Refused(Exception):
    """An operator that a graph may not hold."""


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Stops at operators that change their operands, draw random numbers or are not torch's own."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.namespace not in (*NAMESPACES, "prim"):  # `prim` tells devices and sizes
            raise Refused(f"`{func}` is none of torch's own operators")
        if func._schema.is_mutable:
            raise Refused(f"`{func}` changes a tensor in place; write the step without it")
        if func is torch.ops.aten.lift_fresh.default:
            raise Refused("a tensor is made of Python numbers; write the numbers themselves, or torch.full")
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refused(f"`{func}` draws random numbers, which a graph cannot repeat")
        return func(*args, **(kwargs or {}))


def implementation(row: Op, function: Any, file: OpFile) -> Impl:
    """The user's function as a row's implementation, whose results have the types that the rule says."""

    def run(e: Local, *operands: Tensor | None) -> tuple[Tensor, ...]:
        given = {k: e.size(v) if isinstance(v, Dim) else v for k, v in e.eqn.attrs.items() if k in keywords}
        try:
            with Watch():  # type: ignore[no-untyped-call]
                result = function(*operands, **given)
        except Exception as error:
            raise failed(file, f"`{row.name}` ({e.eqn.path}) fails", error) from None
        results = tuple(result) if isinstance(result, tuple | list) else (result,)
        problem = mismatch(row, e, operands, results)
        if problem:
            raise SpecError(Diagnostic("S404", f"`{row.name}` ({e.eqn.path}): {problem}", row_mark(file, row)))
        return results

    keywords = set(inspect.signature(function).parameters) - set(row.inputs)
    return run


def mismatch(row: Op, e: Local, operands: Sequence[Tensor | None], results: Sequence[Any]) -> str:
    """What is wrong with results, by the rule, or nothing."""
    if len(results) != len(e.eqn.types):
        return f"the rule '{row.rule}' has {len(e.eqn.types)} results, the function gave {len(results)}"
    compute = next((x.dtype for x in operands if x is not None and x.is_floating_point()), None)
    for i, (result, type_) in enumerate(zip(results, e.eqn.types, strict=True)):
        which = f"result {i + 1}" if len(results) > 1 else "the result"
        if not isinstance(result, Tensor):
            return f"{which} is a {type(result).__name__}, not a tensor"
        if tuple(result.shape) != e.shape(i):
            want, got = list(e.shape(i)), list(result.shape)
            return f"by its rule '{row.rule}' {which} is {type_}, here {want}; the function gave {got}"
        dtype = {"int": torch.int64, "bool": torch.bool}.get(type_.dtype, compute or result.dtype)
        if result.dtype != dtype:
            return f"{which} has {result.dtype}, expected {dtype}; convert it: .to({dtype!s})"
    return ""


def row_mark(file: OpFile, row: Op) -> Mark | None:
    """Where the op's function begins."""
    for number, text in enumerate(file.source.decode("utf-8", errors="replace").splitlines(), 1):
        if text.startswith(f"def {row.name}("):
            return Mark(file.name, number, 5, len(row.name), text)
    return None
