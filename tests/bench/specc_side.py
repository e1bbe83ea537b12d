"""The specc side: the model from the library's YAML, lowered by one process and trained by another, as a build and its
run are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specc.compiler.schedule.actions import one_rank
from specc.compiler.schedule.files import calls_of
from specc.runtime.ahead import Ahead, Later
from specc.runtime.allocator import Heap, keep_memory, lay_apart
from specc.runtime.built import body_of
from specc.runtime.executor import Executor
from specc.runtime.init import initial
from specc.runtime.loop import WAIT
from specc.runtime.optimizer import Updater, clip
from specc.runtime.team import ALONE
from specc.spec.optimizer import Optimizer
from tests.bench.models import BETAS, CLIP, DTYPES, FACTS, LEARNING_RATE, WEIGHT_DECAY, Setting

# As the `specc` command does it.
LOWER = (
    "import sys; from specc.runtime.entry import function_of; function_of('tests.bench.lowered:main')(*sys.argv[1:])"
)


@dataclass(frozen=True)
class Side:
    """A model, lowered: what a step needs."""

    setting: Setting
    facts: Mapping[str, Any]
    graphs: Mapping[str, Path]  # by `body.part`, those that a step runs
    params: dict[str, Tensor]
    folder: tempfile.TemporaryDirectory[str]  # of the graphs; it goes with this

    @property
    def trainable(self) -> frozenset[str]:
        return frozenset(p["path"] for p in self.facts["params"] if p["trainable"])

    def inputs(self, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch; text predicts each next token."""
        batch = dict(drawn)
        if "tokens" in drawn:
            tokens = drawn["tokens"]
            batch["labels"] = torch.cat([tokens[:, 1:], tokens.new_full((tokens.shape[0], 1), -100)], 1)
        floats = {n: x.to(DTYPES[self.setting.dtype]) for n, x in batch.items() if x.is_floating_point()}
        return {n: (batch | floats)[n] for n in self.facts["inputs"]}

    def texts(self, body: str) -> dict[str, str]:
        """The graphs of a body by part."""
        found = {n.rpartition("."): path for n, path in self.graphs.items()}
        return {part: path.read_text(encoding="utf-8") for (of, _, part), path in found.items() if of == body}

    def executor(self, compiled: bool) -> Executor:
        device, dtype = torch.device(self.setting.device), DTYPES[self.setting.dtype]
        bodies = {}
        for name, layout in self.facts["graphs"].items():
            texts = self.texts(name)
            bodies[name] = body_of(layout, texts, texts if compiled else (), device)
        calls = calls_of(self.facts)
        actions = one_rank(len(calls), 1, set(range(len(calls))))
        return Executor(calls, bodies, actions, self.facts["loss"], {}, self.trainable, dtype, device=device)


def side(setting: Setting) -> Side:
    """The model with its first parameters, lowered by a process that is gone."""
    held, device = tempfile.TemporaryDirectory(prefix="specc-bench-"), torch.device(setting.device)
    folder = Path(held.name)
    command = [sys.executable, "-c", LOWER, json.dumps(asdict(setting)), held.name]
    subprocess.run(command, check=True)
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    params = {
        p["path"]: initial(p["path"], p["shape"], p["init"]["kind"], p["init"]["args"], 0).to(device)
        for p in facts["params"]
    }
    graphs = {path.stem: path for path in sorted(folder.glob("*.json")) if path.name != FACTS}
    return Side(setting, facts, graphs, params, held)


def compiled_later(made: Side) -> Later:
    """The graphs compiled from the second step on, which waits for that."""
    log = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "ahead.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return Later(1, partial(made.executor, True), partial(Ahead, [*made.graphs.values()], log))


def make(setting: Setting) -> Callable[[], float]:
    """A function that does one training step and returns the loss. On a CPU the first step takes the graphs as they
    are, as a run would (runtime/ahead.py); the second one waits until they are compiled."""
    lay_apart()
    on_cpu = setting.device == "cpu"
    made = side(setting)
    run = made.executor(not on_cpu)
    later = compiled_later(made) if on_cpu else None
    adam = Optimizer(lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, clip=CLIP, no_decay=["*.bias"])
    optimizer = Updater(adam, {n: made.params[n] for n in made.params if n in made.trainable})
    batches = torch.Generator().manual_seed(1)
    heap, n = Heap(), 0
    keep_memory()

    def step() -> float:
        nonlocal run, n, heap
        if later and n == later.step:
            while later.is_busy:
                time.sleep(WAIT)
            run, heap = later.take(ALONE), Heap()
        n += 1
        result = run.step(made.params, [made.inputs(setting.batch(batches))], [1.0])
        clip(result.grads, CLIP)
        optimizer.step(result.grads, LEARNING_RATE)
        loss = float(result.losses[0])
        del result
        heap.settle()
        if later and n == 1:
            later.start()
        return loss

    return step
