"""Models with images and with experts train through their lowered graphs; what is frozen costs and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from specc.compiler.elaborate import elaborate
from specc.compiler.program import Program
from specc.runtime.init import initial
from specc.runtime.optimizer import Updater
from specc.spec.optimizer import Optimizer
from specc.spec.spec import load
from tests.parity.case import executor

SIZES: Mapping[str, Mapping[str, Any]] = {
    "deepseek_v2": {
        "D": 24, "L": 3, "DENSE": 1, "H": 2, "QR": 12, "KR": 8, "N": 8, "R": 4, "E_V": 8, "F": 32, "E": 4, "K": 2,
        "FE": 16, "SHARED": 1, "G": 2, "TOP_G": 1, "V": 50, "B": 2, "S": 10,
    },
    "cogvlm_expert": {"D": 24, "L": 2, "H": 2, "F": 32, "B": 2, "S": 9},
    "sd3": {"C": 2, "Y": 8, "X": 8, "GRID": 6, "BASE": 4, "L": 2, "H": 2, "E": 8, "CT": 12, "CP": 10, "B": 2, "T": 3},
    "autoencoder_kl": {"Y": 8, "X": 8, "widths": [8, 12], "R": 1, "GROUPS": 4, "Z": 2, "B": 2},
    "clip": {
        "Y": 8, "P": 4, "DV": 24, "LV": 2, "HV": 2, "FV": 32, "V": 50, "CTX": 8, "DT": 16, "LT": 2, "HT": 2, "FT": 32,
        "Z": 12, "EOS": 39, "B": 4, "S": 6,
    },
    "dit": {"C": 2, "Y": 8, "L": 2, "D": 16, "H": 2, "CLASSES": 40, "W": 8, "B": 2},
    "vit": {"Y": 8, "P": 4, "D": 24, "L": 2, "H": 2, "F": 32, "CLASSES": 40, "B": 3},
    "mixtral": {"D": 24, "L": 2, "H": 4, "K": 2, "F": 32, "EXPERTS": 4, "USED": 2, "V": 50, "B": 2, "S": 10},
}  # fmt: skip

# Checkpoints of SD3 have queries of the last layer's text, whose results nothing reads.
UNUSED = {"sd3": "layers.1.joint.text_q.*"}


def program_of(name: str, **sections: str) -> Program:
    """The library's model at a tiny size, with sections of it replaced."""
    changes = [f"model.dims.{dim}={value}" for dim, value in SIZES[name].items()]
    changes += [f"model.{section}={value}" for section, value in sections.items()]
    return elaborate(load(Path(str(files("specc.spec.models") / f"{name}.yaml")), changes))


def random_inputs(program: Program, n_rows: int) -> dict[str, Tensor]:
    """One batch: tokens below `n_rows`, positions in order, one document, image tokens first."""
    draw = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for name, kind in program.inputs.items():
        shape = kind.shape({})
        ramp = torch.arange(shape[-1]).expand(shape)
        fixed = {"pos": ramp, "doc": torch.zeros_like(ramp), "modality": (ramp < shape[-1] // 2).long()}
        noise = torch.randn(shape, generator=draw) if kind.dtype == "float" else None
        ids = torch.randint(0, n_rows, shape, generator=draw)
        ids[..., -1] = n_rows - 1  # where CLIP pools its text
        made[name] = noise if noise is not None else fixed.get(name, ids)
    return made


def first_weights(program: Program) -> dict[str, Tensor]:
    return {
        path: initial(path, p.type.shape({}), p.init.kind, p.init.args, seed=0) for path, p in program.params.items()
    }


def trained(
    program: Program, steps: int = 12, n_rows: int = 40
) -> tuple[list[float], dict[str, Tensor], dict[str, Tensor]]:
    """The losses of a few steps on one batch, the first step's gradients, and the weights after the last."""
    inputs, params = random_inputs(program, n_rows), first_weights(program)
    run = executor(program, inputs, torch.float32)
    optimizer = Updater(
        Optimizer(lr=1e-2, weight_decay=0.0), {n: t for n, t in params.items() if program.params[n].trainable}
    )
    losses: list[float] = []
    first: dict[str, Tensor] = {}
    for _ in range(steps):
        result = run.step(params, [inputs], [1.0])
        losses.append(float(result.losses[0]))
        first = first or {n: g.clone() for n, g in result.grads.items()}
        optimizer.step(result.grads, 1e-2)
    return losses, first, params


@pytest.mark.parametrize("name", SIZES)
def test_the_loss_falls_and_only_what_trains_moves(name: str) -> None:
    program = program_of(name)
    losses, _, params = trained(program)
    assert losses[-1] < losses[0] - 0.1 * abs(losses[0]), losses
    starts = first_weights(program)
    still = {path for path, start in starts.items() if torch.equal(params[path], start)}
    frozen = {path for path, p in program.params.items() if not p.trainable}
    assert still == frozen | {path for path in starts if fnmatchcase(path, UNUSED.get(name, ""))}


def test_the_balance_loss_alone_trains_the_router() -> None:
    _, grads, _ = trained(program_of("deepseek_v2", loss="balance"), steps=1)
    assert grads["layers.1.moe.router.weight"].any()
    assert not grads["layers.2.moe.experts.up.weight"].any()
    assert "head.weight" not in grads or not grads["head.weight"].any()


def test_the_balance_loss_adds_to_the_gradients_by_its_weight() -> None:
    path = "layers.1.moe.router.weight"
    both, lm, balance = (
        trained(program_of("deepseek_v2", loss=loss), steps=1)[1][path].double()
        for loss in ("lm + 0.5 * balance", "lm", "balance")
    )
    assert torch.allclose(both, lm + 0.5 * balance, rtol=1e-4, atol=1e-7)


def test_a_frozen_tower_below_everything_has_no_backward() -> None:
    program = program_of("clip", freeze='["image_*"]', train='["image_head.*"]')
    run = executor(program, random_inputs(program, 40), torch.float32)
    towers = {c.body for c in run.calls if any(fnmatchcase(p, "image_layers.*") for p in c.params)}
    assert towers
    assert all(run.bodies[t].bwd is None and run.bodies[t].bwd_weight is None for t in towers)
    losses, grads, params = trained(program)
    assert losses[-1] < losses[0]
    assert not [p for p in grads if p.startswith("image_") and p != "image_head.weight"]
    assert torch.equal(params["image_positions"], first_weights(program)["image_positions"])


def test_a_frozen_tower_over_weights_that_train_has_bwd_input_and_no_bwd_weight() -> None:
    program = program_of("clip", freeze='["image_layers.*"]')
    run = executor(program, random_inputs(program, 40), torch.float32)
    tower = next(c.body for c in run.calls if any(fnmatchcase(p, "image_layers.1.*") for p in c.params))
    assert run.bodies[tower].bwd_input is not None
    assert run.bodies[tower].bwd_weight is None
    _, grads, _ = trained(program, steps=1)
    assert grads["image_positions"].any()
    assert not [p for p in grads if p.startswith("image_layers.")]


def test_only_the_visual_expert_of_a_layer_gets_gradients() -> None:
    program = program_of("cogvlm_expert")
    _, grads, _ = trained(program, steps=1)
    assert {p for p in program.params if ".image." in p} == set(grads)
