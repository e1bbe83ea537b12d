"""What generated kernels change, from graphs alone: `python -m tests.kernels [MODEL...]` prints it before and after.

`python -m tests.kernels aot [MODEL...]` compiles every kernel for every GPU and prints what each takes (minutes)."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from specc.compiler.build import lower
from specc.compiler.facts import call_work
from specc.compiler.kernels.aot import gate
from specc.compiler.kernels.cut import Cut
from specc.compiler.kernels.emit import impl, kernels_of, with_kernels
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.program import Program
from specc.compiler.work import Work
from tests.grid.models import TRACERS, Tracer
from tests.kernels.regions import loaded

SIZES = {"B": 4, "S": 256, "T": 256}
OBJECTIVES = {"llama": "causal_lm", "deepseek_v2": "causal_lm", "t5": "span_corruption", "gpt2": "causal_lm",
              "bert": "masked_lm", "glm": "blank_infilling"}  # fmt: skip
MODELS = ("llama", "deepseek_v2", "t5", "cogvlm_expert", "sd3", "gpt2", "bert", "glm", "clip")


@dataclass(frozen=True)
class Change:
    """A model's step before and after. `rows` are the ops of row-wise work in its forward passes; before, attention and
    the loss are what ATen makes of them on a CPU."""

    rows: int
    kernels: int
    before: Work
    after: Work
    saved: tuple[int, int]


def main(args: Sequence[str]) -> None:
    torch.set_num_threads(1)
    if args[:1] == ["aot"]:
        for model in args[1:] or MODELS:
            show_figures(model)
        return
    print("model          row-wise ops   kernels   ops of a step    bytes of a step, GB   saved, MB")
    for model in args or MODELS:
        c = change(model)
        ops, moved = f"{c.before.nodes} -> {c.after.nodes}", f"{c.before.bytes / 1e9:.2f} -> {c.after.bytes / 1e9:.2f}"
        saved = " -> ".join(f"{n / 1e6:.0f}" for n in c.saved)
        print(f"{model:14} {c.rows:12} {c.kernels:9}   {ops:16} {moved:21} {saved}")


def program_of(model: str) -> Program:
    """A model of the library at its own widths."""
    small = {"P": 512} if model in ("gpt2", "bert", "glm") else TRACERS["sd3"].dims if model == "sd3" else {}
    return Tracer(model, small, SIZES, OBJECTIVES.get(model)).program()


def change(model: str) -> Change:
    program = program_of(model)
    found = kernels_of(sink_masks(program), SIZES, torch.bfloat16)
    folder = Path(tempfile.mkdtemp())
    for cut in found.values():
        load_all(cut, folder)
    times = Counter(c.body for c in program.calls)
    rows = sum(n * times[b] for b, c in found.items() for n in c.ops.values())
    kernels = sum(times[b] * sum(e.op in c.made for e in c.body.eqns) for b, c in found.items())
    names = {n for c in found.values() for n in c.made}
    (before, kept), (after, held) = step(program, set()), step(with_kernels(sink_masks(program), found, set()), names)
    return Change(rows, kernels, before, after, (kept, held))


def load_all(c: Cut, folder: Path) -> None:
    for made in c.made.values():
        loaded(made, folder)


def step(program: Program, kernels: set[str]) -> tuple[Work, int]:
    """The work of forward and backward of all calls, and the bytes that they save in between."""
    lowered, calls = lower(program, SIZES, torch.bfloat16, {n: impl(n) for n in kernels})
    total = sum((call_work(lowered[c.body]) for c in calls), Work())
    return total, sum(lowered[c.body].saved_bytes for c in calls)


def show_figures(model: str) -> None:
    folder = Path(tempfile.mkdtemp())
    for cut in kernels_of(sink_masks(program_of(model)), SIZES, torch.bfloat16).values():
        for name, made in cut.made.items():
            for f in gate(made, loaded(made, folder)):
                print(
                    f"{model:14} {name:32} {f.kernel:8} {f.target:6} {f.constants} {f.warps:2} warps "
                    f"{f.registers:3} registers, {f.shared:6} shared, {f.wide_loads} of {f.loads} loads wide "
                    f"{f.problem()}", flush=True,
                )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
