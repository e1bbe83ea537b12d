"""Run a build's stages in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from specc.runtime.built import Build, open_build
from specc.runtime.errors import RunError
from specc.runtime.train import Stopped, run_stage
from specc.spec.errors import did_you_mean


def run_build(
    path: Path, stage: str | None = None, say: Callable[[str], None] = print, base: Path | None = None
) -> Build:
    """Run all stages (or one); what is done is skipped, what is half done goes on."""
    build = open_build(path)
    if stage is not None and stage not in build.stages:
        raise RunError(f"the build has no stage '{stage}'; {did_you_mean(stage, build.stages)}")
    for name, found in build.stages.items():
        if stage in (None, name):
            threads = found.plan["threads"]
            if isinstance(threads, int):
                torch.set_num_threads(threads)
            try:
                run_stage(build, found, base or Path.cwd(), say)
            except Stopped as e:
                raise RunError(str(e)) from None
    return build
