"""A spec file as typed data: its YAML with what it uses, validated by pydantic; every mistake at its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from specc.spec.errors import MAX_MISTAKES, Diagnostic, Mark, SpecError, did_you_mean, in_order
from specc.spec.use import Sources, put, read_file, shown
from specc.spec.yaml import Document, KeyPath, load_text

__all__ = ["Document", "KeyPath", "load_document", "load_text", "put", "validate"]
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


def validate(document: Document, model: type[Model], at: KeyPath = ()) -> Model:
    """The typed spec; raises all mistakes, each at its place."""
    node = document.data
    for key in at:
        node = node[key]
    try:
        return model.model_validate(node)
    except ValidationError as e:
        errors = sorted(e.errors(), key=lambda err: err["type"] != "extra_forbidden")
        found = [_diagnostic(document, model, at, dict(err)) for err in errors[:MAX_MISTAKES]]
    raise SpecError(*in_order(found))


def _diagnostic(document: Document, model: type[BaseModel], at: KeyPath, err: dict[str, Any]) -> Diagnostic:
    loc = tuple(p for p in err["loc"])
    mark = document.mark((*at, *_real(document, at, loc)))
    name = str(loc[-1]) if loc else ""
    if err["type"] == "extra_forbidden":
        return Diagnostic("S101", f"'{name}' is not a key here", mark, did_you_mean(name, _fields(model, loc[:-1])))
    if err["type"] == "missing":
        return Diagnostic("S107", f"the key '{name}' is missing", mark)
    message = str(err["msg"]).removeprefix("Value error, ")
    return Diagnostic("S103", f"{'.'.join(map(str, loc)) or 'spec'}: {message}", mark)


def _real(document: Document, at: KeyPath, loc: KeyPath) -> KeyPath:
    """The location without the tags that pydantic puts in for unions."""
    out: KeyPath = ()
    for part in loc:
        if (*at, *out, part) in document.marks:
            out = (*out, part)
    return out


def _fields(model: type[BaseModel], loc: KeyPath) -> list[str]:
    """Names of the fields of the part that a location leads to, as far as it can be followed."""
    here: Any = model
    for part in loc:
        if not (isinstance(here, type) and issubclass(here, BaseModel)):
            return []
        info = here.model_fields.get(str(part))
        kinds = [] if info is None else [info.annotation, *getattr(info.annotation, "__args__", ())]
        here = next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)
    if not (isinstance(here, type) and issubclass(here, BaseModel)):
        return []
    return [f.alias or n for n, f in here.model_fields.items()]
