"""The first weights of a stage from a published checkpoint: what must agree, and each rank's parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specc.compiler.elaborate import elaborate, sizes_of
from specc.runtime.adapters import factors_of
from specc.runtime.built import Build, Stage
from specc.runtime.convert.config import CONFIG, read_config
from specc.runtime.convert.folder import Folder
from specc.runtime.convert.names import DIFFERS, Link, links, usable
from specc.runtime.errors import RunError
from specc.runtime.seat import Seat, first_values
from specc.spec.errors import SpecError
from specc.spec.names import NameTable, load_names, table_for
from specc.spec.spec import Spec, load
from specc.spec.stage import Weights

NAMED = ("model.dims", "model.numbers")  # a name here that a model has not would change nothing of it


@dataclass(frozen=True)
class Origin:
    """A published checkpoint that fits a stage's model: where it is, the table that names it, and its config."""

    path: Path
    names: str
    table: NameTable
    config: Mapping[str, Any]

    def facts(self) -> dict[str, str]:
        """What a run keeps of it."""
        return {"path": str(self.path), "names": self.names}


def origin(build: Build, stage: Stage, start: Weights, base: Path) -> Origin:
    """The checkpoint that the stage starts from; raises RunError if its config is not the model's."""
    path = base / start.path
    config = read_config(path)
    try:
        names = start.names or table_for(config)
        table = load_names(names)
        overrides = table.overrides(config)
    except SpecError as e:
        raise RunError(f"'{stage.name}': {path / CONFIG}: {told(e)}") from None
    if found := difference(load(build.path / "spec.yaml"), stage.spec.model, overrides):
        raise RunError(f"'{stage.name}': {path / CONFIG} is of another model: {found}")
    return Origin(path, names, table, config)


def told(error: SpecError) -> str:
    """A mistake about something that no spec says, as a sentence."""
    first = error.diagnostics[0]
    return first.message + (f"; {first.hint}" if first.hint else "")


def difference(spec: Spec, model: str | None, overrides: Sequence[str]) -> str:
    """The first of some values, written for `model`, that the spec's model does not have; nothing if it has all."""
    _, section, at = spec.model_section(model)
    for path, _, value in (text.partition("=") for text in overrides):
        part, _, key = path.rpartition(".")
        if part in NAMED and key not in getattr(section, part.removeprefix("model.")):
            return f"it needs {path}={value}, and the model has no '{key}'"
    put = [".".join(map(str, at)) + text.removeprefix("model") for text in overrides]
    now = meaning(spec, model)
    if _is(spec, model, now, put):
        return ""
    for text, there in zip(overrides, put, strict=True):
        if not _is(spec, model, now, [there]):
            path, _, value = text.partition("=")
            part, _, key = path.rpartition(".")
            known = section.model_dump().get(part.removeprefix("model."), {})
            return f"it needs {path}={value}" + (f", and here it is {known[key]}" if key in known else "")
    return "it needs " + ", ".join(overrides)


def meaning(spec: Spec, model: str | None) -> tuple[str, dict[str, int]]:
    """What a model is: its program, and the sizes of the dims in it."""
    return str(elaborate(spec, model)), sizes_of(spec.model_section(model)[1])


def _is(spec: Spec, model: str | None, now: tuple[str, dict[str, int]], overrides: Sequence[str]) -> bool:
    """Whether the overrides change nothing; dims that the model has not are none of its affair."""
    try:
        program, sizes = meaning(spec.changed(*overrides), model)
    except SpecError:  # a value alone may not fit the others
        return False
    return (program, {n: sizes.get(n) for n in now[1]}) == now


def matched(stage: Stage, found: Origin, folder: Folder) -> list[Link]:
    """How the folder's tensors make the stage's parameters; raises RunError if their names or shapes do not."""
    shapes = {path: tuple(shape) for path, shape in stage.shapes().items()}
    own = {*found.table.initial, *factors_of(stage.adapters)}
    wanted = [p for p in shapes if p not in own]
    try:
        used = usable(
            links(found.table.rules(found.config), shapes), folder.places.keys(), wanted, found.table.ignore
        )  # fmt: skip
        for link in used:
            for name in link.theirs:
                link.check(name, folder.places[name].shape)
    except RunError as e:
        raise RunError(f"'{stage.name}': {found.path}: {e}") from None
    return used


def check_origin(build: Build, stage: Stage, start: Weights, base: Path) -> None:
    """See that a stage finds the checkpoint that it names, and that it fits; no tensor is read."""
    found = origin(build, stage, start, base)
    with Folder(found.path, found.table.prefix) as folder:
        matched(stage, found, folder)


def origin_weights(stage: Stage, found: Origin, seat: Seat) -> dict[str, Tensor]:
    """This rank's parts of the checkpoint's weights; in memory is one rule's tensors at a time."""
    shapes, adapters = stage.shapes(), factors_of(stage.adapters)
    params = first_values(stage, seat, only=adapters.union(found.table.initial))
    with Folder(found.path, found.table.prefix) as folder:
        for link in matched(stage, found, folder):
            if not any(map(seat.sharding.holds, link.ours)):
                continue
            for path, whole in link.to_ours([folder.read(n) for n in link.theirs]).items():
                if not seat.sharding.holds(path):
                    continue
                part = whole[seat.sharding.region(path, shapes[path])]
                own = part.to(seat.device, stage.dtype(path), copy=True, memory_format=torch.contiguous_format)
                if path in params and not torch.equal(params[path], own):
                    raise RunError(f"'{stage.name}': {found.path}: {DIFFERS.format(link.theirs[0], path)}")
                params[path] = own
            seat.pulse.touch()
    return {p: params[p] for p in shapes if p in params}
