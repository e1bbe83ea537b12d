"""Samples of pictures as the fields that a model takes, and from a stage's sources to all of them.

What is random in a sample is a function of the stage's seed and the sample's number: how its picture is cut, then which
noise it gets. A picture is read and decoded when its sample is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from specc.compiler.ops.loss import IGNORE
from specc.compiler.pictures import LIKE_IMAGES, image_size
from specc.runtime.data.batches import Mixture, joined
from specc.runtime.data.images.decode import Unreadable, picture
from specc.runtime.data.images.index import BEGIN, CLASS, Album
from specc.runtime.data.images.noise import noised
from specc.runtime.data.images.pictures import THREADS, Pictures
from specc.runtime.data.noise import Ints, generator
from specc.runtime.data.objectives import Rows
from specc.runtime.data.pack import Fields
from specc.runtime.data.prepare import Prepared
from specc.runtime.data.tokenizer import end_id, literal, padding
from specc.runtime.errors import RunError
from specc.spec.image import Denoising
from specc.spec.stage import CAPTION, StageSpec

CUT, NOISE = 0, 1  # parts of a sample's random numbers
Sample = dict[str, NDArray[np.float32] | Ints]


@dataclass(frozen=True)
class Taken:
    """What a stage's model takes: shapes of its inputs in a microbatch, the format of floats, how many classes a table
    or a loss of it has."""

    shapes: Mapping[str, Sequence[int]]
    compute: torch.dtype
    classes: Mapping[str, int]

    def has(self, *names: str) -> bool:
        return any(name in self.shapes for name in names)


def albums(
    stage: StageSpec, base: Path, cache: Path, touch: Callable[[], None] = lambda: None
) -> list[Pictures]:  # fmt: skip
    """The stage's sources, and those for validation alone; relative paths start at `base`."""
    skips, limit = stage.pictures.unreadable == "skip", stage.data.limit
    return [Pictures(source, base, share, cache, limit, skips, touch) for source, share in stage.data.shares]


def prepare_pictures(
    stage: StageSpec, sources: Sequence[Pictures], taken: Taken, tokenizer: Tokenizer | None
) -> Prepared:  # fmt: skip
    """Rows of all sources; validation pictures are held out by their bytes."""
    names = class_names(sources)
    train: list[tuple[Rows, float]] = []
    held: list[tuple[Rows, float]] = []
    notes: list[str] = []
    for source in sources:
        album, weight = source.album(), source.source.weight
        check(stage, source, taken, names)
        is_held, maker = album.held(source.share), Maker(stage, album, taken, names, tokenizer)
        made, kept = (maker.rows(np.flatnonzero(is_held == h), s) for s, h in (("train", False), ("validation", True)))
        if source.share < 1 and not len(made):
            raise RunError(f"all {len(album)} pictures of {source.name} are held out, and none is left to train on")
        train += [(made, weight)] if source.share < 1 else []
        held += [(kept, weight)] if len(kept) else []
        if n := len(album.unreadable):
            notes.append(f"{n} files of {source.name} are no pictures and are left out, such as {album.unreadable[0]}")
    digests = [source.digest() for source in sources]
    known = {d: s.name for d, s in zip(digests, sources, strict=True) if s.share < 1}
    if both := [known[d] for d, s in zip(digests, sources, strict=True) if s.share >= 1 and d in known]:
        raise RunError(f"{both[0]} is trained on, and stands in data.held_out")
    if not held:
        n, share = sum(len(s.album()) for s in sources), stage.data.validation
        raise RunError(f"none of the {n} pictures was held out (data.validation: {share:g}); set a larger share")
    rows, validation = tuple(r for r, _ in train), joined([r for r, _ in held], [w for _, w in held])
    documents = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return Prepared(Mixture(rows, tuple(w for _, w in train)), validation, tuple(notes), documents, names)


def class_names(sources: Sequence[Pictures]) -> tuple[str, ...]:
    """The names of all sources' classes in order: a class is its place among them. None where classes are numbers."""
    named = {s.name: bool(s.album().names) for s in sources if (s.album().table[:, CLASS] >= 0).any()}
    if len(set(named.values())) > 1:
        one, other = (next(n for n, is_named in named.items() if is_named == kind) for kind in (True, False))
        raise RunError(f"the classes of {one} are names, and those of {other} are numbers")
    return tuple(sorted({name for s in sources for name in s.album().names}))


def check(stage: StageSpec, source: Pictures, taken: Taken, names: Sequence[str]) -> None:
    """Raises RunError if the pictures lack what the model takes, or have more classes than it."""
    album = source.album()
    if taken.has("class"):
        labels = numbered(album, names)
        if missing := int((labels < 0).sum()):
            how = "folders of a class each, rows with 'label' (or what the source's 'label' says), or .cls in a tar"
            raise RunError(f"{missing} of the {len(album)} pictures of {source.name} have no class: {how}")
        room = min(taken.classes.values(), default=1 << 31)
        if drops(stage):
            room = min(room, taken.classes["table"] - 1)
        if (most := int(labels.max())) >= room:
            more = f" ('{names[most]}')" if names else ""
            rest = "; the last row of its table is for dropped ones" if drops(stage) else ""
            raise RunError(f"{source.name} has pictures of class {most}{more}, the model has {room} classes{rest}")
    if taken.has(*CAPTION) and (missing := int((album.table[:, BEGIN] < 0).sum())):
        how = "a .txt beside each, rows with 'text' (or what the source's 'field' says), or .txt in a tar"
        raise RunError(f"{missing} of the {len(album)} pictures of {source.name} have no caption: {how}")


def drops(stage: StageSpec) -> bool:
    """Whether some samples lose their class or caption."""
    return stage.denoising is not None and stage.denoising.drop > 0


def numbered(album: Album, names: Sequence[str]) -> Ints:
    """The classes [N] as numbers among the names of all sources; -1 for none."""
    labels = np.asarray(album.table[:, CLASS])
    if not album.names:
        return labels
    order = {name: i for i, name in enumerate(names)}
    places = np.asarray([order[name] for name in album.names])
    return np.where(labels < 0, -1, places[labels])


class Maker:
    """Makes samples of an album's pictures."""

    def __init__(
        self, stage: StageSpec, album: Album, taken: Taken, names: Sequence[str], tokenizer: Tokenizer | None
    ) -> None:  # fmt: skip
        self.stage, self.album, self.taken = stage, album, taken
        self.labels, self.tokenizer = numbered(album, names), literal(tokenizer) if tokenizer else None
        self.like = [n for n in LIKE_IMAGES[stage.objective] if n in taken.shapes]
        shape = taken.shapes[self.like[0]]
        self.size = image_size((shape[1], shape[2], shape[3]), stage)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="pictures")

    def rows(self, members: Ints, site: str) -> Rows:
        """Of these pictures; `site` tells the random numbers of training and validation apart."""

        def make(rows: Ints, samples: Ints) -> Fields:
            made = list(self.pool.map(partial(self.sample, site), members[rows].tolist(), samples.tolist()))
            return {name: np.stack([m[name] for m in made]) for name in made[0]}

        return Rows(len(members), make, answers=lambda rows: self.answers(members[rows]))

    def answers(self, members: Ints) -> Ints:
        """What of these pictures the model tells: their classes, or the tokens of their captions."""
        if self.taken.has("class") and self.stage.objective == "images":
            return self.labels[members]
        captions = [self.album.text(i) or "" for i in members] if self.taken.has("labels") else []
        return np.concatenate([np.zeros(0, dtype=np.int64), *(self.caption(text)["labels"] for text in captions)])

    def sample(self, site: str, i: int, number: int) -> Sample:
        """The fields of a picture in the sample of this number, as far as the model takes them."""
        cut, draw = (generator(self.stage.seed, site, number, part) for part in (CUT, NOISE))
        made: Sample = {}
        try:
            x = picture(self.album.read(i), self.stage.pictures, self.size, cut if site == "train" else None)
        except Unreadable as e:
            raise RunError(f"{self.album.where(i)} cannot be read: {e}") from None
        made["image"] = x
        denoising = (self.stage.denoising or Denoising()) if self.stage.objective == "denoising" else None
        is_dropped = denoising is not None and draw.random() < denoising.drop
        if denoising:
            noise = draw.standard_normal(x.shape, dtype=np.float32)
            made |= {"noise": noise, **noised(x, noise, denoising, draw, self.taken.compute)}
        elif self.taken.has("noise"):
            made["noise"] = draw.standard_normal(tuple(self.taken.shapes["noise"])[1:], dtype=np.float32)
        if self.taken.has("class"):
            label = self.taken.classes["table"] - 1 if is_dropped else int(self.labels[i])
            made["class"] = np.asarray(label, dtype=np.int64)
        if self.taken.has(*CAPTION):
            made |= self.caption("" if is_dropped else self.album.text(i) or "")
        return {name: value for name, value in made.items() if name in self.taken.shapes}

    def caption(self, text: str) -> dict[str, Ints]:
        """Its tokens as the tokenizer puts them, an end token, and padding to the rows' length, where `doc` is -1."""
        assert self.tokenizer is not None
        n, end = self.stage.data.seq_len, end_id(self.tokenizer)
        ids = self.tokenizer.encode(text, add_special_tokens=True).ids
        ids = [*(ids[:-1] if ids[-1:] == [end] else ids)[: n - 1], end]
        tokens, labels, doc = np.full(n, padding(self.tokenizer)), np.full(n, IGNORE), np.full(n, -1)
        tokens[: len(ids)], labels[: len(ids) - 1], doc[: len(ids)] = ids, ids[1:], 0
        pos = np.where(doc < 0, np.arange(n) - len(ids), np.arange(n))
        return {"tokens": tokens, "labels": labels, "doc": doc, "pos": pos}
