"""Process groups by logical names: the one place that makes these private calls of torch."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch.distributed import ProcessGroup

_native: Any = import_module("torch._C._distributed_c10d")


def register(name: str, group: ProcessGroup) -> None:
    """Make this rank's group known to functional collectives; what had the name before is forgotten."""
    forget(name)
    _native._register_process_group(name, group)


def forget(name: str) -> None:
    """Forget a group, if it is known."""
    try:
        _native._unregister_process_group(name)
    except RuntimeError:
        return


def resolve(name: str) -> ProcessGroup:
    """The group that this rank registered under a name."""
    group: ProcessGroup = _native._resolve_process_group(name)
    return group
