"""What the reference of a preference stage says of the run's pairs: computed once, before the first step, and kept.

The stage's own graphs compute it on the stage's own mesh, of the rows that the run will see, in the microbatches in
which it first sees them: a policy that is its reference then says the same to the last bit."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from specc.runtime.built import Stage
from specc.runtime.data.batches import Batch, batch, sampled
from specc.runtime.data.noise import Ints
from specc.runtime.data.objectives import Rows
from specc.runtime.data.pack import Fields
from specc.runtime.data.prepare import Prepared
from specc.runtime.executor import Executor
from specc.runtime.seat import Seat
from specc.runtime.team import say as say_all
from specc.runtime.team import wait
from specc.runtime.tensorfile import NotATensorFile, read_tensors, write_tensors
from specc.spec.objective import LOG_PROBS, REFERENCE

FILE, MADE_OF, READ = "reference.safetensors", "made_of", "read"
SAVE_EVERY, TELL_EVERY = 300.0, 60.0  # seconds, of what is known so far
VALIDATION = "validation"
Table = NDArray[np.float64]  # [rows answers]; NaN where nothing is known
Place = tuple[str, int]  # a table and a row of it
Say = Callable[[str], None]


@dataclass(frozen=True)
class Look:
    """A microbatch, made when it is wanted, and where what is said of its rows goes."""

    make: Callable[[], Batch]
    at: list[Place]


@dataclass
class Reference:
    """A model that a stage's policy is compared with. `weights` are asked for if something is not known yet; `of` says
    what makes what it says, beside the documents, and `mark` which weights these are. Once steps were made (`is_begun`)
    what is known stays, whatever became of the weights since."""

    stage: Stage
    folder: Path
    executor: Executor
    weights: Callable[[], Mapping[str, Tensor]]
    mark: Callable[[], str]
    is_begun: bool
    of: str
    say: Say
    seat: Seat

    def beside(self, data: Prepared) -> Prepared:
        """The stage's rows with what the reference says of them. All ranks call it."""
        asked = self.stage.spec.asked
        assert asked is not None
        rows = {_train(i): len(part) for i, part in enumerate(data.train.parts)} | {VALIDATION: len(data.validation)}
        text = json.dumps([self.of, data.documents, asked.pairs, rows])
        key = hashlib.sha256(text.encode()).digest()
        read = None if self.is_begun else self.read()
        tables = known(self.folder, key, read) or {n: np.full((m, 2 * asked.pairs), math.nan) for n, m in rows.items()}
        wait(self.seat.team)  # all have read the file
        blank = with_tables(data, {n: np.zeros_like(t) for n, t in tables.items()})
        if left := list(unknown(self.stage, blank, tables)):
            self.say(f"{self.stage.name}: {len(left)} microbatches through the reference")
            self.compute(left, tables, key, read or self.read())
            tables = known(self.folder, key) or tables
        return with_tables(data, tables)

    def read(self) -> bytes:
        """The mark in short, as the first rank sees it."""
        return hashlib.sha256(str(say_all(self.seat.team, self.mark())[0]).encode()).digest()

    def compute(self, left: list[Look], tables: Mapping[str, Table], key: bytes, read: bytes) -> None:
        """Fill the tables on the ranks that make the loss; one of them writes the file, for all."""
        weights, saved, told = self.weights(), time.monotonic(), time.monotonic()
        writes = self.seat.team.rank == self.seat.makes_loss
        for i, look in enumerate(left, 1):
            said = self.executor.forward(weights, self.seat.cut(look.make())).get(LOG_PROBS)
            if said is not None:
                found = self.seat.whole_output(said, self.stage.facts.get("output_layouts", {}).get(LOG_PROBS, []))
                for (name, row), values in zip(look.at, found.double().cpu().numpy(), strict=True):
                    if np.isnan(tables[name][row]).any():
                        tables[name][row] = values
            self.seat.pulse.touch()
            now = time.monotonic()
            if writes and now - saved > SAVE_EVERY:
                save(self.folder, tables, key, read)
                saved = now
            if now - told > TELL_EVERY:
                self.say(f"{self.stage.name}: {i} of {len(left)} microbatches through the reference")
                told = now
        if writes:
            save(self.folder, tables, key, read)
        wait(self.seat.team)


def known(folder: Path, key: bytes, read: bytes | None = None) -> dict[str, Table] | None:
    """The tables of a run, if they were made of the same; and by the same weights, if it is said which were `read`."""
    try:
        found = read_tensors(folder / FILE)
    except (OSError, NotATensorFile):
        return None
    made_of, by = (found.pop(n, torch.zeros(0, dtype=torch.uint8)).numpy().tobytes() for n in (MADE_OF, READ))
    return {n: t.numpy() for n, t in found.items()} if made_of == key and read in (None, by) else None


def save(folder: Path, tables: Mapping[str, Table], key: bytes, read: bytes) -> None:
    temporary = (folder / FILE).with_suffix(".tmp")
    tensors = {n: torch.from_numpy(t) for n, t in tables.items()}
    marks = {n: torch.frombuffer(bytearray(b), dtype=torch.uint8) for n, b in ((MADE_OF, key), (READ, read))}
    write_tensors(temporary, {**tensors, **marks})
    temporary.rename(folder / FILE)


def unknown(stage: Stage, data: Prepared, tables: Mapping[str, Table]) -> Iterator[Look]:
    """The microbatches with a row that no table has and none before has, of training and then of validation."""
    seen: dict[str, list[bool]] = {n: [not np.isnan(row).any() for row in t] for n, t in tables.items()}

    def is_new(at: list[Place]) -> bool:
        fresh = [(name, row) for name, row in at if not seen[name][row]]
        for name, row in fresh:
            seen[name][row] = True
        return bool(fresh)

    spec, fields = stage.spec, stage.fields
    n, size = spec.batch.sequences, spec.batch.size
    for begin in range(0, spec.steps() * n, size):
        samples = np.arange(begin, begin + size)
        sources, rows = data.train.find(samples, spec.seed)
        at = [(_train(s), int(row)) for s, row in zip(sources, rows, strict=True)]
        if is_new(at):
            yield Look(partial(sampled, data.train, samples, spec.seed, fields), at)
    held = min(spec.eval.batches * n, len(data.validation))
    for begin in range(0, held, size):
        chosen = [j % held for j in range(begin, begin + size)]
        at = [(VALIDATION, row) for row in chosen]
        if is_new(at):
            yield Look(partial(batch, data.validation, chosen, fields), at)


def with_tables(data: Prepared, tables: Mapping[str, Table]) -> Prepared:
    """The rows with the bits of the numbers beside them, as graphs take them."""
    parts = tuple(_with_table(part, tables[_train(i)]) for i, part in enumerate(data.train.parts))
    validation = _with_table(data.validation, tables[VALIDATION])
    return replace(data, train=replace(data.train, parts=parts), validation=validation)


def _with_table(rows: Rows, table: Table) -> Rows:
    bits = table.view(np.int64)

    def make(chosen: Ints, samples: Ints) -> Fields:
        return {**rows.make(chosen, samples), REFERENCE: bits[chosen]}

    return replace(rows, make=make)


def _train(source: int) -> str:
    return f"train.{source}"
