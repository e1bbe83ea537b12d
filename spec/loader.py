"""Spec files as plain data that knows where each value stands: hardened YAML, `use:` and `set:`, located errors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from specc.spec.errors import Diagnostic, Mark, SpecError, did_you_mean

MAX_BYTES, MAX_DEPTH, MAX_NODES, MAX_DIGITS, MAX_SHOWN = 1 << 20, 64, 50_000, 18, 10
KeyPath = tuple[str | int, ...]
Model = TypeVar("Model", bound=BaseModel)
INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
WORDS: Mapping[str, Any] = {
    "": None, "null": None, "~": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip


@dataclass
class Document:
    """Data and the place of each of its values."""

    data: Any
    marks: dict[KeyPath, Mark] = field(default_factory=dict)

    def mark(self, path: KeyPath) -> Mark | None:
        """The place of a value, or of the nearest thing around it."""
        for n in range(len(path), -1, -1):
            if path[:n] in self.marks:
                return self.marks[path[:n]]
        return None


class _Reader:
    """Builds data from YAML nodes; collects marks."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self.file, self.lines, self.count = file, lines, 0
        self.marks: dict[KeyPath, Mark] = {}

    def place(self, node: yaml.Node) -> Mark:
        line, column = node.start_mark.line, node.start_mark.column
        text = self.lines[line] if line < len(self.lines) else ""
        same_line = node.end_mark.line == line
        return Mark(self.file, line + 1, column + 1, node.end_mark.column - column if same_line else 1, text)

    def fail(self, code: str, message: str, node: yaml.Node) -> SpecError:
        return SpecError(Diagnostic(code, message, self.place(node)))

    def read(self, node: yaml.Node, path: KeyPath, inside: tuple[int, ...]) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise self.fail("S005", f"more than {MAX_NODES} values, aliases counted out", node)
        if len(path) > MAX_DEPTH:
            raise self.fail("S005", f"nested more than {MAX_DEPTH} deep", node)
        if id(node) in inside:
            raise self.fail("S005", "an alias refers to what it stands in", node)
        self.marks.setdefault(path, self.place(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, (*inside, id(node)))
        if isinstance(node, yaml.SequenceNode):
            return [self.read(n, (*path, i), (*inside, id(node))) for i, n in enumerate(node.value)]
        return self.scalar(node)

    def mapping(self, node: yaml.MappingNode, path: KeyPath, inside: tuple[int, ...]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail("S004", "a key is a plain text", key_node)
            key = str(key_node.value)
            if key == "<<":
                raise self.fail("S004", "merge keys are not read; say 'use:'", key_node)
            if key in out:
                raise self.fail("S003", f"the key '{key}' stands twice", key_node)
            self.marks[(*path, key)] = self.place(key_node)
            out[key] = self.read(value_node, (*path, key), inside)
        return out

    def scalar(self, node: yaml.Node) -> Any:
        text = str(node.value)
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.startswith("tag:yaml.org,2002:python"):
            raise self.fail("S004", f"the tag '{node.tag}' is not read", node)
        if getattr(node, "style", None) is not None or node.tag == "tag:yaml.org,2002:binary":
            return text
        if text in WORDS:
            return WORDS[text]
        if INT.fullmatch(text):
            if len(text) > MAX_DIGITS + 1:
                raise self.fail("S004", f"a number has at most {MAX_DIGITS} digits", node)
            return int(text)
        if len(text) < 64 and FLOAT.fullmatch(text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                raise self.fail("S004", f"'{text}' is too large a number", node)
            return number
        if text.lower().lstrip("+-") in (".inf", ".nan"):
            raise self.fail("S004", f"'{text}' is not a finite number", node)
        return text


def load_text(text: str, file: str) -> Document:
    """Parse YAML; every mistake is a SpecError with its place."""
    if len(text) > MAX_BYTES:
        raise SpecError(Diagnostic("S005", f"a spec has at most {MAX_BYTES} characters", Mark(file, 1, 1)))
    lines = text.splitlines()
    reader = _Reader(file, lines)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as e:
        at = e.problem_mark or e.context_mark
        line, column = (at.line, at.column) if at else (0, 0)
        mark = Mark(file, line + 1, column + 1, 1, lines[line] if line < len(lines) else "")
        raise SpecError(Diagnostic("S002", f"not YAML: {e.problem or e.context}", mark)) from None
    except (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError, TypeError) as e:
        raise SpecError(Diagnostic("S002", f"not YAML: {type(e).__name__}", Mark(file, 1, 1))) from None
    if node is None:
        raise SpecError(Diagnostic("S002", "the file is empty", Mark(file, 1, 1)))
    return Document(reader.read(node, (), ()), reader.marks)


def read_file(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise SpecError(Diagnostic("S005", f"a spec has at most {MAX_BYTES} bytes", Mark(str(path), 1, 1)))
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "not UTF-8 text"
        raise SpecError(Diagnostic("S001", f"cannot read {path}: {reason}")) from None


def load_document(path: Path, overrides: Sequence[str] = ()) -> Document:
    """A spec file with what it uses and sets, and the overrides `a.b=value` put in."""
    root = path.resolve().parent
    document = _resolved(load_text(read_file(path), str(path)), path, root, ())
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq:
            raise SpecError(Diagnostic("S006", f"an override reads PATH=VALUE, got '{text}'"))
        put(document, key, load_text(value or "null", "--set").data, Mark("--set", 1, 1, len(text), text))
    return document


def _resolved(document: Document, path: Path, root: Path, chain: tuple[str, ...]) -> Document:
    """Replace a top-level `use:` by what it names, with the file's own keys merged over it, then `set:`."""
    data = document.data
    if not isinstance(data, dict) or ("use" not in data and "set" not in data):
        return document
    sets = data.pop("set", None) or {}
    if "use" in data:
        name = str(data.pop("use"))
        base = _used(name, document.mark(("use",)), path, root, chain)
        merged = Document(_merge(base, document, (), base.data, data))
        merged.marks = {**base.marks, **{k: v for k, v in document.marks.items() if k not in ((), ("use",))}}
        merged.marks[()] = document.marks[()]
        document = merged
    for key, value in sets.items():
        put(document, key, value, document.mark(("set", key)))
    return document


def _used(name: str, mark: Mark | None, path: Path, root: Path, chain: tuple[str, ...]) -> Document:
    if name in chain or len(chain) > 8:
        raise SpecError(Diagnostic("S008", f"'{name}' uses itself", mark))
    known = {p.name.removesuffix(".yaml"): p for p in files("specc.spec.models").iterdir() if p.name.endswith(".yaml")}
    short = name.removeprefix("models/")
    if short in known:
        text, file = known[short].read_text(encoding="utf-8"), f"specc:models/{short}.yaml"
        return _resolved(load_text(text, file), path, root, (*chain, name))
    target = (path.parent / name).resolve()
    if not target.is_relative_to(root):
        raise SpecError(Diagnostic("S007", f"'{name}' lies outside {root.name}/", mark))
    if not target.is_file():
        raise SpecError(Diagnostic("S001", f"there is no '{name}'", mark, did_you_mean(short, known)))
    return _resolved(load_text(read_file(target), str(target)), target, root, (*chain, name))


def _merge(base: Document, over: Document, at: KeyPath, below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        for key in [k for k in base.marks if k[: len(at)] == at and len(k) > len(at)]:
            del base.marks[key]
        return above
    out = dict(below)
    for key, value in above.items():
        out[key] = _merge(base, over, (*at, key), below[key], value) if key in below else value
    return out


def put(document: Document, dotted: str, value: Any, mark: Mark | None) -> None:
    """Set a value by its path; the part that holds it must exist."""
    words = dotted.split(".")
    node: Any = document.data
    for i, word in enumerate(words[:-1]):
        if isinstance(node, list) and word.isdigit() and int(word) < len(node):
            node = node[int(word)]
        elif isinstance(node, dict) and word in node:
            node = node[word]
        elif isinstance(node, dict) and i == len(words) - 2 and i > 0:
            node = node.setdefault(word, {})
        else:
            known = node if isinstance(node, dict) else ()
            raise SpecError(Diagnostic("S006", f"there is no '{word}' in '{dotted}'", mark, did_you_mean(word, known)))
    if isinstance(node, dict):
        node[words[-1]] = value
    elif isinstance(node, list) and words[-1].isdigit() and int(words[-1]) < len(node):
        node[int(words[-1])] = value
    else:
        raise SpecError(Diagnostic("S006", f"'{dotted}' cannot be set", mark))
    if mark:
        document.marks[tuple(int(w) if w.isdigit() else w for w in words)] = mark


def validate(document: Document, model: type[Model], at: KeyPath = ()) -> Model:
    """The typed spec; raises all mistakes, unknown names first, each at its place."""
    node = document.data
    for key in at:
        node = node[key]
    try:
        return model.model_validate(node)
    except ValidationError as e:
        errors = sorted(e.errors(), key=lambda err: err["type"] != "extra_forbidden")
        found = [_diagnostic(document, model, at, dict(err)) for err in errors]
    raise SpecError(*list(dict.fromkeys(found))[:MAX_SHOWN])


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
