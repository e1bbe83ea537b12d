"""The specc side: the same decoder from the library's YAML, lowered and run by the executor."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from specc.compiler.build import lower
from specc.compiler.elaborate import elaborate
from specc.compiler.graphs import from_json, to_json
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.program import Program
from specc.compiler.schedule.actions import one_rank
from specc.runtime.allocator import keep_memory
from specc.runtime.compile import callable_of
from specc.runtime.executor import Compiled, Executor
from specc.runtime.init import initial
from specc.runtime.optimizer import AdamW, clip
from specc.spec.loader import put
from specc.spec.spec import Spec
from specc.spec.stage import Optimizer
from tests.bench.setting import BETAS, CLIP, LEARNING_RATE, WEIGHT_DECAY, Setting

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Side:
    """The decoder, lowered: what a step needs."""

    program: Program
    executor: Executor
    params: dict[str, Tensor]

    def inputs(self, tokens: Tensor) -> dict[str, Tensor]:
        """A batch that predicts each next token."""
        end = torch.full((tokens.shape[0], 1), -100)
        batch = {"tokens": tokens, "labels": torch.cat([tokens[:, 1:], end], 1)}
        return {n: batch[n] for n in self.program.inputs}


def side(setting: Setting, compiled: bool = True) -> Side:
    """The decoder's graphs as callables, and its first parameters."""
    dims = {"D": setting.dim, "L": setting.layers, "H": setting.heads, "K": setting.kv_heads, "F": setting.hidden}
    spec = Spec.from_yaml(library_text(dims | {"V": setting.vocab}))
    program = fuse_linear_cross_entropy(prune(elaborate(spec), []))
    compute = DTYPES[setting.dtype]
    sizes = {"B": setting.batch, "S": setting.length}
    lowered, calls = lower(program, sizes, compute)
    bodies: dict[str, Compiled] = {}
    for name, g in lowered.items():
        parts = {p: from_json(to_json(gm)) for p, gm in g.parts().items() if p in ("fwd", "bwd")}
        ready = {p: callable_of(gm, compiled) for p, gm in parts.items()}
        bodies[name] = Compiled(
            ready["fwd"], ready["bwd"], None, None, g.n_outs, g.in_grads, g.param_grads, g.out_grads
        )
    actions = one_rank(len(calls), 1, set(range(len(calls))))
    executor = Executor(calls, bodies, actions, program.loss, {}, frozenset(program.params), compute)
    params = {n: initial(n, p.type.shape({}), p.init.kind, p.init.args, 0) for n, p in program.params.items()}
    return Side(program, executor, params)


def make(setting: Setting, compiled: bool = True) -> Callable[[], float]:
    """A function that does one training step and returns the loss."""
    keep_memory()
    made = side(setting, compiled)
    adam = Optimizer(lr=LEARNING_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, clip=CLIP)
    optimizer = AdamW(adam, made.params)
    batches = torch.Generator().manual_seed(1)

    def step() -> float:
        tokens = torch.randint(setting.vocab, (setting.batch, setting.length), generator=batches)
        result = made.executor.step(made.params, [made.inputs(tokens)], [1.0])
        clip(result.grads, CLIP)
        optimizer.step(result.grads, LEARNING_RATE)
        return float(result.losses[0])

    return step


def library_text(dims: dict[str, int]) -> str:
    """The library's Llama with these sizes: unpacked text, plain causal attention, the head tied."""
    from importlib.resources import files

    from specc.spec.loader import load_text

    document = load_text((files("specc.spec.models") / "llama.yaml").read_text(), "llama.yaml")
    for name, value in dims.items():
        put(document, f"model.dims.{name}", value, None)
    model = document.data["model"]
    model["attributes"] = {}
    model["masks"] = {"objective": "causal"}
    head = next(s for s in model["steps"] if "linear" in s)
    head["linear"]["tie"] = "embed"
    return Spec.model_validate(document.data).to_yaml()


if __name__ == "__main__":
    import time

    torch.set_num_threads(2)
    step = make(Setting(dtype=os.environ.get("DTYPE", "fp32")), os.environ.get("COMPILE", "1") == "1")
    for _ in range(4):
        began = time.perf_counter()
        value = step()
        print(f"{value:.4f} {4096 / (time.perf_counter() - began):.0f} tokens/s", flush=True)
