"""YAML as plain data that knows where each value stands: YAML-1.2 scalars, no tags that run code, and limits.

The parser's events are read one by one, so that a limit stops a hostile file where it is passed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from specc.spec.errors import Diagnostic, Mark, SpecError

MAX_CHARACTERS, MAX_DEPTH, MAX_NODES, MAX_ALIASES, MAX_DIGITS = 1 << 18, 64, 20_000, 200, 18
KeyPath = tuple[str | int, ...]
INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
WORDS: Mapping[str, Any] = {
    "": None, "null": None, "~": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
}  # fmt: skip
TAG = "tag:yaml.org,2002:"
TAGS: Mapping[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,), "null": (type(None),),
    "map": (dict,), "seq": (list,),
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

    def part(self, at: KeyPath) -> Document:
        """A value of it as a document of its own."""
        data = self.data
        for key in at:
            data = data[key]
        return Document(data, {k[len(at) :]: m for k, m in self.marks.items() if k[: len(at)] == at})


def load_text(text: str, file: str) -> Document:
    """Parse YAML; every mistake is a SpecError with its place."""
    if len(text) > MAX_CHARACTERS:
        raise SpecError(Diagnostic("S005", f"a spec has at most {MAX_CHARACTERS} characters", Mark(file, 1, 1)))
    reader = _Reader(file, text.splitlines())
    try:
        document = reader.document(text)
    except yaml.MarkedYAMLError as e:
        at = e.problem_mark or e.context_mark
        place = reader.at(at.line, at.column) if at else Mark(file, 1, 1)
        raise SpecError(Diagnostic("S002", f"not YAML: {e.problem or e.context}", place)) from None
    except yaml.reader.ReaderError as e:
        line = text[: e.position].count("\n")
        column = e.position - text.rfind("\n", 0, e.position) - 1
        character: str | int = e.character  # a number, for all that types say
        number = character if isinstance(character, int) else ord(character)
        message = f"not YAML: the character U+{number:04X} has no place in a text"
        raise SpecError(Diagnostic("S002", message, Mark(file, line + 1, column + 1))) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError) as e:  # bugs of the parser
        raise SpecError(Diagnostic("S002", f"not YAML: {type(e).__name__}", reader.last)) from None
    return document


@dataclass
class _Anchor:
    """A complete value that aliases may name, where its places stand in the list of all, and its own path's length."""

    data: Any
    start: int
    end: int
    above: int


class _Reader:
    """Builds data from events."""

    def __init__(self, file: str, lines: list[str]) -> None:
        self.file, self.lines = file, lines
        self.count = self.aliases = 0
        self.anchors: dict[str, _Anchor | None] = {}  # None: not complete yet
        self.marks: list[tuple[KeyPath, Mark]] = []
        self.last = Mark(file, 1, 1)

    def at(self, line: int, column: int, length: int = 1) -> Mark:
        text = self.lines[line] if line < len(self.lines) else ""
        return Mark(self.file, line + 1, column + 1, length, text)

    def place(self, event: yaml.Event) -> Mark:
        start, end = event.start_mark, event.end_mark
        assert start is not None
        assert end is not None
        self.last = self.at(start.line, start.column, end.column - start.column if end.line == start.line else 1)
        return self.last

    def fail(self, code: str, message: str, event: yaml.Event) -> SpecError:
        return SpecError(Diagnostic(code, message, self.place(event)))

    def document(self, text: str) -> Document:
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        data: Any = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if self.marks:
                    raise self.fail("S002", "a file holds one document, here begins another", event)
                data = self.value(next(events), events, ())
        if not self.marks:
            raise SpecError(Diagnostic("S002", "the file is empty", Mark(self.file, 1, 1)))
        return Document(data, dict(self.marks))

    def value(self, event: yaml.Event, events: Iterator[yaml.Event], path: KeyPath) -> Any:
        """The value that begins with an event."""
        if len(path) > MAX_DEPTH:
            raise self.fail("S005", f"nested more than {MAX_DEPTH} deep", event)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, path)
        self.counted(1, event)
        anchor, start = getattr(event, "anchor", None), len(self.marks)
        if anchor is not None:
            self.anchors[anchor] = None
        self.marks.append((path, self.place(event)))
        if isinstance(event, yaml.MappingStartEvent):
            data: Any = self.mapping(events, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            data = self.sequence(events, path)
        else:
            assert isinstance(event, yaml.ScalarEvent)
            data = self.scalar(event)
        self.check_tag(event, data)
        if anchor is not None:
            self.anchors[anchor] = _Anchor(data, start, len(self.marks), len(path))
        return data

    def counted(self, n: int, event: yaml.Event) -> None:
        self.count += n
        if self.count > MAX_NODES:
            raise self.fail("S005", f"more than {MAX_NODES} values, aliases counted out", event)

    def alias(self, event: yaml.AliasEvent, path: KeyPath) -> Any:
        """A copy of what an anchor names."""
        self.aliases += 1
        if self.aliases > MAX_ALIASES:
            raise self.fail("S005", f"more than {MAX_ALIASES} aliases", event)
        if event.anchor not in self.anchors:
            raise self.fail("S002", f"not YAML: there is no anchor '&{event.anchor}' before this", event)
        found = self.anchors[event.anchor]
        if found is None:
            raise self.fail("S005", "an alias refers to what it stands in", event)
        self.counted(found.end - found.start, event)
        for at, mark in self.marks[found.start : found.end]:
            if len(path) + len(at) - found.above > MAX_DEPTH:
                raise self.fail("S005", f"nested more than {MAX_DEPTH} deep", event)
            self.marks.append((path + at[found.above :], mark))
        return _copy(found.data)

    def mapping(self, events: Iterator[yaml.Event], path: KeyPath) -> dict[str, Any]:
        out: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self.fail("S004", "a key is a plain text", event)
            key, mark = str(event.value), self.place(event)
            if key == "<<" and event.style is None:
                raise self.fail("S004", "merge keys are not read; say 'use:'", event)
            if key in out:
                raise self.fail("S003", f"the key '{key}' stands twice", event)
            out[key] = self.value(next(events), events, (*path, key))
            self.marks.append(((*path, key), mark))  # a value is found by its key
        return out

    def sequence(self, events: Iterator[yaml.Event], path: KeyPath) -> list[Any]:
        out: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            out.append(self.value(event, events, (*path, len(out))))
        return out

    def check_tag(self, event: yaml.Event, data: Any) -> None:
        tag = getattr(event, "tag", None)
        if tag is None or tag == "!":
            return
        kinds = TAGS.get(tag.removeprefix(TAG)) if tag.startswith(TAG) else None
        if kinds is None or type(data) not in kinds:
            raise self.fail("S004", f"the tag '{tag}' is not read", event)

    def scalar(self, event: yaml.ScalarEvent) -> Any:
        """Numbers, booleans and null as in YAML 1.2; a quoted text is a text."""
        text = str(event.value)
        if event.style is not None or event.tag in ("!", f"{TAG}str"):
            return text
        if text in WORDS:
            return WORDS[text]
        if INT.fullmatch(text):
            if len(text) > MAX_DIGITS + 1:
                raise self.fail("S004", f"a number has at most {MAX_DIGITS} digits", event)
            return int(text)
        if len(text) < 64 and FLOAT.fullmatch(text):
            number = float(text)
            if number in (float("inf"), float("-inf")):
                raise self.fail("S004", f"'{text}' is too large a number", event)
            return number
        if NOT_FINITE.fullmatch(text):
            raise self.fail("S004", f"'{text}' is not a finite number", event)
        return text


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {k: _copy(v) for k, v in data.items()}
    if isinstance(data, list):
        return [_copy(v) for v in data]
    return data
