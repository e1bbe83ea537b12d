"""The specc side: the model from the library's YAML, lowered and run by the executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor

from specc.compiler.build import lower, stage_sizes
from specc.compiler.elaborate import elaborate
from specc.compiler.graphs import Graphs, from_json, to_json
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.program import Call, Program
from specc.compiler.schedule.actions import one_rank
from specc.runtime.allocator import keep_memory
from specc.runtime.compile import callable_of
from specc.runtime.executor import Compiled, Executor
from specc.runtime.init import initial
from specc.runtime.optimizer import AdamW, clip
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
    program, compute, device = program_of(setting.row), DTYPES[setting.dtype], torch.device(setting.device)
    graphs, calls = lowered(setting, program)
    bodies: dict[str, Compiled] = {}
    for name, g in graphs.items():
        parts = {p: from_json(to_json(gm), device) for p, gm in g.parts().items() if p in ("fwd", "bwd")}
        ready = {p: callable_of(gm, compiled, device) for p, gm in parts.items()}
        bodies[name] = Compiled(
            ready["fwd"], ready["bwd"], None, None, g.n_outs, g.in_grads, g.param_grads, g.out_grads
        )
    actions = one_rank(len(calls), 1, set(range(len(calls))))
    trainable = frozenset(n for n, p in program.params.items() if p.trainable)
    executor = Executor(calls, bodies, actions, program.loss, {}, trainable, compute, device=device)
    params = {
        n: initial(n, p.type.shape({}), p.init.kind, p.init.args, 0).to(device) for n, p in program.params.items()
    }
    return Side(program, graphs, executor, params)


def make(setting: Setting, compiled: bool = True) -> Callable[[], float]:
    """A function that does one training step and returns the loss."""
    keep_memory()
    made = side(setting, compiled)
    adam = Optimizer(lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, clip=CLIP, no_decay=["*.bias"])
    optimizer = AdamW(adam, {n: x for n, x in made.params.items() if made.program.params[n].trainable})
    batches = torch.Generator().manual_seed(1)

    def step() -> float:
        result = made.executor.step(made.params, [made.inputs(setting.batch(batches))], [1.0])
        clip(result.grads, CLIP)
        optimizer.step(result.grads, LEARNING_RATE)
        return float(result.losses[0])

    return step
