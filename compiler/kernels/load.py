"""Imports the file of a region, which registers its ops."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PACKAGE = "specc_kernels"
LIST = "aot.json"  # beside the files: what they take on a device, and what is used


def load_kernel(path: Path) -> ModuleType:
    """The module of a file, imported once: equal names are equal kernels."""
    name = f"{PACKAGE}.{path.stem}"
    if name not in sys.modules:
        sys.modules[name] = module_of(name, path)
    return sys.modules[name]


def module_of(name: str, path: Path) -> ModuleType:
    """A file as a module, run anew; the last part of a library's name is that of its function."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
