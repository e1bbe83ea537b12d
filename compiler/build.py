"""From a spec to a build: a directory of programs, graphs, schedules and facts, byte for byte reproducible."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from specc.compiler.elaborate import elaborate, elaborate_stage, sizes_of
from specc.compiler.elaborate.preference import left_aside
from specc.compiler.facts import StageFacts, facts_of
from specc.compiler.graphs import Graphs, to_json, to_text, verify
from specc.compiler.kernels.coverage import coverage
from specc.compiler.kernels.emit import emit
from specc.compiler.lower.bodies import DTYPES, Variant, as_function, operands, variants
from specc.compiler.lower.decode import refusal
from specc.compiler.lower.decode_bodies import decode_body, decode_function, decode_operands
from specc.compiler.lower.local import Impl
from specc.compiler.lower.placed import zigzag
from specc.compiler.lower.placed_bodies import lower_placed
from specc.compiler.lower.user import user_impls
from specc.compiler.moments import Matrix, orthogonalised
from specc.compiler.ops.row import Op
from specc.compiler.ops.user import op_files, user_ops
from specc.compiler.order import Lowered, Ordered, fitted, order
from specc.compiler.partition import build_graphs, clean
from specc.compiler.passes.prune import prune
from specc.compiler.passes.sink_masks import sink_masks
from specc.compiler.passes.without_dropout import without_dropout
from specc.compiler.placement.mesh import mesh_of, options_of
from specc.compiler.placement.place import place
from specc.compiler.placement.placed import Placed
from specc.compiler.placement.types import Mesh
from specc.compiler.positions import check_positions
from specc.compiler.program import Call, Program
from specc.compiler.schedule.files import write_schedules
from specc.compiler.training import NO_LOSS, pairs, parent_mistakes, stage_sizes, trained, training_mistakes
from specc.compiler.vocabulary import classes, vocabulary
from specc.compiler.work import graph_work
from specc.spec.errors import Diagnostic, SpecError, in_order
from specc.spec.model import ModelSpec
from specc.spec.plan import PlanSpec
from specc.spec.spec import Spec
from specc.spec.stage import StageSpec

MANIFEST = "manifest.json"
PREFERENCE = "preference"  # a kind of stage, and its settings
CHUNK = 32  # tokens of a prompt that are decoded at once
WATCH_WORDS = ("eval", "sample", "checkpoint")  # what of a stage looks at its steps and does not change them
DERIVED = ("sizes", "shapes", "decodes", "flops_per_token")  # what of a stage follows from its spec and its program
LATER = ("image", "label", "denoising")  # keys of a stage that came after the first release, None where not given
# What of a plan says where and when things are computed, and not what: a run goes on under another mesh.
MESH_WORDS = ("cluster", "mesh", "schedule", "zero", "sequence_parallel", "context", "pins", "recompute", "offload")


def build_spec(spec: Spec, out: Path, allow_ops: bool = False, trains: bool = True) -> list[StageFacts]:
    """Write the build of all stages; what stood in `out` before is replaced. `allow_ops` trusts the spec's own ops.

    Without `trains` it is for drawn inputs, so that tokenizers and optimizers need not fit the model."""
    if not spec.stages:
        raise SpecError(Diagnostic("S305", "there are no stages to build", spec.mark(()), "add 'stages:'"))
    if out.exists() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise SpecError(Diagnostic("S306", f"{out} is not a build, so it is not replaced"))
    programs = {name: elaborate_stage(spec, stage) for name, stage in spec.stages.items()}
    mistakes = [d for name, program in programs.items() for d in training_mistakes(spec, name, program)]
    mistakes += parent_mistakes(spec, programs)
    if mistakes := [d for d in mistakes if trains or d.code == NO_LOSS]:
        raise SpecError(*in_order(mistakes))
    own = user_impls(spec, allow_ops)
    work = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write(work / "spec.yaml", spec.to_yaml())
    for file in op_files(spec):
        (work / file.name).parent.mkdir(parents=True, exist_ok=True)
        (work / file.name).write_bytes(file.source)
    facts: list[StageFacts] = []
    hashes: dict[str, str] = {}
    for name in spec.stages:
        with plan_marked(spec):
            facts.append(build_stage(spec, name, programs[name], work / "stages" / name, hashes, own))
    write_manifest(spec, work, hashes)
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)
    return facts


@contextmanager
def plan_marked(spec: Spec) -> Iterator[None]:
    """Refusals of a plan (S5..) that have no other place stand at the plan."""
    try:
        yield
    except SpecError as e:
        at = spec.mark(("plan",))
        marked = (replace(d, mark=at) if d.mark is None and d.code.startswith("S5") else d for d in e.diagnostics)
        raise SpecError(*marked) from None


def build_stage(
    spec: Spec, name: str, whole: Program, out: Path, hashes: dict[str, str], own: Mapping[str, Impl]
) -> StageFacts:
    """Programs, graphs, calls, parameters and the schedule of one stage."""
    stage = spec.stages[name]
    program, sizes = trained(whole, stage)
    mesh, rows = mesh_of(spec.plan), user_ops(spec, (), ())
    compute = DTYPES[spec.plan.precision.compute]
    check_positions(program, sizes, spec.mark(("stages", name, "data", "seq_len")))
    out.mkdir(parents=True)
    write(out / "program.txt", str(program))
    placed = placement(spec.plan, program, mesh, sizes, rows) if mesh.inner.axes else None
    if placed:
        write(out / "placed.txt", str(placed))
    bare = placed or local_masks(spec.plan, program, mesh)
    kernels = emit(spec.plan, bare, sizes, compute, out.parents[1] / "kernels", spec.mark(("plan",)))
    lower_with = partial(lowered, kernels.program, sizes, compute, {**own, **kernels.impls})
    order_of = partial(order, spec.plan, stage, program, mesh, sizes, placed)
    graphs, calls, ordered = fitted(spec.plan, mesh, lower_with, order_of)
    write_graphs(graphs, out / "graphs")
    if kernels.whole and spec.plan.kernels != "auto":  # lowering twice more takes its time: it is to be asked for
        before = lowered(bare, sizes, compute, own)[0]
        after = lowered(kernels.whole, sizes, compute, {**own, **kernels.made})[0]
        source = {n: v.source for n, v in variants(program, placed.params if placed else None)[0].items()}
        covers = {n: coverage(before[n], g, kernels.left[source[n]]) for n, g in after.items()}
        write_json(out / "kernels.json", {n: vars(c) for n, c in covers.items()})
    write_json(
        out / "calls.json", {"calls": [vars(c) for c in calls], "graphs": {n: layout(g) for n, g in graphs.items()}}
    )
    matrices = orthogonalised(stage.optimizer, program)
    write_json(out / "params.json", [param_facts(program, p, placed, matrices.get(p)) for p in program.params])
    write_order(ordered, out)
    decoding = build_decoding(whole, stage, compute, out / "decode", own, rows)
    write(out / "decode.txt", decoding + "\n")
    result = facts_of(name, stage, spec.plan, program, sizes, graphs, calls, ordered.actions, ordered.fullest)
    write_json(out / "memory.json", result.memory)
    write_json(out / "work.json", work_facts(result, graphs))
    described = {
        "name": name, "spec": stage.model_dump(mode="json", by_alias=True), "plan": spec.plan.model_dump(mode="json"),
        "inputs": {n: str(t) for n, t in program.inputs.items()}, "loss": program.loss, "sizes": sizes,
        "shapes": {n: t.shape(sizes) for n, t in program.inputs.items()},
        "ops": {f.name: f.sha256 for f in op_files(spec)},
        "parent": stage.from_, "decodes": not decoding, "flops_per_token": result.flops_per_token,
    }  # fmt: skip
    dims = dims_of(spec.model_section(stage.model)[1])
    counted = {**described, "dims": dims, "trained": sorted(program.trainable)}
    loose = () if (compared := pairs(program)) else ("microbatch",)
    hashes[name] = hash_of(counted, program, loose, "".join(hashes.get(parent, "") for parent in stage.parents))
    room = vocabulary(program)
    watched = {n: program.outputs[n] for n in program.watched}
    known: dict[str, Any] = {"classes": classes(program)} if stage.of_images else {}
    known |= {"adapters": [vars(a) for a in program.adapters]} if program.adapters else {}
    aside = left_aside(elaborate(spec, stage.model, stage.objective)) if stage.asked else []
    known |= {"left_aside": aside} if aside else {}
    known |= {"vocabulary": room and room.size, "pairs": compared, "hash": hashes[name], "watched": watched}
    write_json(out / "stage.json", {**described, **mesh_facts(mesh, program, placed), **known})
    return result


def lowered(
    program: Program | Placed, sizes: Mapping[str, int], compute: torch.dtype, own: Mapping[str, Impl],
    share: float = 1.0,
) -> Lowered:  # fmt: skip
    """Graphs of the program, of a rank's parts where it is placed; blocks save a share of their bytes."""
    if isinstance(program, Placed):
        return lower_placed(program, compute, own, share)
    return lower(program, sizes, compute, own, share)


def work_facts(facts: StageFacts, lowered: Mapping[str, Graphs]) -> dict[str, Any]:
    """The work of a step and of its update, of one call of each graph, and of all graphs together."""
    parts = {n: {p: vars(graph_work(gm)) for p, gm in g.parts().items()} for n, g in lowered.items()}
    whole = {"step": vars(facts.step), "optimizer": vars(facts.optimizer), "graphs": vars(facts.graphs)}
    return {**whole, "parts": parts}


def dims_of(model: ModelSpec) -> dict[str, Any]:
    """The sizes of a model's dims: a program's text has their names alone."""
    return {**{n: raw for n, raw in model.dims.items() if isinstance(raw, list)}, **sizes_of(model)}


def hash_of(described: Mapping[str, Any], program: Program, loose: Sequence[str], parent: str) -> str:
    """What a stage computes, and from what; not on which mesh, how it is watched, and what of its batch is `loose`."""
    spec, plan = _without(described["spec"], WATCH_WORDS), _without(described["plan"], MESH_WORDS)
    spec = spec if spec["kind"] == PREFERENCE else _without(spec, (PREFERENCE,))  # others have nothing to say in it
    spec["batch"] = _without(spec["batch"], loose)
    kept = {**_without(described, DERIVED), "spec": _given(spec), "plan": plan}
    text = json.dumps(kept, sort_keys=True) + str(program) + parent
    return hashlib.sha256(text.encode()).hexdigest()


def _given(part: Any) -> Any:
    """A part of a stage without the keys that came later and that it does not use: older runs are not named by them."""
    if isinstance(part, list):
        return [_given(p) for p in part]
    if not isinstance(part, dict):
        return part
    return {k: _given(v) for k, v in part.items() if not (k in LATER and v is None)}


def _without(described: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    return {k: v for k, v in described.items() if k not in words}


def placement(
    plan: PlanSpec, program: Program, mesh: Mesh, sizes: Mapping[str, int], rows: Mapping[str, Op]
) -> Placed:  # fmt: skip
    """The program on the mesh of a rank of the pipeline."""
    return place(local_masks(plan, program, mesh), mesh.inner, sizes, options_of(plan), rows)


def local_masks(plan: PlanSpec, program: Program, mesh: Mesh) -> Program:
    """Where tokens may go around a ring, or calls to other ranks, masks are made of attributes block by block, as where
    the attention of a rank may be a kernel: it reads the attributes."""
    rings = any(a.role == "sequence" for a in mesh.axes) and plan.context in ("auto", "ring")
    reads = bool(mesh.inner.axes) and plan.kernels in ("emit", "triton")
    return sink_masks(program) if rings or reads or mesh.stages > 1 else program


def mesh_facts(mesh: Mesh, program: Program, placed: Placed | None) -> dict[str, Any]:
    """The mesh, and how inputs and watched outputs lie on it: for each axis a place, for each dim of an input the ranks
    of its zigzag."""
    order = zigzag(placed) if placed else {}
    inputs = {
        n: {"layout": [str(p) for p in placed.inputs[n]] if placed else [],
            "zigzag": [order.get(d.of or d.name, 0) for d in t.dims]}
        for n, t in program.inputs.items()
    }  # fmt: skip
    found = placed.program.calls if placed else ()
    made = {v: at for c in found if placed for v, at in zip(c.outs, placed.bodies[c.body].outs, strict=True)}
    outputs = {n: [str(p) for p in made[program.outputs[n]]] for n in program.watched} if placed else {}
    return (
        {"mesh": [vars(a) for a in mesh.axes], "input_layouts": inputs, "output_layouts": outputs} if mesh.axes else {}
    )


def lower(
    program: Program, sizes: Mapping[str, int], compute: torch.dtype, own: Mapping[str, Impl] | None = None,
    share: float = 1.0,
) -> tuple[dict[str, Graphs], tuple[Call, ...]]:  # fmt: skip
    """Graphs of each unique body, and the calls; `share` is that of the bytes saved (see build_graphs)."""
    found, calls = variants(program)
    return {name: lower_body(v, sizes, compute, own or {}, share) for name, v in found.items()}, calls


def write_graphs(lowered: Mapping[str, Graphs], out: Path) -> None:
    out.mkdir()
    for name, graphs in lowered.items():
        for part, gm in graphs.parts().items():
            write(out / f"{name}.{part}.json", to_json(gm))
            write(out / f"{name}.{part}.txt", to_text(gm))


def write_order(made: Ordered, out: Path) -> None:
    """Actions as text, bytes alive behind each; with a pipeline its slots, and what the runtime needs beside them."""
    write_schedules(out, made.actions)
    live = [[moment.left for moment in memory.moments] for memory in made.memories]
    write(out / "live.json", json.dumps(live) + "\n")
    if made.pipe:
        pipe = made.pipe
        write(out / "slots.txt", str(pipe.table))
        described = {"values": pipe.values, "params": pipe.params, "loss": pipe.loss, "stages": pipe.stages.of_call}
        write_json(out / "pipeline.json", {**described, "where": pipe.stages.where})


def lower_body(
    v: Variant, sizes: Mapping[str, int], compute: torch.dtype, own: Mapping[str, Impl], share: float
) -> Graphs:  # fmt: skip
    mode = FakeTensorMode()
    ins, params = operands(v.body, sizes, compute, mode)
    return build_graphs(as_function(v.body, sizes, own), ins, params, v.in_grads, v.param_grads, mode, share)


def build_decoding(
    whole: Program, stage: StageSpec, compute: torch.dtype, out: Path, own: Mapping[str, Impl], rows: Mapping[str, Op]
) -> str:
    """Decoding graphs for one token and for a chunk of a prompt; why not, if the model cannot decode."""
    if "logits" not in whole.outputs or "tokens" not in whole.inputs:
        return "a model that decodes has an input 'tokens' and an output 'logits'"
    program = prune(without_dropout(whole), ["logits"], loss=False)
    if "tokens" not in program.inputs:
        return "the output 'logits' does not depend on the input 'tokens'"
    seq = program.inputs["tokens"].dims[-1].name
    reason = refusal(list(program.bodies.values()), seq, rows)
    strange = [n for n, t in program.inputs.items() if t.dims[-1].name != seq or t.dtype != "int"]
    if reason or strange:
        return reason or f"decoding goes along '{seq}' alone; it has no {program.inputs[strange[0]]} for '{strange[0]}'"
    out.mkdir()
    capacity = stage.data.seq_len
    keys: dict[str, Any] = {}
    for width in (1, min(CHUNK, capacity)):
        sizes = {**stage_sizes(program, 1, {"": width}), "keys": capacity}
        for name, body in program.bodies.items():
            d, mode = decode_body(body, seq, sizes, capacity), FakeTensorMode()
            flat = decode_operands(d, seq, sizes, capacity, compute, mode)
            with mode:
                gm = verify(clean(make_fx(decode_function(d, seq, sizes, capacity, own))(*flat)))
            write(out / f"{name}.{width}.json", to_json(gm))
            keys[name] = {"keys": [[v.name for v in body.ins].index(k) for k in d.key_attributes], "caches": d.caches}
    write_json(out / "calls.json", {
        "calls": [vars(c) for c in program.calls], "bodies": keys, "logits": program.outputs["logits"],
        "capacity": capacity, "widths": [1, min(CHUNK, capacity)], "inputs": sorted(program.inputs),
    })  # fmt: skip
    return ""


def layout(g: Graphs) -> dict[str, Any]:
    """What the runtime needs beside a body's graphs."""
    known = {
        "n_outs": g.n_outs, "in_grads": g.in_grads, "param_grads": g.param_grads, "out_grads": g.out_grads,
        "parts": list(g.parts()), "saved_bytes": g.saved_bytes,
    }  # fmt: skip
    if g.carry:
        known |= {"saved_from": g.saved_from, "gathered": g.carry.gathered, "reduced": g.carry.reduced}
    return known


def param_facts(
    program: Program, path: str, placed: Placed | None = None, matrix: Matrix | None = None
) -> dict[str, Any]:  # fmt: skip
    """What the runtime knows of a parameter; `shape` is the whole's, `layout` says how it is kept on a mesh, `matrix`
    which dims are those of one, if Muon updates it."""
    p = program.params[path]
    shape = p.type.shape({})
    known: dict[str, Any] = {
        "path": path, "dims": [d.name for d in p.type.dims], "shape": shape, "trainable": p.trainable,
        "init": {"kind": p.init.kind, "args": dict(p.init.args)}, "fan_in": shape[0] if shape else 1,
    }  # fmt: skip
    known |= {"narrow": True} if path in program.narrow else {}
    known |= {"matrix": vars(matrix)} if matrix else {}
    return known | ({"layout": [str(at) for at in placed.params[path]]} if placed else {})


def write_manifest(spec: Spec, out: Path, hashes: Mapping[str, str]) -> None:
    """SHA-256 of every file, versions, and the stages' hashes."""
    files = {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }
    write_json(out / MANIFEST, {
        "name": spec.name, "specc": version("specc"), "torch": torch.__version__,
        "stages": dict(hashes), "files": files,
    })  # fmt: skip


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    write(path, json.dumps(data, indent=1, sort_keys=True) + "\n")
