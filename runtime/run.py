"""Run a build's stages in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

import torch

from specc.runtime import checkpoint
from specc.runtime.built import Build, Stage, open_build
from specc.runtime.errors import RunError
from specc.runtime.heartbeat import Pulse
from specc.runtime.metrics import has_events
from specc.runtime.team import ALONE, Team
from specc.runtime.train import check_inputs, look_at_data, run_stage
from specc.spec.errors import did_you_mean

OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def run_build(
    path: Path, stage: str | None = None, say: Callable[[str], None] = print, base: Path | None = None,
    bar: TextIO | None = None, team: Team = ALONE, pulse: Pulse | None = None,
) -> Build:  # fmt: skip
    """Run all stages (or one) in this process; what is done is skipped, what is half done goes on.

    `bar` is a terminal to draw progress on; without one there are lines by `say` alone. All ranks of a mesh call it."""
    build = open_build(path)
    if stage is not None and stage not in build.stages:
        raise RunError(f"the build has no stage '{stage}'; {did_you_mean(stage, build.stages)}")
    if not has_events():
        say("tensorboard is not installed: its event files are left out (pip install 'specc[tensorboard]')")
    wanted = [s for name, s in build.stages.items() if stage in (None, name)]
    for found in wanted:
        with told(found):
            check_inputs(found)
    for found in wanted:
        is_first = found is wanted[0]  # it reads its documents at once
        checkpoint.agreed(team, path, partial(look_at_data, build, found, base or Path.cwd(), documents=not is_first))
    for found in wanted:
        threads = found.plan["threads"]
        if isinstance(threads, int):
            torch.set_num_threads(threads)
        with told(found):
            run_stage(build, found, base or Path.cwd(), say, bar, team, pulse)
    return build


@contextmanager
def told(stage: Stage) -> Iterator[None]:
    """Failures of the machine as a sentence that says what to do."""
    try:
        yield
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        raise RunError(f"'{stage.name}' stopped: {where}{e.strerror or e}; mend it and run again") from None
    except MemoryError:
        raise RunError(no_memory(stage)) from None
    except RuntimeError as e:
        if any(words in str(e) for words in OUT_OF_MEMORY):
            raise RunError(no_memory(stage)) from None
        raise


def no_memory(stage: Stage) -> str:
    batch = stage.spec.batch
    pictures = stage.spec.of_images
    rows = f"{batch.size} images" if pictures else f"{batch.size} sequences of {stage.spec.data.seq_len} tokens"
    return (
        f"'{stage.name}' is out of memory: a microbatch has {rows}; lower batch.microbatch, or say plan.recompute: "
        f"full, plan.offload or a mesh (the results stay the same); or lower {'' if pictures else 'data.seq_len or '}"
        "the model's dims; build again and run"
    )
