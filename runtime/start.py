"""How a build is run: in this process, as the ranks of its mesh by our launcher, or as one rank of torchrun's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from specc.runtime.built import Build, open_build
from specc.runtime.errors import RunError
from specc.runtime.heartbeat import Pulse
from specc.runtime.launch import Job, launch
from specc.runtime.metrics import has_events
from specc.runtime.run import run_build
from specc.runtime.seat import mesh_of_stage
from specc.runtime.team import Team
from specc.runtime.terminal import has_progress
from specc.runtime.worker import as_rank, own_rank
from specc.spec.errors import Diagnostic, SpecError

MAX_RESTARTS = 3
MODULES = ("specc.runtime.start",)  # what ranks would import one by one
KERNELS = "specc.runtime.kernels"  # and those that call kernels
EVENTS = "tensorboard.summary.writer.event_file_writer"
SHOW_CURSOR = "\033[?25h"  # a bar that was killed has hidden it


def start(
    path: Path, stage: str | None = None, say: Callable[[str], None] = print, base: Path | None = None,
    bar: TextIO | None = None, ranks: int | None = None, max_restarts: int | None = None, talks: str = "out",
) -> Build:  # fmt: skip
    """Run a build on as many processes as its mesh has; `talks` ("out", "err") is where rank 0 then writes.

    A build for one process runs in this one, unless `max_restarts` asks for a launcher that restarts it."""
    build = open_build(path)
    wanted = ranks_of(build)
    if ranks not in (None, wanted):
        text = f"{path} is built for {wanted} processes, not for {ranks}"
        raise SpecError(Diagnostic("S524", text, None, f"--nproc {wanted}, or build it with another plan.mesh"))
    if wanted == 1 and max_restarts is None:
        return run_build(path, stage, say, base, bar)
    argument = {"path": str(path), "stage": stage, "base": str(base or Path.cwd())}
    restarts = MAX_RESTARTS if max_restarts is None else max_restarts
    logs = path.parent / f"{path.name}.runs" / "logs"
    modules = modules_of(build)
    job = Job("specc.runtime.start:rank", argument, wanted, logs, restarts, modules, talks)
    try:
        launch(job, say)
    finally:
        if bar is not None:
            bar.write(SHOW_CURSOR)
    return build


def modules_of(build: Build) -> tuple[str, ...]:
    """What all ranks import: those of a plan that calls kernels the compiler too."""
    plans = [s.plan for s in build.stages.values()]
    calls_kernels = any(p.get("kernels") == "triton" for p in plans)
    return (*MODULES, *((KERNELS,) if calls_kernels else ()), *((EVENTS,) if has_events() else ()))


def ranks_of(build: Build) -> int:
    """How many processes the build is for."""
    sizes = {mesh_of_stage(s).size for s in build.stages.values()}
    assert len(sizes) == 1, "the stages of a build have one plan"
    return sizes.pop()


def rank(argument: dict[str, Any]) -> int:
    """The life of a rank that our launcher started."""
    me = own_rank()
    assert me is not None
    base = Path(argument["base"])
    return as_rank(me, lambda team, pulse: work(Path(argument["path"]), argument["stage"], base, team, pulse))


def under_torchrun(path: Path, stage: str | None) -> int | None:
    """Run as the rank that torchrun says this process is; None if nobody launched it as one."""
    me = own_rank()
    if me is None:
        return None
    if not path.is_dir():
        raise RunError(f"{path} is no build: ranks all run the same one, so say `specc build` first")
    return as_rank(me, lambda team, pulse: work(path, stage, Path.cwd(), team, pulse))


def work(path: Path, stage: str | None, base: Path, team: Team, pulse: Pulse) -> int:
    """What every rank does. Where our launcher keeps logs all tell of it, with torchrun rank 0 alone."""
    is_heard = team.rank == 0 or pulse.page is not None
    bar = sys.stdout if team.rank == 0 and has_progress(sys.stdout) else None
    run_build(path, stage, tell if is_heard else keep_quiet, base, bar, team, pulse)
    return 0


def tell(line: str) -> None:
    print(line, flush=True)


def keep_quiet(line: str) -> None:
    """Rank 0 says it."""
