"""A spec in small on real processes: loss and every gradient of a step on the mesh, against one process.

Dims, sequences and batches are made small, numbers are fp64 and drawn, so that what differs is the plan alone."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specc.compiler.build import build_spec
from specc.compiler.foresight.choose import chosen
from specc.compiler.placement.mesh import BATCH, ROLES, mesh_of
from specc.compiler.placement.types import Mesh
from specc.compiler.schedule.schedules import SCHEDULES
from specc.compiler.stated import stated
from specc.runtime.built import Stage, open_build
from specc.runtime.device import ON_CPU
from specc.runtime.heartbeat import Pulse
from specc.runtime.init import initial
from specc.runtime.launch import Job, launch
from specc.runtime.loop import mean_loss
from specc.runtime.pieces import WHOLE, Sharding
from specc.runtime.seat import Seat, take_seat
from specc.runtime.start import MODULES
from specc.runtime.team import Team
from specc.runtime.worker import as_rank, own_rank
from specc.spec.errors import Diagnostic, SpecError
from specc.spec.expr import parse
from specc.spec.model import ModelSpec
from specc.spec.objective import REFERENCE
from specc.spec.spec import Spec

CAPS = (32, 64, 128, 256)  # a dim is at most as large, in the first of these that the model allows
TILES, ROWS, TOKENS = 2, 2, 8  # calls of a repeat; sequences of a rank, and their tokens
PAIRS = 2  # of answers, in a row
MICROBATCHES = 2  # for each rank of the pipeline: what every schedule takes
TOLERANCE = 1e-9
ROUNDING = 64 * torch.finfo(torch.float64).eps  # of the largest gradient: what is below is rounding
RESULT = "result.json"
TILE = re.compile(r"(?<=\.)\d+(?=\.)")  # its number in the path of a parameter


@dataclass(frozen=True)
class Verdict:
    """How far a mesh is from one process: the loss's relative difference, and that of each parameter's gradient."""

    mesh: str
    dims: Mapping[str, int]
    loss: float
    grads: Mapping[str, float]
    left_out: tuple[str, ...] = ()  # axes that need more processes

    @property
    def worst(self) -> float:
        values = [self.loss, *self.grads.values()]
        return max(values) if all(map(math.isfinite, values)) else math.inf

    @property
    def agrees(self) -> bool:
        return self.worst <= TOLERANCE


def verify(spec: Spec, ranks: int = 4, name: str | None = None, allow_ops: bool = False) -> Verdict:
    """Build a stage (default: the first) in small, and run a step of it on at most so many processes."""
    spec = chosen(spec)
    whole = mesh_of(spec.plan)
    if not whole.axes:
        raise SpecError(Diagnostic("S524", "the plan is for one process", None, "plan.mesh: {dp: 2}, say"))
    stage = name or next(iter(spec.stages))
    with tempfile.TemporaryDirectory(prefix="specc-verify-") as temporary:
        folder = Path(temporary)
        small, dims = shrunk(spec, stage, ranks)
        build_spec(small, folder / "mesh", allow_ops, trains=False)
        build_spec(small.changed("plan.mesh={}"), folder / "one", allow_ops, trains=False)
        mesh = mesh_of(small.plan)
        argument = {"folder": str(folder), "stage": stage}
        modules = (*MODULES, __name__)
        job = Job("specc.runtime.verify:rank", argument, mesh.size, folder / "logs", 0, modules, environment=ON_CPU)
        launch(job, print)
        found = json.loads((folder / RESULT).read_text())
    left_out = tuple(a.name for a in whole.axes if a.name not in {kept.name for kept in mesh.axes})
    return Verdict(str(mesh), dims, found["loss"], found["grads"], left_out)


def shrunk(spec: Spec, stage: str, ranks: int) -> tuple[Spec, dict[str, int]]:
    """The spec on few ranks, with the smallest dims that can be placed on them; and these dims."""
    stated(spec, stage)  # what is wrong with the spec as it is, is told of it
    mesh = fewer(mesh_of(spec.plan), ranks)
    where, model = _model(spec, stage)
    numbers = {n: v for n, v in model.dims.items() if isinstance(v, int)}
    least, times = max(TILES, _stages(spec, mesh)), _tiles(model.model_dump(by_alias=True))
    tiles = {n: v for text in times for n, v in _fewer_tiles(text, numbers, least).items()}
    patterns = _patterns(where, model, least)
    error: SpecError | None = None
    for cap in (*CAPS, max(numbers.values(), default=0)):
        dims = {n: tiles.get(n, min(v, cap)) for n, v in numbers.items()}
        changes = [f"{where}.dims.{n}={v}" for n, v in dims.items() if v != numbers[n]]
        try:
            small = spec.changed(*changes, *patterns, *_plan(mesh), *_sizes(stage, mesh), *_pairs(spec, stage))
            found = stated(small, stage)
            if mesh_of(small.plan).inner.axes:
                found.placed()
            return small, dims
        except SpecError as e:
            error = error or e
    assert error is not None
    raise error


def fewer(mesh: Mesh, ranks: int) -> dict[str, int]:
    """The axes with sizes whose product is at most `ranks`: each doubles in turn, none becomes larger than it was."""
    sizes = {a.name: 1 for a in mesh.axes}
    grows = True
    while grows:
        grows = False
        for a in mesh.axes:
            next_size = min(a.size, 2 * sizes[a.name])
            if next_size > sizes[a.name] and math.prod(sizes.values()) // sizes[a.name] * next_size <= ranks:
                sizes[a.name], grows = next_size, True
    return {n: size for n, size in sizes.items() if size > 1}


def _model(spec: Spec, stage: str) -> tuple[str, Any]:
    _, model, path = spec.model_section(spec.stages[stage].model)
    return ".".join(map(str, path)), model


def _tiles(model: object) -> Iterator[str]:
    """The expressions that say how often a block is repeated."""
    if isinstance(model, dict):
        if isinstance(model.get("times"), str):
            yield model["times"]
        for value in model.values():
            yield from _tiles(value)
    elif isinstance(model, list | tuple):
        for value in model:
            yield from _tiles(value)


def _stages(spec: Spec, mesh: Mapping[str, int]) -> int:
    """Of the pipeline, each of which takes a tile."""
    ranks = math.prod(n for a, n in mesh.items() if ROLES[a] == "stages")
    return ranks * (spec.plan.schedule.chunks or SCHEDULES[spec.plan.schedule.kind].least) if ranks > 1 else 1


def _fewer_tiles(text: str, numbers: Mapping[str, int], least: int) -> dict[str, int]:
    """Small sizes for the dims of such an expression: in `L - DENSE` the largest stays the largest."""
    names = sorted((n for n in parse(text).names() if n in numbers), key=lambda n: numbers[n])
    small = {n: min(numbers[n], least) for n in names[:-1]}
    return small | {n: min(numbers[n], least + sum(small.values())) for n in names[-1:]}


def _patterns(where: str, model: ModelSpec, tiles: int) -> list[str]:
    """Patterns of parameters whose numbers are those of tiles that there are."""
    lists = {"freeze": model.freeze, "train": model.train, "lora.match": model.lora.match if model.lora else []}
    small = {key: [TILE.sub(lambda m: str(int(m[0]) % tiles), p) for p in given] for key, given in lists.items()}
    return [f"{where}.{key}={json.dumps(small[key])}" for key, given in lists.items() if small[key] != given]


def _plan(mesh: Mapping[str, int]) -> list[str]:
    axes = ", ".join(f"{n}: {size}" for n, size in mesh.items())
    fp64 = "{compute: fp64, master: fp64, reduce: fp64}"
    return [f"plan.mesh={{{axes}}}", "plan.cluster.devices=auto", f"plan.precision={fp64}", "plan.compile='off'",
            "plan.kernels=aten"]  # fmt: skip


def _sizes(stage: str, mesh: Mapping[str, int]) -> list[str]:
    """Sequences and tokens for each rank that shares them out."""
    rows = ROWS * math.prod(n for a, n in mesh.items() if ROLES[a] in BATCH)
    microbatches = MICROBATCHES * math.prod(n for a, n in mesh.items() if ROLES[a] == "stages")
    tokens = TOKENS * max(2, math.prod(n for a, n in mesh.items() if ROLES[a] == "sequence"))
    batch, at = {"microbatch": rows, "sequences": microbatches * rows}, f"stages.{stage}"
    return [f"{at}.batch={json.dumps(batch)}", f"{at}.data.seq_len={tokens}"]


def _pairs(spec: Spec, stage: str) -> list[str]:
    """As many of a row as have tokens there."""
    asked = spec.stages[stage].asked
    return [f"stages.{stage}.preference.pairs={min(asked.pairs, PAIRS)}"] if asked else []


def rank(argument: dict[str, Any]) -> int:
    """The life of a rank."""
    me = own_rank()
    assert me is not None
    folder = Path(argument["folder"])

    def run(team: Team, pulse: Pulse) -> int:
        stage = open_build(folder / "mesh").stages[argument["stage"]]
        seat = take_seat(stage, team, pulse)
        loss, grads = step(stage, seat)
        wholes = seat.wholes(grads, {n: stage.shapes()[n] for n in stage.trainable()}, torch.float64)
        if seat.leads:
            expected, reference = step(open_build(folder / "one").stages[argument["stage"]], Seat())
            found = distances(wholes, reference)
            told = {"loss": abs(loss - expected) / (abs(expected) or 1.0), "grads": found}
            (folder / RESULT).write_text(json.dumps(told))
        return 0

    return as_rank(me, run)


def distances(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of each gradient over its largest entry. Over the largest of all gradients for one that is
    nothing but rounding, zero in exact arithmetic: that of a key's bias, say, which softmax does not see."""
    largest = {n: float(g.abs().max()) if g.numel() else 0.0 for n, g in reference.items()}
    most = max(largest.values(), default=0.0)
    over = {n: x if x > ROUNDING * most else most for n, x in largest.items()}
    return {
        n: float((found[n] - g).abs().max()) / over[n] if over[n] else 0.0 for n, g in reference.items() if g.numel()
    }


def step(stage: Stage, seat: Seat) -> tuple[float, dict[str, Tensor]]:
    """Loss and this rank's gradients of a step with drawn weights and inputs."""
    params = {p["path"]: weight(p, seat.sharding) for p in stage.params if seat.sharding.holds(p["path"])}
    n = stage.spec.batch.microbatches
    batches, shares = [seat.cut(inputs(stage, m)) for m in range(n)], [1.0 / n] * n
    result = stage.executor(False, seat.coordinates, seat.wire).step(params, batches, shares)
    return seat.of_loss(mean_loss(result, shares))[0], result.grads


def weight(p: Mapping[str, Any], sharding: Sharding = WHOLE) -> Tensor:
    """Of a size that makes every gradient count, also where training would begin with zeros."""
    path, shape, kind = p["path"], p["shape"], p["init"]["kind"]
    std = 0.1 if kind == "ones" else 0.5 * (shape[0] if len(shape) > 1 else 1) ** -0.5
    drawn = initial(path, shape, "normal", {"std": std}, 1, region=sharding.region(path, shape)).double()
    return drawn + 1 if kind == "ones" else drawn


def inputs(stage: Stage, microbatch: int) -> dict[str, Tensor]:
    """Drawn inputs: documents of several lengths, labels of which some do not count, tokens that every table has."""
    draw = torch.Generator().manual_seed(microbatch)
    rows = min([p["shape"][0] for p in stage.params if p["dims"][0] == "V"], default=2)
    made: dict[str, Tensor] = {}
    for name, text in sorted(stage.facts["inputs"].items()):
        shape = stage.facts["shapes"][name]
        if text.startswith("float"):
            made[name] = torch.randn(shape, generator=draw, dtype=torch.float64)
        elif name == REFERENCE and stage.spec.asked:
            made[name] = torch.randn(shape, generator=draw, dtype=torch.float64).view(torch.int64)
        elif name == "doc" and stage.spec.asked:  # a row's answers
            answers = 2 * stage.spec.asked.pairs
            made[name] = (torch.arange(shape[-1]) * answers // shape[-1]).expand(shape).contiguous()
        elif name.endswith("doc"):
            made[name] = torch.randint(0, 2, shape, generator=draw).cumsum(-1) // 4
        elif name.endswith("pos"):
            made[name] = torch.arange(shape[-1]).expand(shape).contiguous()
        elif name.endswith(("tokens", "labels")):
            made[name] = torch.randint(0, rows, shape, generator=draw)
        else:
            made[name] = torch.randint(0, 2, shape, generator=draw)
        if name == "labels":
            made[name] = torch.where(torch.rand(shape, generator=draw) < 0.2, -100, made[name])
    return made
