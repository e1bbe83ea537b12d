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
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module
