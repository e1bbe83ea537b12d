"""What a stage trains of a model, in which sizes, and what is wrong with that: from the two and the plan alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from specc.compiler.moments import orthogonalised
from specc.compiler.ops.row import Op
from specc.compiler.passes.fuse_linear_cross_entropy import fuse_linear_cross_entropy
from specc.compiler.passes.prune import prune
from specc.compiler.pictures import picture_mistakes
from specc.compiler.placement.mesh import is_open, mesh_of, options_of
from specc.compiler.placement.refuse import check_axes
from specc.compiler.placement.roles import follow
from specc.compiler.program import Program
from specc.compiler.vocabulary import vocabulary
from specc.spec.errors import Diagnostic, SpecError, pattern_hint
from specc.spec.optimizer import Muon, patterns
from specc.spec.spec import Spec
from specc.spec.stage import StageSpec

NO_LOSS = "S307"
AT_REFERENCE = ("preference", "reference")


def trained(whole: Program, stage: StageSpec) -> tuple[Program, dict[str, int]]:
    """What a stage trains of a model, and the sizes of open dims in a microbatch."""
    program = fuse_linear_cross_entropy(prune(whole, whole.watched))
    return program, stage_sizes(program, stage.batch.size, stage.lengths())


def stage_sizes(program: Program, batch: int, lengths: Mapping[str, int]) -> dict[str, int]:
    """Sizes of the open dims: the first dim of an input counts sequences, the others tokens.

    `lengths` are tokens of a row by the first letters of an input's name; '' is for all others."""
    sizes: dict[str, int] = {}
    for name, t in program.inputs.items():
        length = next((n for prefix, n in lengths.items() if prefix and name.startswith(prefix)), lengths[""])
        for i, d in enumerate(t.dims):
            if d.size is None and not d.of:
                sizes.setdefault(d.name, batch if i == 0 else length)
    return sizes


def training_mistakes(spec: Spec, name: str, program: Program) -> Iterator[Diagnostic]:
    """A model without a loss, an optimizer's patterns that no parameter matches and a kind that no parameter is for,
    more tokens than the model's table has."""
    stage = spec.stages[name]
    if program.loss is None:
        mark = spec.mark(spec.model_section(stage.model)[2])
        yield Diagnostic(NO_LOSS, "the model has no loss to train", mark, "add 'loss:'")
    elif not any(p.trainable for p in program.params.values()):
        _, model, section = spec.model_section(stage.model)
        mark = spec.mark((*section, "freeze" if model.freeze else "steps"))
        yield Diagnostic("S115", "nothing is trained: the model has no parameters that are not frozen", mark)
    yield from _optimizer_mistakes(spec, name, program)
    kept = prune(program, [*program.outputs]).params
    if program.loss is not None and (lost := [p for p in program.params if p not in kept]):
        mark = spec.mark((*spec.model_section(stage.model)[2], "steps"))
        shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
        hint = "a later step must take the value that they make ('_' is the last one made), or remove their steps"
        yield Diagnostic("S114", f"nothing comes of {shown}: neither the loss nor an output", mark, hint)
    if stage.of_images:
        yield from picture_mistakes(spec, name, program)
    room, own = vocabulary(program), stage.tokenizer
    if room and stage.weights and own is not None and own.file is None:
        text = f"'{name}' starts from weights that know the tokens of another tokenizer"
        mark = spec.mark(("stages", name, "tokenizer"))
        yield Diagnostic("S310", text, mark, f"tokenizer: {{file: {stage.weights.path}/tokenizer.json}}")
    if own is not None and own.file is None and room and room.size and own.vocab > room.size:
        mark = spec.mark(("stages", name, "tokenizer", "vocab"))
        text = f"a tokenizer of {own.vocab:,} tokens, and a model that takes {room.size:,}"
        more = f", or model.dims.{room}: {own.vocab}" if room.is_plain else ""
        yield Diagnostic("S309", text, mark, f"vocab: {room.size}{more}")


def _optimizer_mistakes(spec: Spec, name: str, program: Program) -> Iterator[Diagnostic]:
    """Patterns that no trained parameter matches, or no matrix where they take these from Muon; Muon without one."""
    optimizer, at = spec.stages[name].optimizer, ("stages", name, "optimizer")
    own = prune(program, program.watched).trainable or program.params  # that nothing is trained is said elsewhere
    every = optimizer.model_copy(update={"adamw": []}) if isinstance(optimizer, Muon) else optimizer
    matrices = orthogonalised(every, program)
    for place, pattern in patterns(optimizer):
        mark, found = spec.mark((*at, *place)), {p for p in program.params if fnmatchcase(p, pattern)}
        if not found:
            hint = pattern_hint(pattern, program.params)
            yield Diagnostic("S108", f"no parameter matches '{pattern}'", mark, hint)
        elif found.isdisjoint(own):
            why = "the loss does not need" if found & program.trainable else "the model freezes"
            hint = f"it matches what {why} ({min(found)}): remove it"
            yield Diagnostic("S108", f"no trained parameter matches '{pattern}'", mark, hint)
        elif place[0] == "adamw" and matrices and found.isdisjoint(matrices):
            text = f"'{pattern}' has no effect: it matches no matrix that muon would update"
            yield Diagnostic("S529", text, mark, "adamw updates vectors, tables and heads anyway: remove it")
    if isinstance(optimizer, Muon) and not orthogonalised(optimizer, program):
        text = "muon has no effect: the model has no hidden matrix that is trained and not left to 'adamw'"
        yield Diagnostic("S529", text, spec.mark((*at, "kind")), "kind: adamw")


def pairs(program: Program) -> str:
    """The path of a step that puts samples beside each other (a contrastive loss): what it gives depends on which of
    them are in a microbatch. Nothing if there is none."""
    batch = {t.dims[0].name for t in program.inputs.values() if t.dims}
    for body in program.bodies.values():
        for e in body.eqns:
            for t in e.types:
                ways = [d.name if d.name in batch else d.of for d in t.dims]
                if any(ways.count(b) > 1 for b in batch):
                    return f"`{e.op}` ({e.path})"
    return ""


def parent_mistakes(spec: Spec, programs: Mapping[str, Program]) -> Iterator[Diagnostic]:
    """Parameters of a stage that the stage it starts from (or is compared with) does not have, or has in another shape;
    adapters may be new, and those that are not have the same scale."""
    for name, stage in spec.stages.items():
        reference = stage.asked.reference if stage.asked else None
        for parent, at, does in ((stage.from_, ("from",), "starts from"), (reference, AT_REFERENCE, "reads")):
            if parent is None or parent not in programs or name not in programs:
                continue
            known, own = prune(programs[parent], []).params, programs[name]
            mark, scales = spec.mark(("stages", name, *at)), {a.weight: a.scale for a in programs[parent].adapters}
            if other := next((a for a in own.adapters if scales.get(a.weight, a.scale) != a.scale), None):
                text = f"'{parent}' adds the adapter of '{other.weight}' times {scales[other.weight]:g}, '{name}'"
                yield Diagnostic("S311", f"{text} times {other.scale:g}", mark)
                continue
            new = {path for a in own.adapters for path in (a.a, a.b)} - known.keys()
            for path, p in prune(own, []).params.items():
                if path not in new and (path not in known or known[path].type.shape({}) != p.type.shape({})):
                    has = f"'{path}' as {known[path].type.shown()}" if path in known else f"no '{path}'"
                    text = f"'{parent}' has {has}, and '{name}' {does} its weights with {p.type.shown()}"
                    yield Diagnostic("S311", text, mark)
                    break


def axis_mistakes(spec: Spec, name: str, whole: Program, own: Mapping[str, Op] | None = None) -> list[Diagnostic]:
    """Dims of the stage's model that leave a rest over the axes of the mesh."""
    if is_open(spec.plan) or not (mesh := mesh_of(spec.plan).inner).axes:
        return []
    program, sizes = trained(whole, spec.stages[name])
    try:
        check_axes(program, mesh, sizes, follow(program, sizes, own), options_of(spec.plan))
    except SpecError as e:
        return [replace(d, mark=spec.mark(("plan", "mesh"))) for d in e.diagnostics]
    return []
