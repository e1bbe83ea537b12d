"""Kernels of a build: the files of all regions, what each takes on GPUs, and whether graphs call them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specc.compiler.kernels.aot import Figures, gate, targets_of
from specc.compiler.kernels.attention import (
    PART_NAME,
    PART_OP,
    attention_impl,
    attentions,
    make_attention,
    with_attention,
)
from specc.compiler.kernels.attention_part import part_impl
from specc.compiler.kernels.cross_entropy import loss_impl, losses_of, make_cross_entropy
from specc.compiler.kernels.cut import Cut, cut
from specc.compiler.kernels.grouped import grouped_impl, grouped_of, make_grouped
from specc.compiler.kernels.load import LIST, load_kernel
from specc.compiler.kernels.made import Made
from specc.compiler.kernels.on_mesh import local_bodies, with_local_kernels
from specc.compiler.lower.local import Impl, Local, Result
from specc.compiler.lower.placed import zigzag
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.placement.placed import Placed
from specc.compiler.program import Body, Program
from specc.spec.errors import Diagnostic, Mark, SpecError
from specc.spec.plan import PlanSpec

UNTUNED = "aten: not tuned on the device"


@dataclass(frozen=True)
class Emitted:
    """The program that is lowered, as it is placed on a mesh if it is, and implementations of the kernels it calls.

    `whole` is the same with all kernels that passed, called or not, `made` their implementations, and `left` says by
    body which row-wise ops are in none of them, and why."""

    program: Program | Placed
    impls: Mapping[str, Impl]
    whole: Program | Placed | None = None
    made: Mapping[str, Impl] = field(default_factory=dict)
    left: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def emit(
    plan: PlanSpec, program: Program | Placed, sizes: Mapping[str, int], compute: torch.dtype, folder: Path,
    mark: Mark | None = None,
) -> Emitted:  # fmt: skip
    """Write the kernels that the plan wants below `folder`; `kernels: triton` puts them into the program. Those of a
    placed one are for what a rank has."""
    if not are_wanted(plan):
        return Emitted(program, {})
    _check(plan, mark)
    cut_of = Cuts(program, sizes, compute)
    cuts = cut_of.cuts
    made = {n: m for c in cuts.values() for n, m in c.made.items()}
    folder.mkdir(exist_ok=True)
    table = json.loads((folder / LIST).read_text(encoding="utf-8")) if (folder / LIST).is_file() else {}
    for name, m in made.items():
        (folder / f"{name}.py").write_text(m.source, encoding="utf-8")
        figures = gate(m, load_kernel(folder / f"{name}.py"), targets_of(plan.cluster.device, plan.kernels != "emit"))
        table[name] = _row(plan, figures, cuts, name)
    (folder / LIST).write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    whole = cut_of.applied({n for n in made if table[n]["problems"]})
    impls, left = {n: impl(n) for n in made}, {n: c.left for n, c in cuts.items()}
    called = (whole, impls) if plan.kernels == "triton" else (program, {})
    return Emitted(*called, whole, impls, left)


def are_wanted(plan: PlanSpec) -> bool:
    for_gpu = plan.cluster.device != "cpu" and plan.precision.compute != "fp64"
    return plan.kernels in ("emit", "triton") or (plan.kernels == "auto" and for_gpu)


def _check(plan: PlanSpec, mark: Mark | None) -> None:
    """The mistakes of a plan that wants kernels."""
    if plan.precision.compute == "fp64":
        raise SpecError(Diagnostic("S562", "there are no kernels in fp64", mark, "kernels: aten"))
    if importlib.util.find_spec("triton") is None:
        raise SpecError(Diagnostic("S560", "Triton is not installed, and kernels are wanted", mark, "kernels: aten"))


class Cuts:
    """The kernels of a program, or of what a rank has of it where it is placed."""

    def __init__(self, program: Program | Placed, sizes: Mapping[str, int], compute: torch.dtype) -> None:
        if isinstance(program, Placed):
            self.program: Program | Placed = program
            self.local = local_bodies(program, zigzag(program))
            self.cuts = {n: _kernels_of(b.body, {**sizes, **b.sizes}, compute) for n, b in self.local.items()}
        else:
            self.program = sink_masks(program)
            self.cuts = kernels_of(self.program, sizes, compute)

    def applied(self, refused: set[str]) -> Program | Placed:
        """The program with its kernels, but for bodies that would need a refused one."""
        if isinstance(self.program, Program):
            return with_kernels(self.program, self.cuts, refused)
        bodies = {
            n: b if refused & set(self.cuts[n].made) else with_local_kernels(self.local[n], self.cuts[n])
            for n, b in self.program.bodies.items()
        }
        return replace(self.program, bodies=bodies)


def kernels_of(program: Program, sizes: Mapping[str, int], compute: torch.dtype) -> dict[str, Cut]:
    """Each body with its regions and its attentions as kernels. Masks are those that a body makes itself."""
    return {name: _kernels_of(body, sizes, compute) for name, body in program.bodies.items()}


def _kernels_of(body: Body, sizes: Mapping[str, int], compute: torch.dtype) -> Cut:
    found = cut(body, sizes, compute)
    own = {out: (make_attention(a, compute), a.place) for out, a in attentions(body).items()}
    own |= {out: (make_grouped(g, compute), g.place) for out, g in grouped_of(body).items()}
    # A head gives its loss logits in fp32.
    own |= {out: (make_cross_entropy(h, torch.float32), h.place) for out, h in losses_of(body, sizes).items()}
    names = {out: m.name for out, (m, _) in own.items()}
    return replace(
        found, body=with_templates(found.body, names), made=found.made | {m.name: m for m, _ in own.values()},
        places=found.places | {m.name: [at] for m, at in own.values()},
    )  # fmt: skip


def with_templates(body: Body, names: Mapping[str, str]) -> Body:
    """The body with the ops of these results as kernels; an attention takes what its mask is made of."""
    heads = {out for e in body.eqns if e.op in ("attend", PART_OP) for out in e.outs}
    renamed = tuple(
        replace(e, op=names[e.outs[0]]) if e.outs[0] in names and e.outs[0] not in heads else e for e in body.eqns
    )
    return with_attention(replace(body, eqns=renamed), {out: n for out, n in names.items() if out in heads})


def with_kernels(program: Program, cuts: Mapping[str, Cut], refused: set[str]) -> Program:
    """The program with regions as equations, but for bodies that would need a refused kernel."""
    whole = {n for n, c in cuts.items() if not refused & set(c.made)}
    return replace(program, bodies={n: cuts[n].body if n in whole else b for n, b in program.bodies.items()})


# By how a kernel's name begins, the longest first.
TEMPLATES = {
    PART_NAME: part_impl, "attention_": attention_impl, "cross_entropy_": loss_impl, "grouped_": grouped_impl,
}  # fmt: skip


def impl(name: str) -> Impl:
    """A kernel as the implementation of its equation."""
    for prefix, make_impl in TEMPLATES.items():
        if name.startswith(prefix):
            return make_impl(name)

    def call(e: Local, *xs: Tensor) -> Result:
        outs: Result = getattr(torch.ops.specc, name)(*xs)
        # What a kernel gives beside the equation's results is for its own backward.
        return outs[0] if isinstance(outs, tuple | list) and len(e.eqn.outs) == 1 else outs

    return call


def _row(plan: PlanSpec, figures: Sequence[Figures], cuts: Mapping[str, Cut], name: str) -> dict[str, Any]:
    """What the build says of a kernel."""
    problems = [f"{f.kernel} on {f.target}: {f.problem()}" for f in figures if f.problem()]
    used = "triton" if plan.kernels == "triton" and not problems else "aten" if problems else UNTUNED
    places = next(c.places[name] for c in cuts.values() if name in c.made)
    return {
        "from": places, "blocks": sorted(n for n, c in cuts.items() if name in c.made), "used": used,
        "problems": problems, "figures": [asdict(f) for f in figures],
    }  # fmt: skip


def summary(folder: Path) -> str:
    """One line on the kernels of a build, or nothing."""
    if not (folder / LIST).is_file():
        return ""
    rows = json.loads((folder / LIST).read_text(encoding="utf-8"))
    used = sum(r["used"] == "triton" for r in rows.values())
    targets = sorted({f["target"] for r in rows.values() for f in r["figures"]})
    bad = [name for name, r in rows.items() if r["problems"]]
    passed = f"{len(rows) - len(bad)} pass on {', '.join(targets)}" if targets else "not compiled ahead of time"
    run = f"{used} are used" if used else "graphs run ATen, for none is tuned"
    return f"{len(rows)} kernels: {passed}; {run}" + (f"; see {', '.join(bad)}" if bad else "")


def sources(program: Program | Placed, sizes: Mapping[str, int], compute: torch.dtype) -> dict[str, Made]:
    """The files that a build of the program has."""
    return {n: m for c in Cuts(program, sizes, compute).cuts.values() for n, m in c.made.items()}
