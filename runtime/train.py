"""One stage: prepare its data and state, then train; what was begun goes on from its newest good checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from glob import escape
from pathlib import Path
from typing import TextIO

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specc.compiler.units import duration
from specc.runtime import checkpoint
from specc.runtime.adapters import factors_of, merged
from specc.runtime.ahead import Ahead, Later
from specc.runtime.allocator import keep_memory
from specc.runtime.built import Build, Stage
from specc.runtime.compile import decided
from specc.runtime.convert.config import CONFIG
from specc.runtime.convert.folder import look_of
from specc.runtime.convert.start import check_origin, origin, origin_weights
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.data.batches import unigram_entropy
from specc.runtime.data.corpus import CHATS, PAIRS
from specc.runtime.data.images.rows import Taken, albums, prepare_pictures
from specc.runtime.data.objectives import fields_given
from specc.runtime.data.prepare import Prepared, Texts, corpora, first_texts, prepare
from specc.runtime.data.template import check_template
from specc.runtime.errors import RunError
from specc.runtime.health import Guard
from specc.runtime.heartbeat import STARTING, Pulse
from specc.runtime.lock import locked
from specc.runtime.loop import Run, Say, train
from specc.runtime.metrics import Metrics, open_events
from specc.runtime.optimizer import Updater
from specc.runtime.progress import Progress
from specc.runtime.reference import Reference
from specc.runtime.seat import Seat, first_values, take_seat
from specc.runtime.signals import Signals
from specc.runtime.team import ALONE, Team, first
from specc.runtime.team import say as say_all
from specc.spec.objective import REFERENCE
from specc.spec.stage import CAPTION

DIGITS = 12  # of a stage's hash in the name of its folder
FACTS = "facts.json"  # what a report shows of the data
ORIGIN = "origin.json"  # which published checkpoint a run started from
NOT_RUN = "'{}' starts from '{}', which has not run"


def stage_folder(build: Build, stage: Stage) -> Path:
    """Where a stage's run lives: beside the build, named by the stage's content."""
    return build.path.parent / f"{build.path.name}.runs" / f"{stage.name}-{stage.hash[:DIGITS]}"


def run_stage(
    build: Build, stage: Stage, base: Path, say: Say, bar: TextIO | None = None, team: Team = ALONE,
    pulse: Pulse | None = None,
) -> str:  # fmt: skip
    """Run one stage to its end; says `done`, or what happened before. Raises Stopped after a signal."""
    folder = stage_folder(build, stage)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if team.rank == 0 else nullcontext():
        if say_all(team, (folder / "done.json").is_file())[0]:
            say(f"{stage.name}: done before, skipped ({folder.name})")
            return "skipped"
        run = begin(build, stage, folder, base, say, take_seat(stage, team, pulse))
        spec = stage.spec
        ready = Progress(stage.name, run.step, spec.steps(), spec.units, say, bar, spec.unit)
        try:
            with Signals() as signals, ready as progress:
                run.say = progress.tell
                train(run, signals, progress)
        finally:
            if run.later:
                run.later.stop()
            if run.metrics:
                run.metrics.close()
    return "done"


def begin(build: Build, stage: Stage, folder: Path, base: Path, say: Say, seat: Seat | None = None) -> Run:
    """Data, weights and optimizer: fresh, from the parent stage, or from the newest good checkpoint."""
    seat = seat or take_seat(stage)
    seat.pulse.allow(STARTING)
    loaded = resume(stage, folder, say, seat)
    tokenizer, data = first(seat.team, lambda: read_data(build, stage, folder, base, seat.pulse.touch))
    if loaded and loaded.facts.get("documents", data.documents) != data.documents:
        say(f"{stage.name}: its documents are not those of the steps before; the rows that follow are of the new ones")
    for note in data.notes:
        say(f"{stage.name}: {note}")
    first(seat.team, lambda: keep_classes(build, stage, data.classes, loaded is not None))
    if loaded:
        params, step = seat.moved(loaded.tensors["weights"]), loaded.step
    else:
        if others := _others(stage, folder):
            more = f" (and {len(others) - 1} more)" if others[1:] else ""
            say(f"{stage.name}: {others[-1].name}{more} was trained with other settings; this begins anew")
        params, step = first_weights(build, stage, folder, base, seat), 0
        tell_data(stage, data, folder if seat.leads else None, say)
    if told := slow_warmup(stage):
        say(told)
    own = {p: params[p] for p in stage.trainable() if p in params}
    optimizer = updater(stage, own, seat)
    ema = {n: t.clone() for n, t in own.items()} if stage.spec.ema else {}
    metrics = Metrics(folder, step, open_events(folder / "tensorboard", step)) if seat.leads else None
    decision = first(
        seat.team, lambda: decided(folder / "compile.json", lambda: stage.decide(seat.device), seat.device)
    )
    say(f"{stage.name}: {decision.why}; a step takes about {duration(decision.step_seconds)}")
    ready = partial(
        stage.executor, coordinates=seat.coordinates, wire=seat.wire, device=seat.device, plain=decision.plain
    )
    executor = ready(decision.compiled and step >= decision.begins)
    if stage.spec.asked and stage.spec.asked.has_reference:
        weights = partial(reference_weights, build, stage, folder, base, seat, None if loaded else params)
        of = f"{stage.hash} {hashlib.sha256(tokenizer.to_str().encode() if tokenizer else b'').hexdigest()}"
        mark = partial(reference_mark, build, stage, base)
        data = Reference(stage, folder, executor, weights, mark, loaded is not None, of, say, seat).beside(data)
    run = Run(stage, folder, tokenizer, data, executor, params, optimizer, ema, metrics, say, step, seat)
    if loaded:
        run.guard = Guard(int(loaded.facts["skipped"]), int(loaded.facts["in_a_row"]))
        optimizer.load(loaded.tensors["optimizer"])
        run.ema = seat.moved(loaded.tensors.get("ema", {}))
    if decision.compiled and step < decision.begins:
        compiled = partial(Ahead, stage.compiled(decision.plain), folder / "compile.log")
        run.later = Later(decision.begins, partial(ready, compiled=True), compiled if seat.leads else None)
    keep_memory()
    return run


def tell_data(stage: Stage, data: Prepared, folder: Path | None, say: Say) -> None:
    """Say how many rows there are, and keep what a report shows of them."""
    entropy = None if stage.spec.asked else unigram_entropy(data.validation)
    of = "entropy of classes" if stage.spec.of_images else "unigram entropy"
    what = "" if entropy is None else f"; {of} {entropy:.3f} nats"
    rows = f"{len(data.train)} images" if stage.spec.of_images else f"{len(data.train)} rows"
    say(f"{stage.name}: {rows}, {len(data.validation)} held out{what}")
    if folder is not None:
        classes = {"classes": data.classes} if data.classes else {}
        (folder / FACTS).write_text(json.dumps({"unigram_entropy": entropy, **classes}) + "\n")


def keep_classes(build: Build, stage: Stage, names: Sequence[str], goes_on: bool) -> None:
    """Raises RunError if a class has another number than the one that the weights know it by: in the steps before, or
    in the stage that this one starts from. Classes that came behind them are put into the run's facts."""
    before = stage if goes_on else _parent(build, stage)
    while before is not None and "class" not in before.fields:
        before = _parent(build, before)
    if before is None or "class" not in stage.fields or not (file := stage_folder(build, before) / FACTS).is_file():
        return
    facts = json.loads(file.read_text())
    old, numbers = facts.get("classes", []), {name: i for i, name in enumerate(names)}
    for i, name in enumerate(old):
        if numbers.get(name, i) != i:
            of = "steps before" if goes_on else f"weights of '{before.name}'"
            hint = f"name others so that they sort behind '{old[-1]}', or begin anew in another build"
            raise RunError(f"'{stage.name}': class '{name}' is number {numbers[name]} now and {i} in the {of}; {hint}")
    if goes_on and names and (known := [*names, *old[len(names) :]]) != old:
        new = file.with_suffix(".tmp")
        new.write_text(json.dumps({**facts, "classes": known}) + "\n")
        new.rename(file)


def _parent(build: Build, stage: Stage) -> Stage | None:
    return build.stages[stage.spec.from_] if stage.spec.from_ is not None else None


def updater(stage: Stage, own: dict[str, Tensor], seat: Seat) -> Updater:
    """The stage's optimizer over this rank's parts of what is trained."""
    on_host = stage.plan["offload"]["optimizer"]
    return Updater(stage.spec.optimizer, own, on_host, stage.matrices(), seat.sharding, stage.compute)


def _others(stage: Stage, folder: Path) -> list[Path]:
    """Runs of the same stage that have steps, of other settings; the newest last."""
    steps = folder.parent.glob(f"{escape(stage.name)}-{'[0-9a-f]' * DIGITS}/checkpoints/step_*")
    return sorted({s.parents[1] for s in steps} - {folder}, key=lambda d: d.stat().st_mtime)


def slow_warmup(stage: Stage) -> str:
    """A word on a warmup that takes longer than the stage."""
    steps = stage.spec.steps()
    warmup, _ = stage.spec.schedule.lengths(steps)
    why = f"warmup takes {warmup} steps, and the run has {steps}: it never reaches its learning rate"
    return f"{stage.name}: {why}" if warmup > steps else ""


def check_inputs(stage: Stage) -> None:
    """Raises RunError for an input of the model that the stage's data do not have, or have in other dims."""
    if stage.spec.of_images:
        return  # it was not built
    given = fields_given(stage.spec)
    if strange := sorted(stage.fields - given):
        has = ", ".join(sorted(given))
        raise RunError(f"'{stage.name}': its data have no field for the model's input '{strange[0]}' (they have {has})")
    for name in sorted(stage.fields - {REFERENCE}):
        dims, text = ("B",) if name == "key" else ("B", "S"), str(stage.facts["inputs"][name])
        if len(text.partition("[")[2].split()) != len(dims):
            raise RunError(f"'{stage.name}': its data have '{name}' as int[{' '.join(dims)}], the model has {text}")


def look_at_data(build: Build, stage: Stage, base: Path, documents: bool = True) -> None:
    """See that a stage that has not run finds its data: what a later one lacks is told before the first one trains."""
    if (stage_folder(build, stage) / "done.json").is_file():
        return
    if stage.spec.has_chats:
        check_template(stage.spec.template)
    if stage.spec.of_images and documents:
        for album in albums(stage.spec, base, cache_of(build, stage)):
            next(album.found(), None)
    for source in corpora(stage.spec, base) if documents and not stage.spec.of_images else []:
        document = next(iter(source), None)
        if document is not None and stage.spec.kind == "sft" and not document.messages:
            raise RunError(f"'{stage.name}': {CHATS}")
        if document is not None and stage.spec.kind == "preference" and not document.rejected:
            raise RunError(f"'{stage.name}': {PAIRS}")
    file = stage.spec.tokenizer.file if stage.spec.tokenizer else None
    if file and not (base / file).is_file():
        raise RunError(f"'{stage.name}': there is no {base / file}")
    started = any((stage_folder(build, stage) / "checkpoints").glob("step_*"))
    if stage.spec.weights and not started:
        check_origin(build, stage, stage.spec.weights, base)


def read_data(
    build: Build, stage: Stage, folder: Path, base: Path, touch: Callable[[], None] = lambda: None
) -> tuple[Tokenizer | None, Prepared]:
    """The stage's tokenizer and rows; both are kept on the disk, where other ranks and later runs find them. `touch`
    says that this rank is alive, while it looks at pictures."""
    cache = cache_of(build, stage)
    if stage.spec.of_images:
        pictures = albums(stage.spec, base, cache, touch)
        taken = Taken(stage.facts["shapes"], stage.compute, stage.facts["classes"])
        reads = taken.has(*CAPTION)
        words = fitting_tokenizer(build, stage, folder, base, pictures) if reads else None
        return words, prepare_pictures(stage.spec, pictures, taken, words)
    sources = corpora(stage.spec, base)
    tokenizer = fitting_tokenizer(build, stage, folder, base, sources)
    return tokenizer, prepare(stage.spec, sources, tokenizer, cache)


def cache_of(build: Build, stage: Stage) -> Path:
    """Where tokens, and indices of pictures, are kept beside the build."""
    return build.path.parent / f"{build.path.name}.{'images' if stage.spec.of_images else 'tokens'}"


def fitting_tokenizer(build: Build, stage: Stage, folder: Path, base: Path, sources: Sequence[Texts]) -> Tokenizer:
    """The stage's tokenizer; raises RunError if it has more tokens than the model."""
    tokenizer = find_tokenizer(build, stage, folder, base, sources)
    count, room = tokenizers.rows_needed(tokenizer), stage.facts.get("vocabulary")
    if room and count > room:
        raise RunError(f"the tokenizer has tokens to number {count - 1}, the model takes {room}")
    return tokenizer


def resume(stage: Stage, folder: Path, say: Say, seat: Seat) -> checkpoint.Loaded | None:
    """The newest good checkpoint of the stage, if any; says which were not good, and puts these aside."""
    root = folder / "checkpoints"
    loaded = checkpoint.load_newest(root, stage.hash, seat.sharding, seat.team)
    if loaded is None:
        return None
    fit(stage, loaded.tensors["weights"], seat)
    for name, why in loaded.skipped.items():
        say(f"{stage.name}: the checkpoint {name} is not good ({why}); it is now {checkpoint.BAD}{name}")
    if loaded.skipped and seat.leads:
        checkpoint.set_aside(root, loaded.skipped)
    say(f"{stage.name}: goes on from step {loaded.step}")
    now = {"threads": torch.get_num_threads(), "torch": torch.__version__, "mesh": str(seat.sharding.mesh),
           "device": seat.device.type, "microbatch": stage.spec.batch.size}  # fmt: skip
    for name, value in now.items():
        if loaded.facts.get(name, value) != value:
            say(f"{stage.name}: saved with {name} {loaded.facts[name]}, now {value}: the last bits may differ")
    return loaded


def fit(stage: Stage, weights: dict[str, Tensor], seat: Seat) -> None:
    """Raises RunError if the weights are not those that the stage's graphs take."""
    for p in stage.params:
        path = p["path"]
        if not seat.sharding.holds(path):
            continue
        if path not in weights:
            raise RunError(f"the checkpoint has no parameter '{path}'")
        shape = list(seat.sharding.shape(path, weights[path].shape))
        if shape != p["shape"]:
            raise RunError(f"'{path}' is {shape} in the checkpoint, {p['shape']} here")


def find_tokenizer(build: Build, stage: Stage, folder: Path, base: Path, sources: Sequence[Texts]) -> Tokenizer:
    """The stage's own tokenizer (trained once and kept), or its parent's; with the special tokens of the objective.

    One that was trained on other documents, or read from a file that is now another, goes, unless steps were made with
    it."""
    kept, made_of, spec = folder / "tokenizer.json", folder / "tokenizer.sources", stage.spec.tokenizer
    if kept.is_file() and any((folder / "checkpoints").glob("step_*")):
        return tokenizers.load(kept)
    file = _tokenizer_file(build, stage, base)
    documents = _sha256(file) if file else "\n".join(source.digest() for source in sources)
    if kept.is_file() and made_of.is_file() and made_of.read_text(encoding="utf-8") == documents:
        return tokenizers.load(kept)
    if file:
        found = tokenizers.load(file)
    else:
        assert spec is not None
        found = tokenizers.train(first_texts(sources, spec.documents), spec.vocab, tokenizers.needed(stage.spec))
    tokenizers.complete(found, tokenizers.needed(stage.spec))
    temporary = kept.with_suffix(".tmp")
    found.save(str(temporary))
    temporary.rename(kept)
    made_of.write_text(documents, encoding="utf-8")
    return found


def _tokenizer_file(build: Build, stage: Stage, base: Path) -> Path | None:
    """Where a tokenizer is read from that the stage does not train."""
    spec, parent = stage.spec.tokenizer, stage.spec.from_
    if spec is not None:
        return base / spec.file if spec.file else None
    assert parent is not None
    before = build.stages[parent]
    while before.spec.of_images and not before.fields & {*CAPTION} and before.spec.from_:
        before = build.stages[before.spec.from_]  # a stage that reads no text keeps no tokenizer
    file = stage_folder(build, before) / "tokenizer.json"
    if not file.is_file():
        raise RunError(NOT_RUN.format(stage.name, parent))
    return file


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as e:
        raise RunError(f"{file} is not a tokenizer: {e.strerror}") from None


def first_weights(build: Build, stage: Stage, folder: Path, base: Path, seat: Seat) -> dict[str, Tensor]:
    """This rank's parts of what the stage starts from: another stage, a published checkpoint, or its first values.

    Of a published checkpoint the run keeps the config, and which one it was."""
    start = stage.spec.weights
    if stage.spec.from_ is not None:
        return parent_weights(build, stage, build.stages[stage.spec.from_], seat)
    if start is None:
        return first_values(stage, seat)

    def read() -> dict[str, Tensor]:
        found = origin(build, stage, start, base)
        if seat.leads:
            (folder / ORIGIN).write_text(json.dumps(found.facts()) + "\n")
            (folder / CONFIG).write_bytes((found.path / CONFIG).read_bytes())
        return origin_weights(stage, found, seat)

    return checkpoint.agreed(seat.team, folder, read)


def reference_weights(
    build: Build, stage: Stage, folder: Path, base: Path, seat: Seat, first: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """This rank's parts of the weights that a policy is compared with: those of a stage that is named, or what the
    policy starts from (`first`, before it has made a step)."""
    named = stage.spec.preference.reference
    if named is not None:
        return parent_weights(build, stage, build.stages[named], seat)
    return first_weights(build, stage, folder, base, seat) if first is None else first


def reference_mark(build: Build, stage: Stage, base: Path) -> str:
    """Which weights `reference_weights` reads: the newest checkpoint of a stage, or the files of a published one."""
    if parent := stage.spec.preference.reference or stage.spec.from_:
        found = checkpoint.steps(stage_folder(build, build.stages[parent]) / "checkpoints")
        commits = [path / checkpoint.COMMIT for _, path in found if (path / checkpoint.COMMIT).is_file()]
        return commits[-1].read_text() if commits else ""
    return look_of(base / stage.spec.weights.path) if stage.spec.weights else ""


def parent_weights(build: Build, stage: Stage, parent: Stage, seat: Seat) -> dict[str, Tensor]:
    """This rank's parts of the weights of another stage, such as the one that this one starts from."""
    root, only = stage_folder(build, parent) / "checkpoints", ("weights", "ema")
    loaded = checkpoint.load_newest(root, parent.hash, seat.sharding, seat.team, only)
    if loaded is None:
        raise RunError(NOT_RUN.format(stage.name, parent.name))
    gone = [a for a in parent.adapters if a.a not in stage.shapes()]
    weights = merged(loaded.best, gone, parent.shapes(), seat.sharding)
    wanted = [p["path"] for p in stage.params if seat.sharding.holds(p["path"])]
    adapters = factors_of(stage.adapters) - weights.keys()
    missing = [path for path in wanted if path not in weights and path not in adapters]
    if missing:
        raise RunError(f"'{parent.name}' has no parameter '{missing[0]}', which '{stage.name}' needs")
    found = {p: weights[p].to(seat.device, stage.dtype(p)) for p in wanted if p in weights}
    return found | first_values(stage, seat, only=adapters)
