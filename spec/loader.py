"""A spec file as typed data: its YAML with what it uses, validated by pydantic; every mistake at its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from specc.spec.errors import MAX_MISTAKES, Diagnostic, Mark, SpecError, did_you_mean, in_order
from specc.spec.optimizer import KIND
from specc.spec.repair import without
from specc.spec.use import Sources, put, read_file, shown
from specc.spec.yaml import Document, KeyPath, load_text

__all__ = ["Document", "KeyPath", "attempt", "load_document", "load_text", "put", "validate"]
MAX_REPAIRS = 3
Model = TypeVar("Model", bound=BaseModel)


def load_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """A spec file with what it uses and sets, and the overrides `a.b=value` put in."""
    document = load_text(read_file(path), str(path))
    root = path.resolve().parent
    document = Sources(root).resolve(document, root, (path.name,))
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq:
            raise SpecError(Diagnostic("S006", f"an override reads PATH=VALUE, got '{shown(text)}'"))
        put(document, key, load_text(value or "null", "--set").data, Mark("--set", 1, 1, len(text), text))
    return document


def validate(document: Document, model: type[Model]) -> Model:
    """The typed spec; raises all mistakes, each at its place."""
    found, mistakes = attempt(document, model)
    if mistakes or found is None:
        raise SpecError(*mistakes)
    return found


def attempt(document: Document, model: type[Model]) -> tuple[Model | None, list[Diagnostic]]:
    """The typed spec and its mistakes; with mistakes it is what is left without them, or None."""
    data, mistakes = document.data, None
    for _ in range(MAX_REPAIRS):
        try:
            return model.model_validate(data), mistakes or []
        except ValidationError as e:
            errors: list[dict[str, Any]] = [dict(err) for err in e.errors(include_url=False, include_input=False)]
        errors.sort(key=lambda err: err["type"] != "extra_forbidden")
        if mistakes is None:
            mistakes = in_order(_diagnostics(document, model, errors[:MAX_MISTAKES]))
        data = without(data, errors)
    return None, mistakes or []


def _diagnostics(document: Document, model: type[BaseModel], errors: Sequence[dict[str, Any]]) -> list[Diagnostic]:
    """One for each place: what a value may be of several kinds is said in one sentence."""
    found: list[Diagnostic] = []
    kinds: dict[KeyPath, list[str]] = {}
    for err in errors:
        loc = (*err["loc"], "kind") if err["type"] == KIND else tuple(err["loc"])
        if err["type"] in ("extra_forbidden", "missing"):
            found.append(_wrong_key(document, model, err["type"], loc))
            continue
        message = str(err["msg"]).removeprefix("Value error, ").removeprefix("Input ")
        message = "should be a mapping" if err["type"] == "model_type" else message
        kinds.setdefault(_real(document, loc), []).append(message)
    for at, messages in kinds.items():
        text = ", or ".join([messages[0], *(m.removeprefix("should be ") for m in messages[1:])])
        hint = _kind_hint(document, model, at) if messages == ["should be a mapping"] else ""
        found.append(Diagnostic("S103", f"{'.'.join(map(str, at)) or 'spec'}: {text}", document.mark(at), hint))
    return found


def _kind_hint(document: Document, model: type[BaseModel], at: KeyPath) -> str:
    """How a kind is said that stands alone in the place of its section."""
    value: Any = document.data
    for part in at:
        value = value[part]
    known = [k for m in _models(model, at) if "kind" in m.model_fields for k in _kinds(m)]
    return f"{{kind: {value}}}" if value in known else ""


def _wrong_key(document: Document, model: type[BaseModel], kind: str, loc: KeyPath) -> Diagnostic:
    mark, name = document.mark(_real(document, loc)), str(loc[-1])
    if kind == "missing":
        return Diagnostic("S107", f"the key '{name}' is missing", mark)
    return Diagnostic("S101", f"'{name}' is not a key here", mark, did_you_mean(name, _fields(model, loc[:-1])))


def _real(document: Document, loc: KeyPath) -> KeyPath:
    """The location without the tags that pydantic puts in for unions."""
    out: KeyPath = ()
    for part in loc:
        if (*out, part) in document.marks:
            out = (*out, part)
    return out


def _fields(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """Names of the fields of the part that a location leads to."""
    here = _models(model, loc)
    return [f.alias or n for n, f in here[0].model_fields.items()] if here else []


def _models(model: type[BaseModel], loc: KeyPath) -> list[type[BaseModel]]:
    """The classes of the part that a location leads to, as far as it can be followed."""
    here: list[type[BaseModel]] = [model]
    for part in loc:
        if len(here) > 1:  # the tag of one of several kinds
            here = [k for k in here if part in _kinds(k)]
        elif here and (info := here[0].model_fields.get(str(part))):  # others are keys of mappings, and places in lists
            here = [k for k in _parts(info.annotation) if issubclass(k, BaseModel)]
    return here


def _kinds(model: type[BaseModel]) -> tuple[object, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _parts(annotation: Any) -> Iterator[type]:
    """The classes in an annotation: of a list, a mapping, or of several kinds."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _parts(part)
