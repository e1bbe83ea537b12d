"""Where code that was made for this machine is kept, and what it depends on."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch

FOLDER = "TORCHINDUCTOR_CACHE_DIR"


def use_private_cache() -> None:
    """Here and in processes that start from now on, unless told of another folder."""
    os.environ.setdefault(FOLDER, str(private_cache()))


def private_cache() -> Path:
    """A cache folder that only this user can read: code from it is executed."""
    path = Path(os.path.expanduser("~")) / ".cache" / "specc" / "inductor"
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def kept() -> Path:
    """The folder in it for what is no file of Inductor's: a folder for each thing, named by what it depends on."""
    use_private_cache()
    return Path(os.environ[FOLDER]) / "specc"


@contextmanager
def made_beside(folder: Path, is_whole: Callable[[], bool]) -> Iterator[Path]:
    """A new folder to fill, which then takes this one's place, unless another process was faster and this is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        yield begun
        begun.chmod(0o755)  # who may read the cache may read this
        if not is_whole():
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                begun.rename(folder)
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def has_caches() -> bool:
    return os.environ.get("TORCHINDUCTOR_FORCE_DISABLE_CACHES") != "1"


def settings() -> dict[str, str]:
    """What the environment says of compilers."""
    return {n: v for n, v in sorted(os.environ.items()) if n.startswith(("TORCHINDUCTOR_", "CXX")) and n != FOLDER}


def key(*parts: object) -> str:
    """A name for what depends on these parts, on the processor and on torch."""
    return sha256(f"{torch.__version__} {processor()} {parts}".encode()).hexdigest()


@cache
def own_code() -> str:
    here = Path(__file__).parent
    code = [path.read_bytes() for f in (here, here.parent / "compiler") for path in sorted(f.rglob("*.py"))]
    return sha256(b"".join(code)).hexdigest()


@cache
def processor() -> str:
    """Its name and its instructions."""
    path = Path("/proc/cpuinfo")
    told = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    lines = {line for line in told if line.startswith(("model name", "flags", "Features", "CPU part", "CPU impl"))}
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {sorted(lines)}"
