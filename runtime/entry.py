"""Functions by their names, `module:function`: what a command or a rank runs."""

from __future__ import annotations

import gc
import importlib
from typing import Any


def function_of(name: str) -> Any:
    """The function, imported while nobody looks for cycles among the objects of modules, which stay: that, and the same
    at exit, take `specc build` a second."""
    module, function = name.split(":")
    was_on = gc.isenabled()
    gc.disable()
    try:
        return getattr(importlib.import_module(module), function)
    finally:
        if was_on:
            gc.enable()
