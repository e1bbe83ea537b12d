"""Runs every region's kernels in Triton's interpreter and prints what came out, as JSON.

`TRITON_INTERPRET=1 python -m tests.kernels.interpret`: Triton reads the variable when it is imported, so this is a
process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from specc.compiler.kernels.grouped import Grouped, make_grouped
from specc.compiler.kernels.load import load_kernel
from specc.compiler.lower.grouped import grouped_mm
from specc.compiler.lower.run import run_body
from tests.kernels.interpreter import Guarded, round_bf16
from tests.kernels.losses import losses
from tests.kernels.masks import BLOCK, N_K, N_Q, NAMES, attributes, dense, predicates, sight_file, tile_file
from tests.kernels.opcheck import CHECKS, failed_checks
from tests.kernels.parts import documents, parts, rings, share, wholes
from tests.kernels.regions import ODD, Case, broadcasts, cases, loaded, operands, sizes_of

# Programs that share the rows and rows of a step: so that there are several of each, and a last one that is not full.
PROGRAMS, STEP = 3, 2
NARROW = ("llama", "t5", "sd3")  # the models whose kernels run in bf16 too
TILE = (16, 16, 4)  # the least that a product takes


def main() -> None:
    torch.set_num_threads(1)
    round_bf16()
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    narrow = {name: ODD[name] for name in NARROW}
    found = [*cases(torch.float32), *broadcasts(torch.float32), *cases(torch.bfloat16, narrow)]
    said = {
        "kernels": [row(case, folder) for case in found],
        "masks": wrong_masks(folder),
        "sights": sights(folder),
        "losses": list(losses(folder)),
        "grouped": grouped(folder),
        "parts": parts(folder),
        "wholes": wholes(folder),
        "documents": documents(folder),
        "rings": rings(folder),
    }
    print(json.dumps(said))


def row(case: Case, folder: Path) -> dict[str, Any]:
    """The largest errors of a region, each as a share of the largest entry, and whether the guard bands stand."""
    module, guard = loaded(case.made, folder), Guarded()
    few(module, case)
    module.torch = guard  # type: ignore[attr-defined]
    ins = [guard.guarded(x) for x in operands(case)]
    forward, backward = compared(case, ins)
    module.torch = torch  # type: ignore[attr-defined]
    return {
        "name": case.made.name, "model": case.model, "dtype": str(case.dtype).removeprefix("torch."),
        "forward": forward, "backward": backward, "untouched": guard.untouched(), "checked": checked(case),
    }  # fmt: skip


def few(module: ModuleType, case: Case) -> None:
    """Settings under which even few rows are many steps of many programs."""
    setting = TILE if case.made.name.startswith("attention") else (STEP, 4)
    module.PROGRAMS = module.SUM_PROGRAMS = PROGRAMS  # type: ignore[attr-defined]
    module.CONFIGS.update({entry.kind: (setting,) for entry in case.made.entries})


def compared(case: Case, ins: Sequence[Tensor]) -> tuple[float, float]:
    """Errors of outs and of gradients against the same body in fp64 on the CPU."""
    low = [x.requires_grad_() if x.is_floating_point() else x for x in ins]
    exact = [x.detach().cpu().double().requires_grad_() if x.is_floating_point() else x.cpu() for x in ins]
    got = called(case, low)
    want = run_body(case.body, exact, (), sizes_of(case))
    forward = max(error(a.cpu(), b) for a, b in zip(got, want, strict=True))
    ends = [i for i, w in enumerate(want) if w.requires_grad]
    if not ends:
        return forward, 0.0
    draw = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(want[i].shape, generator=draw, dtype=torch.float64).to(case.dtype) for i in ends]
    at = [c.to(ins[0].device) for c in cotangents]
    found = torch.autograd.grad([got[i] for i in ends], [x for x in low if x.requires_grad], at)
    true = torch.autograd.grad(
        [want[i] for i in ends], [x for x in exact if x.requires_grad], [c.double() for c in cotangents],
        materialize_grads=True, allow_unused=True,
    )  # fmt: skip
    return forward, max(error(a.cpu(), b) for a, b in zip(found, true, strict=True))


def called(case: Case, ins: Sequence[Tensor]) -> list[Tensor]:
    """The outs of the body, by the kernel."""
    outs = getattr(torch.ops.specc, case.made.name)(*(ins[i] for i in case.order))
    return [outs] if isinstance(outs, Tensor) else list(outs)[: len(case.body.outs)]


def error(got: Tensor, want: Tensor) -> float:
    """As a share of the largest entry; infinite where something was not written."""
    return share(got.detach(), want.detach()) if want.is_floating_point() else float((got != want).any())


def checked(case: Case) -> list[str]:
    """Which of torch's own checks of the op fail; they are the same in every type."""
    if case.dtype != torch.float32 or case.model == "broadcasts":
        return []
    ins = [x.requires_grad_() if x.is_floating_point() else x for x in operands(case)]
    return failed_checks({case.made.name: [ins[i] for i in case.order]}, (*CHECKS, "test_autograd_registration"))


def wrong_masks(folder: Path) -> list[str]:
    """Predicates whose tile is not the dense mask."""
    wrong = []
    for i, e in enumerate(predicates()):
        file, given = folder / f"mask{i}.py", attributes(i)
        file.write_text(tile_file(e), encoding="utf-8")
        out = torch.zeros(N_Q, N_K, dtype=torch.int64)
        load_kernel(file).tile_kernel[(1,)](*(given[n] for n in NAMES), out, N_Q, N_K, BLOCK=16)
        if not torch.equal(out.bool(), dense(e, given)):
            wrong.append(str(e))
    return wrong


def sights(folder: Path) -> dict[str, Any]:
    """Predicates of which a tile sees something beyond what it goes over, how many were tried, and how many of the
    tiles' sides were left out."""
    wrong, tried, left_out = [], 0, 0
    for i, e in enumerate(predicates()):
        text = sight_file(e)
        if not text:
            continue
        file, given = folder / f"sight{i}.py", attributes(i)
        file.write_text(text, encoding="utf-8")
        out = torch.zeros(-(-max(N_Q, N_K) // BLOCK), 4, dtype=torch.int64)
        load_kernel(file).sight_kernel[(len(out),)](*(given[n] for n in NAMES), out, N_Q, N_K, BLOCK, BLOCK)
        seen = dense(e, given)
        for tile, ends in enumerate(out.tolist()):
            own = slice(tile * BLOCK, (tile + 1) * BLOCK)
            for at, (begin, end) in ((seen[own].any(0), ends[:2]), (seen[:, own].any(1), ends[2:])):
                tried += 1
                left_out += end - begin < len(at)
                if bool(at[:begin].any() | at[max(begin, end) :].any()):
                    wrong.append(str(e))
    return {"wrong": wrong, "tried": tried, "left_out": left_out}


def grouped(folder: Path) -> dict[str, Any]:
    """A grouped product and its gradients; a group has no rows, and no width fills a tile."""
    made = make_grouped(Grouped(40, 24, "experts"), torch.float32)
    module, guard = loaded(made, folder), Guarded()
    module.CONFIGS.update({kind: ((16, 16, 16, 4),) for kind in module.CONFIGS})
    module.torch = guard  # type: ignore[attr-defined]
    draw = torch.Generator().manual_seed(0)
    shapes = ((37, 40), (4, 40, 24))
    low = [guard.guarded(torch.randn(s, generator=draw)).requires_grad_() for s in shapes]
    exact, ends = [x.detach().double().requires_grad_() for x in low], torch.tensor([5, 5, 30, 37])
    got, want = getattr(torch.ops.specc, made.name)(*low, ends), grouped_mm(*exact, ends)
    dy = torch.randn(37, 24, generator=draw)
    pairs = zip(torch.autograd.grad(got, low, dy), torch.autograd.grad(want, exact, dy.double()), strict=True)
    back = max(error(a, b) for a, b in pairs)
    return {"forward": error(got, want), "backward": back, "untouched": guard.untouched()}


if __name__ == "__main__":
    main()
