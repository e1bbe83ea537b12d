"""What a spec says in vain, as it is written: sizes under names that its model does not have, settings of axes that its
mesh does not have, settings of what a stage does not do. What is derived from a spec (a plan that was searched for, a
small model to verify) may have it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from specc.compiler.moments import MOMENTS, rule_of
from specc.spec.errors import Diagnostic, did_you_mean
from specc.spec.model import ModelSpec
from specc.spec.node import Node
from specc.spec.spec import Spec, takes_text
from specc.spec.stage import StageSpec

NAME = re.compile(r"[^\W\d]\w*")
DESCRIBING: dict[str, Any] = {"doc": True, "blocks": {"__all__": {"doc"}}}  # text for people
CHATS = "a row of chats has its text in 'messages', 'prompt', 'chosen' and the like"
NO_TEXT = "the model takes no captions (tokens) with its images"
SET = "--set"  # the file of what the command line puts in


def idle(spec: Spec) -> Iterator[Diagnostic]:
    """All of it; nothing of a spec that was made in Python."""
    root = spec.mark(("specc",))
    if root is None:
        return
    sections = [(("model",), spec.model), *((("models", n), m) for n, m in spec.models.items())]
    for at, model in sections:
        if model is not None:
            yield from _sizes(spec, model, at, {root.file, SET})
    yield from _settings(spec)
    for name, stage in spec.stages.items():
        yield from _of_stage(spec, name, stage)


def _sizes(spec: Spec, model: ModelSpec, at: tuple[str, ...], own: set[str]) -> Iterator[Diagnostic]:
    """Dims and numbers that stand in the user's own file, over a model of another one that names them nowhere."""
    steps, named = spec.mark((*at, "steps")), set(_names(model.model_dump(exclude=DESCRIBING)))
    if steps is None or steps.file in own:
        own = {SET}  # a model of one's own may have more; what is put over it has a name in it
    known = [n for n in (*model.dims, *model.numbers) if n in named]
    for key, names in (("dims", model.dims), ("numbers", model.numbers)):
        for name in names:
            mark = spec.mark((*at, key, name))
            if name not in named and mark and mark.file in own:
                yield Diagnostic("S113", f"nothing in the model uses '{name}'", mark, did_you_mean(name, known))


def _names(part: Any) -> Iterator[str]:
    """The names in the texts of a part of a model's section."""
    if isinstance(part, str):
        yield from NAME.findall(part)
    elif isinstance(part, dict | list):
        for value in part.values() if isinstance(part, dict) else part:
            yield from _names(value)


def _settings(spec: Spec) -> Iterator[Diagnostic]:
    """Settings of axes that a mesh leaves out; one of size 1 is not left out."""
    plan, mesh = spec.plan, spec.plan.mesh
    asked = {
        "schedule": ("schedule" in plan.model_fields_set, ("pp",)), "context": (plan.context != "auto", ("cp", "ring")),
        "sequence_parallel": (plan.sequence_parallel == "on", ("tp",)),
    }  # fmt: skip
    for key, (is_asked, axes) in asked.items():
        if is_asked and isinstance(mesh, dict) and mesh and not set(axes) & set(mesh):
            text = f"plan.{key} has no effect: the mesh has no axis {' or '.join(map(repr, axes))}"
            hint = f"give plan.mesh the axis '{axes[0]}' (of size 1 if it is to be left out), or remove plan.{key}"
            yield Diagnostic("S529", text, spec.mark(("plan", key)), hint)
    kinds = {rule_of(stage.optimizer, is_matrix=True) for stage in spec.stages.values()}
    if plan.offload.optimizer and kinds and not any(MOMENTS[rule] for rule in kinds):
        text = "plan.offload.optimizer has no effect: sgd without momentum keeps nothing from step to step"
        yield Diagnostic("S529", text, spec.mark(("plan", "offload", "optimizer")), "remove 'optimizer'")


def _of_stage(spec: Spec, name: str, stage: StageSpec) -> Iterator[Diagnostic]:
    """Settings of a schedule, a tokenizer or a template that the stage does not have, by another setting (`decider`).

    One that another file or the command line decides over may stand: what is put over a spec takes nothing away."""
    schedule, own, reads = stage.schedule, stage.tokenizer, takes_text(spec, stage)
    read = (("sources", stage.data.sources), ("held_out", stage.data.held_out))
    sources = [((part, i), source) for part, listed in read for i, source in enumerate(listed)]
    vain: list[tuple[bool, Node | None, tuple[str | int, ...], str, str]] = [
        (schedule.kind == "constant", schedule, ("schedule", "final"), "kind", "the learning rate is constant"),
        (schedule.kind == "inverse_sqrt", schedule, ("schedule", "final"), "kind", "inverse_sqrt falls as it does"),
        (schedule.kind != "wsd", schedule, ("schedule", "decay"), "kind", f"it is for wsd, not {schedule.kind}"),
        (not stage.has_chats, stage, ("template",), "kind", "an sft or a preference stage has chats"),
        (bool(own and own.file), own, ("tokenizer", "vocab"), "file", "the tokenizer is read from a file"),
        (bool(own and own.file), own, ("tokenizer", "documents"), "file", "the tokenizer is read from a file"),
        (not reads, stage, ("tokenizer",), "objective", NO_TEXT),
        (not reads, stage.data, ("data", "seq_len"), "objective", NO_TEXT),
        (stage.of_images, stage, ("sample",), "objective", "a stage of images writes no texts"),
        *((stage.has_chats, source, ("data", *at, "field"), "kind", CHATS) for at, source in sources),
        (bool(stage.data.held_out), stage.data, ("data", "validation"), "held_out", "all of 'held_out' validates"),
    ]
    for is_vain, node, at, decider, why in vain:
        if is_vain and node is not None and str(at[-1]) in node.model_fields_set:
            mark, by = (spec.mark(("stages", name, *place)) for place in (at, (*at[:-1], decider)))
            if decider not in node.model_fields_set or (mark and by and mark.file == by.file):
                text = f"stages.{name}.{'.'.join(map(str, at))} has no effect: {why}"
                yield Diagnostic("S529", text, mark, f"remove '{at[-1]}'")
