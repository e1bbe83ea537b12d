"""The specc side: the model from the library's YAML, lowered and run by the executor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from specc.compiler.build import lower, stage_sizes
from specc.compiler.elaborate import elaborate
from specc.compiler.graphs import Graphs, from_json, to_json
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.program import Call, Program
from specc.compiler.schedule.actions import one_rank
from specc.runtime.ahead import Ahead, Later
from specc.runtime.allocator import keep_memory
from specc.runtime.compile import callable_of
from specc.runtime.executor import Compiled, Executor
from specc.runtime.init import initial
from specc.runtime.optimizer import AdamW, clip
from specc.runtime.team import ALONE
from specc.spec.loader import load_text, put
from specc.spec.spec import Spec
from specc.spec.stage import Optimizer
from tests.bench.models import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, Model, Setting

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Side:
    """A model, lowered: what a step needs."""

    program: Program
    graphs: dict[str, Graphs]
    executor: Executor
    params: dict[str, Tensor]

    def inputs(self, drawn: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A batch; text predicts each next token."""
        batch = dict(drawn)
        if "tokens" in drawn:
            tokens = drawn["tokens"]
            batch["labels"] = torch.cat([tokens[:, 1:], tokens.new_full((tokens.shape[0], 1), -100)], 1)
        floats = {n: x.to(self.executor.compute) for n, x in batch.items() if x.is_floating_point()}
        return {n: (batch | floats)[n] for n in self.program.inputs}


def program_of(model: Model) -> Program:
    """What a stage would train."""
    document = load_text((files("specc.spec.models") / f"{model.library}.yaml").read_text(), f"{model.library}.yaml")
    sets = {f"dims.{n}": size for n, size in model.dims.items()} | dict(model.sets or {})
    for path, value in sets.items():
        put(document, f"model.{path}", value, None)
    spec = Spec.from_yaml(Spec.model_validate(document.data).to_yaml())
    return fuse_linear_cross_entropy(prune(elaborate(spec), []))


def lowered(setting: Setting, program: Program) -> tuple[dict[str, Graphs], tuple[Call, ...]]:
    """The graphs of the model's blocks, and their calls."""
    return lower(program, sizes_of(setting.row, program), DTYPES[setting.dtype])


def sizes_of(model: Model, program: Program) -> dict[str, int]:
    return stage_sizes(program, model.batch, {"": model.length})


def side(setting: Setting, compiled: bool = True) -> Side:
    """The model's graphs as callables, and its first parameters."""
    program, device = program_of(setting.row), torch.device(setting.device)
    graphs, calls = lowered(setting, program)
    params = {
        n: initial(n, p.type.shape({}), p.init.kind, p.init.args, 0).to(device) for n, p in program.params.items()
    }
    return Side(program, graphs, executor(setting, program, graphs, calls, compiled), params)


def executor(
    setting: Setting, program: Program, graphs: Mapping[str, Graphs], calls: Sequence[Call], compiled: bool
) -> Executor:  # fmt: skip
    """Of graphs lowered for a setting."""
    device = torch.device(setting.device)
    bodies: dict[str, Compiled] = {}
    for name, g in graphs.items():
        ready = {p: callable_of(from_json(text, device), compiled, device) for p, text in texts(g).items()}
        bodies[name] = Compiled(
            ready["fwd"], ready["bwd"], None, None, g.n_outs, g.in_grads, g.param_grads, g.out_grads
        )
    actions = one_rank(len(calls), 1, set(range(len(calls))))
    trainable = frozenset(n for n, p in program.params.items() if p.trainable)
    return Executor(calls, bodies, actions, program.loss, {}, trainable, DTYPES[setting.dtype], device=device)


def texts(graphs: Graphs) -> dict[str, str]:
    """Those that a step runs."""
    return {p: to_json(gm) for p, gm in graphs.parts().items() if p in ("fwd", "bwd")}


def compiled_later(setting: Setting, made: Side) -> Later:
    """The graphs compiled from the second step on, which waits for that."""
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) / "graphs"
    folder.mkdir(parents=True)
    paths = []
    for name, g in made.graphs.items():
        for part, text in texts(g).items():
            paths.append(folder / f"{name}.{part}.json")
            paths[-1].write_text(text, encoding="utf-8")
    ready = partial(executor, setting, made.program, made.graphs, made.executor.calls, compiled=True)
    return Later(1, ready, partial(Ahead, paths, folder / "log"))


def make(setting: Setting) -> Callable[[], float]:
    """A function that does one training step and returns the loss. On a CPU the first step takes the graphs as they
    are, as a run would (runtime/ahead.py); the second one waits until they are compiled."""
    keep_memory()
    on_cpu = setting.device == "cpu"
    made = side(setting, compiled=not on_cpu)
    run = made.executor
    later = compiled_later(setting, made) if on_cpu else None
    adam = Optimizer(lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, clip=CLIP, no_decay=["*.bias"])
    optimizer = AdamW(adam, {n: x for n, x in made.params.items() if made.program.params[n].trainable})
    batches = torch.Generator().manual_seed(1)
    n = 0

    def step() -> float:
        nonlocal run, n
        if later and n == later.step:
            run = later.take(ALONE)
        n += 1
        result = run.step(made.params, [made.inputs(setting.batch(batches))], [1.0])
        clip(result.grads, CLIP)
        optimizer.step(result.grads, LEARNING_RATE)
        if later and n == 1:
            later.start()
        return float(result.losses[0])

    return step
