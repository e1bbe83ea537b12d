"""From the `plan:` section to a mesh and the placer's options, and what is wrong with a plan by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from specc.compiler.hardware.tables import hardware, row_of
from specc.compiler.placement.cost import rates
from specc.compiler.placement.options import DEFAULTS, Options
from specc.compiler.placement.types import Axis, Mesh, Role
from specc.compiler.schedule.schedules import pipeline
from specc.spec.errors import Diagnostic, SpecError, did_you_mean
from specc.spec.plan import PlanSpec
from specc.spec.spec import Spec, takes_text
from specc.spec.stage import StageSpec

ROLES: Mapping[str, Role] = {
    "pp": "stages", "dp_replicate": "batch", "dp": "batch", "cp": "sequence", "ring": "sequence", "ep": "experts",
    "tp": "free",
}  # fmt: skip
BATCH: tuple[Role, ...] = ("batch", "experts")  # roles whose axes divide the sequences of a microbatch
# Strategies without a dim, which a pin may name instead of a dim to split.
WORDS = ("rep", "linear", "gather_kv", "ring", "kv_heads", "rows", "vocab", "experts")
ITEMSIZE = {"bf16": 2, "fp32": 4, "fp64": 8}


def mesh_of(plan: PlanSpec) -> Mesh:
    """The axes of the plan that have more than one rank, in its order. Raises SpecError for sizes that do not fit."""
    sizes = _sizes(plan)
    return Mesh(tuple(Axis(name, n, ROLES[name]) for name, n in sizes.items() if n > 1))


def is_open(plan: PlanSpec) -> bool:
    """Whether the mesh of several devices is to be searched for (compiler.foresight.choose)."""
    return plan.mesh == "auto" and plan.cluster.devices not in ("auto", 1)


def options_of(plan: PlanSpec) -> Options:
    """What the plan asks of the placer. A pin `layers.*.attention.q: {tp: H}` says that the step splits H over tp."""
    sequence = {"auto": None, "on": True, "off": False}[plan.sequence_parallel]
    itemsize = ITEMSIZE[plan.precision.compute]
    pins = {path.replace(".*", ""): {a: _strategy(word) for a, word in at.items()} for path, at in plan.pins.items()}
    name = plan.cluster.device
    device, links = (DEFAULTS.device, DEFAULTS.links) if name == "cpu" else rates(name, hardware())
    return Options(
        zero=plan.zero, sequence_parallel=sequence, context=plan.context, itemsize=itemsize, pins=pins, device=device,
        links=links,
    )  # fmt: skip


def _strategy(pin: str) -> str:
    """What a pin names: a strategy, or a dim to split."""
    return pin if pin in WORDS or ":" in pin else f"split:{pin}"


def mesh_mistakes(spec: Spec) -> list[Diagnostic]:
    """Names that do not exist, sizes that do not fit the devices, and microbatches that do not divide over the mesh."""
    found = [*_axes(spec), *_device(spec)]
    if not found and not is_open(spec.plan):
        try:
            mesh = mesh_of(spec.plan)
        except SpecError as e:
            at = spec.mark(("plan", "mesh")) or spec.mark(("plan", "cluster", "devices"))
            return [Diagnostic(d.code, d.message, at, d.hint) for d in e.diagnostics]
        found = [d for name, stage in spec.stages.items() for d in _stage(spec, name, stage, mesh)]
    return found


def _axes(spec: Spec) -> Iterator[Diagnostic]:
    mesh = spec.plan.mesh if isinstance(spec.plan.mesh, dict) else {}
    for i, name in enumerate(mesh):
        if name in ROLES and ROLES[name] == "stages" and i:
            text = f"'{name}' is the outermost axis of a mesh: its ranks have whole meshes of the others"
            at = spec.mark(("plan", "mesh", name))
            yield Diagnostic("S528", text, at, f"name '{name}' first in plan.mesh")
    pinned = [n for n, role in ROLES.items() if role != "stages"]
    names = [(("plan", "mesh", name), name, list(ROLES)) for name in mesh]
    names += [(("plan", "pins", path), axis, pinned) for path, pins in spec.plan.pins.items() for axis in pins]
    for where, name, known in names:
        if name not in known:
            text = f"a mesh has no axis '{name}'" if name not in ROLES else f"'{name}' splits calls: it takes no pins"
            yield Diagnostic("S520", text, spec.mark(where), did_you_mean(name, known))


def _device(spec: Spec) -> Iterator[Diagnostic]:
    try:
        row_of(hardware().devices, spec.plan.cluster.device, "device")
    except SpecError as e:
        at = spec.mark(("plan", "cluster", "device"))
        yield from (Diagnostic(d.code, d.message, at, d.hint) for d in e.diagnostics)


def _sizes(plan: PlanSpec) -> dict[str, int]:
    """The size of each axis, with `auto` filled in."""
    devices = None if plan.cluster.devices == "auto" else plan.cluster.devices
    if plan.mesh == "auto":
        assert not is_open(plan), "a plan is chosen before its mesh is asked for"
        return {"dp": 1}
    given = {name: n for name, n in plan.mesh.items() if n != "auto"}
    rest = [name for name, n in plan.mesh.items() if n == "auto"]
    product = math.prod(given.values())
    told = " x ".join(f"{name} {n}" for name, n in given.items()) or "1"
    if len(rest) > 1:
        raise _wrong(f"{len(rest)} axes are auto ({', '.join(rest)})", f"{rest[0]}: auto, and a size for the others")
    if rest and devices is None:
        raise _wrong(f"'{rest[0]}' is what is left of the devices, and their number is not given", "cluster.devices: N")
    if rest and devices is not None and devices % product:
        raise _wrong(f"{devices} devices do not divide by {told}", f"cluster.devices: {_up(devices, product)}")
    if not rest and devices not in (None, product):
        raise _wrong(f"the mesh has {product} ranks ({told}), the cluster {devices} devices", _nearest(given, devices))
    left = (devices or product) // product
    return {name: left if n == "auto" else n for name, n in plan.mesh.items()}


def _nearest(given: Mapping[str, int], devices: int | None) -> str:
    """The one axis that could have another size, or the devices."""
    product = math.prod(given.values())
    for name, n in given.items():
        if devices is not None and devices % (product // n) == 0:
            return f"{name}: {devices // (product // n)}, or cluster.devices: {product}"
    return f"cluster.devices: {product}"


def _wrong(text: str, hint: str) -> SpecError:
    return SpecError(Diagnostic("S521", text, None, hint))


def _stage(spec: Spec, name: str, stage: StageSpec, mesh: Mesh) -> Iterator[Diagnostic]:
    """A microbatch's sequences over the batch axes, and its tokens over the sequence axes."""
    rows = stage.batch.size
    over = [a for a in mesh.axes if a.role in BATCH]
    n = math.prod(a.size for a in over)
    if rows % n:
        key = "microbatch" if stage.batch.microbatch else "sequences"
        at = spec.mark(("stages", name, "batch", key)) or spec.mark(("stages", name))
        text = f"a microbatch of '{name}' has {rows} sequences, which do not divide over {_list(over)}"
        fits = next((m for m in range(rows - rows % n, 0, -n) if stage.batch.sequences % m == 0), 0)
        up = _up(rows, n)
        more = "" if key == "sequences" or stage.batch.sequences % up == 0 else f" with batch.sequences: {up}"
        hint = f"batch.{key}: {fits}" if fits and key == "microbatch" else f"batch.{key}: {up}{more}"
        yield Diagnostic("S522", text, at, hint)
    along = [a for a in mesh.axes if a.role == "sequence"]
    m = math.prod(a.size for a in along)
    for length in sorted(set(stage.lengths().values())) if takes_text(spec, stage) else ():
        if length % m:
            at = spec.mark(("stages", name, "data", "seq_len")) or spec.mark(("stages", name))
            text = f"the sequences of '{name}' have {length} tokens, which do not divide over {_list(along)}"
            yield Diagnostic("S523", text, at, f"data.seq_len: {_up(length, m)}")
    if mesh.stages > 1:
        yield from _pipeline(spec, stage, mesh.stages)


def _pipeline(spec: Spec, stage: StageSpec, ranks: int) -> Iterator[Diagnostic]:
    """A schedule's numbers."""
    chosen = spec.plan.schedule
    try:
        pipeline(chosen.kind, ranks, stage.batch.microbatches, chosen.chunks)
    except SpecError as e:
        at = spec.mark(("plan", "schedule")) or spec.mark(("plan", "mesh"))
        yield from (Diagnostic(d.code, d.message, at, d.hint) for d in e.diagnostics)


def _list(axes: list[Axis]) -> str:
    return " x ".join(map(str, axes))


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
