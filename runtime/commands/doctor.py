"""`specc doctor`: what is installed, what this machine has, and what follows for specc."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version

import torch

# Packages of the extras, and what each is for.
EXTRAS = {
    "pillow": ("images", "pictures as data"),
    "pyarrow": ("parquet", "Parquet files as data"),
    "datasets": ("hf", "Hugging Face datasets on disk as data"),
    "transformers": ("parity", "comparison with published implementations"),
    "diffusers": ("parity", "comparison with published image models"),
    "liger-kernel": ("gpu", "more kernels to choose from on a GPU"),
}


def run(args: argparse.Namespace) -> int:
    parts = {"packages": packages(), "machine": machine(), "extras": extras(), "works": works()}
    if args.json:
        print(json.dumps(parts, indent=1))
        return 0
    for title, rows in parts.items():
        width = max(map(len, rows))
        print(f"{title}\n" + "\n".join(f"  {name:{width}}  {text}" for name, text in rows.items()) + "\n")
    return 0


def packages() -> dict[str, str]:
    """The versions of specc, Python and what specc requires."""
    needed = [r for r in requires("specc") or [] if "extra ==" not in r]
    names = sorted({_name(r) for r in needed})
    return {
        "specc": version("specc"),
        "python": platform.python_version(),
        **{n: installed(n) for n in names},
    }


def machine() -> dict[str, str]:
    """Processor, memory, disk and accelerators."""
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    rows = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": f"{os.cpu_count()}, torch uses {torch.get_num_threads()} threads",
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "memory": f"{gigabytes:.1f} GB",
        "disk here": f"{shutil.disk_usage('.').free / 1e9:.1f} GB free",
    }
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        rows[f"gpu {i}"] = f"{gpu.name}, {gpu.total_memory / 1e9:.1f} GB"
    return rows


def extras() -> dict[str, str]:
    """Optional packages: their version, or what they would give and how to get them."""
    missing = "not installed: {use} (pip install 'specc[{extra}]')"
    rows = {}
    for name, (extra, use) in EXTRAS.items():
        found = installed(name)
        rows[name] = found if found != "-" else missing.format(use=use, extra=extra)
    return rows


def works() -> dict[str, str]:
    """What specc can do with this machine."""
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    gpus = torch.cuda.device_count()
    return {
        "run graphs": "yes",
        "compile graphs (CPU)": f"yes, with {compiler}" if compiler else "no: no C++ compiler on the PATH",
        "train on a GPU": f"yes, {gpus} found" if gpus else "no: torch sees none",
        "terminal": "colours and a progress bar" if sys.stderr.isatty() else "plain lines",
    }


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _name(requirement: str) -> str:
    """`triton>=3.6; sys_platform == "linux"` -> `triton`."""
    return next(requirement[:i] for i, c in enumerate(requirement + " ") if c not in _NAME)


_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
