"""Compiles kernels ahead of time for GPUs that are not here, and says what each takes of the device."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from specc.compiler.kernels.made import Entry, Made

KiB = 1024
REGISTERS = 65536  # of a processor of NVIDIA, which the threads of a program share
LITTLE = 32  # bytes a thread, which stay in the first cache


@dataclass(frozen=True)
class Target:
    """A GPU: Triton's name of it, and the shared memory that a program may have."""

    backend: str
    arch: int | str
    warp: int
    shared: int


TARGETS: Mapping[str, Target] = {
    "sm80": Target("cuda", 80, 32, 163 * KiB),
    "sm90": Target("cuda", 90, 32, 227 * KiB),
    "sm100": Target("cuda", 100, 32, 227 * KiB),
    "gfx942": Target("hip", "gfx942", 64, 64 * KiB),
}
# The architecture of a device by how its name begins.
DEVICES: Mapping[str, str] = {
    "a100": "sm80", "h100": "sm90", "h200": "sm90", "h800": "sm90", "b200": "sm100", "gb200": "sm100",
    "mi300": "gfx942",
}  # fmt: skip


def targets_of(device: str, alone: bool) -> dict[str, Target]:
    """All architectures, or the device's alone if it is known."""
    own = next((arch for name, arch in DEVICES.items() if device.startswith(name)), "")
    return {own: TARGETS[own]} if alone and own else dict(TARGETS)


@dataclass(frozen=True)
class Figures:
    """What a compiled kernel takes. `wide_loads` are loads of 128 bits, of `loads` from global memory in all; `narrow`
    says why there may be none."""

    kernel: str
    target: str
    setting: int  # its place among the file's
    constants: Mapping[str, int]
    warps: int
    registers: int
    spilled: int  # bytes on NVIDIA, registers on AMD
    shared: int
    loads: int
    wide_loads: int
    narrow: str = ""

    @property
    def is_choice(self) -> bool:
        """Whether ptxas spills a little though registers are left, so that more threads run at once."""
        at = TARGETS[self.target]
        limit = min(255, REGISTERS // (self.warps * at.warp))
        return at.backend == "cuda" and self.registers < limit and self.spilled <= LITTLE

    def problem(self) -> str:
        """Why the kernel is not to be used, or nothing."""
        if self.spilled and not self.is_choice:
            return f"it spills {self.spilled}"
        if self.shared > TARGETS[self.target].shared:
            return f"it needs {self.shared} bytes of shared memory"
        if self.loads and not self.wide_loads and not self.narrow:
            return "no load has 128 bits"
        return ""


def gate(made: Made, module: ModuleType, targets: Mapping[str, Target] = TARGETS) -> list[Figures]:
    """The figures of each kernel on each target, with the first settings that pass, or the first of all.

    None where Triton interprets: it then has no compiler."""
    import triton

    if triton.knobs.runtime.interpret:
        return []
    found: list[Figures] = []
    for entry in made.entries:
        for name in targets:
            tried: list[Figures] = []
            for i in range(len(entry.settings)):
                tried.append(compiled(entry, getattr(module, entry.kernel), name, i))
                if not tried[-1].problem():
                    break
            found.append(tried[-1] if not tried[-1].problem() else tried[0])
    return found


def compiled(entry: Entry, function: Any, target: str, i: int) -> Figures:
    """Compile one kernel for one target."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    at = TARGETS[target]
    setting = entry.settings[i]
    constants = dict(setting.constants)
    signature = {**entry.signature, **dict.fromkeys(constants, "constexpr")}
    aligned = [i for i, n in enumerate(function.arg_names) if signature[n].startswith("*")]
    source = ASTSource(
        fn=function, signature={n: signature[n] for n in function.arg_names}, constexprs=constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned},
    )  # fmt: skip
    options = {"num_warps": setting.warps, "enable_fp_fusion": False}
    binary = triton.compile(source, target=GPUTarget(at.backend, at.arch, at.warp), options=options)
    usage = _nvidia(binary.asm["ptx"]) if at.backend == "cuda" else _amd(binary.asm["amdgcn"])
    shared = binary.metadata.shared
    return Figures(entry.kind, target, i, constants, setting.warps, *usage[:2], shared, *usage[2:], entry.narrow)


def _nvidia(ptx: str) -> tuple[int, int, int, int]:
    """Registers, bytes spilled, loads and wide loads, by the ptxas that Triton takes for the architecture."""
    from triton.backends.nvidia.compiler import get_ptxas

    arch = re.search(r"\.target (sm_(\d+)\w*)", ptx)
    assert arch is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(int(arch[2])).path, "-v", f"-arch={arch[1]}", str(file), "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, stored = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert registers is not None
    assert stored is not None
    # Copies to shared memory that bypass the first cache have 128 bits.
    loads = re.findall(r"ld\.global\S*|cp\.async\.c[ag]\S*", ptx)
    wide = sum(any(w in x for w in (".v4.b32", ".v2.b64", "async.cg")) for x in loads)
    return int(registers[1]), int(stored[1]), len(loads), wide


def _amd(text: str) -> tuple[int, int, int, int]:
    registers, spilled = (re.search(rf"\.vgpr_{what}:\s+(\d+)", text) for what in ("count", "spill_count"))
    assert registers is not None
    assert spilled is not None
    loads = re.findall(r"(?:global|buffer)_load_\w+", text)
    return int(registers[1]), int(spilled[1]), len(loads), sum(x.endswith("dwordx4") for x in loads)
