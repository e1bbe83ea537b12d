"""Documents of a source: files, directories, or the Python standard library's own text (PSF licence)."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from specc.runtime.data.files import Row, find, read_rows, read_text, well_formed
from specc.runtime.errors import RunError
from specc.spec.data import Source

SKIPPED = {"test", "tests", "idlelib", "site-packages", "__pycache__", "lib2to3", "idle_test"}

CHATS = "an sft stage needs 'messages', a list of {role, content}, or 'prompt' and 'response'"
KEPT = 1 << 26  # characters of a source that are kept in memory


@dataclass(frozen=True)
class Document:
    """A text, or the messages of a conversation: (role, content) pairs."""

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()

    @property
    def content(self) -> str:
        """All of its text."""
        return self.text or "\n".join(content for _, content in self.messages)

    def digest(self) -> bytes:
        """SHA-256 of its content."""
        content = self.text or json.dumps(self.messages)
        return hashlib.sha256(content.encode("utf-8", "replace")).digest()

    def held_out(self, share: float) -> bool:
        """Whether it belongs to the validation set: a function of its content alone."""
        return int.from_bytes(self.digest()[:8], "big") < share * (1 << 64)


def documents(source: Source, base: Path, limit: int | None = None, are_chats: bool = False) -> Iterator[Document]:
    """The first documents of a source, in a fixed order; relative paths start at `base`.

    If they `are_chats`, rows of files without a conversation are refused."""
    return islice(_all(source, base, are_chats), limit)


def _all(source: Source, base: Path, are_chats: bool) -> Iterator[Document]:
    if source.corpus == "python-stdlib":
        yield from (Document(text) for text in stdlib_sources())
    elif source.corpus == "python-docstrings":
        yield from (d for text in stdlib_sources() for d in docstring_pairs(text))
    else:
        assert source.path is not None
        yield from from_files(source, base / source.path, are_chats)


@dataclass
class Corpus:
    """The documents of a source, of which a `share` is held out; read again for each pass, unless they are few."""

    source: Source
    base: Path
    share: float
    limit: int | None = None
    are_chats: bool = False
    kept: list[Document] | None = None
    known: str = ""  # its digest

    def __iter__(self) -> Iterator[Document]:
        if self.kept is not None:
            yield from self.kept
            return
        read: list[Document] = []
        size = 0
        for d in documents(self.source, self.base, self.limit, self.are_chats):
            size += len(d.content)
            if size < KEPT:
                read.append(d)
            yield d
        if size < KEPT:
            self.kept = read

    @property
    def name(self) -> str:
        return self.source.corpus or str(self.source.path)

    def part(self, held: bool) -> Iterator[Document]:
        """The documents that are held out, or the others."""
        return (d for d in self if d.held_out(self.share) == held)

    def digest(self) -> str:
        """SHA-256 over all documents; raises RunError if there are none."""
        if self.known:
            return self.known
        total, n = hashlib.sha256(), 0
        for n, d in enumerate(self, 1):  # noqa: B007
            total.update(d.digest())
        if not n:
            raise RunError(f"{self.source.corpus or self.base / self.name} has no documents")
        self.known = total.hexdigest()
        return self.known


def stdlib_sources() -> Iterator[str]:
    """The standard library's modules, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED & set(path.relative_to(root).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # a few modules are stored in other encodings


def docstring_pairs(text: str) -> Iterator[Document]:
    """Instructions from a module: a function's signature and docstring ask for its body."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2 or node.end_lineno is None:
            continue
        doc = ast.get_docstring(node)
        lines = text.splitlines()[node.body[1].lineno - 1 : node.end_lineno]
        if doc and 20 < len(doc) < 600 and 0 < len(lines) <= 20:
            ask = f"Write the function `{node.name}({ast.unparse(node.args)})`.\n{doc}"
            yield Document(messages=(("user", ask), ("assistant", "\n".join(lines))))


def from_files(source: Source, path: Path, are_chats: bool = False) -> Iterator[Document]:
    """Text files are a document each; the others have one a row."""
    files = find(path, source.format)
    if source.field != "text" and all(form == "text" for _, form in files):
        raise RunError(f"{path} is read as text, which has no field '{source.field}'; say its 'format'")
    for file, form in files:
        if form == "text":
            yield Document(read_text(file))
        else:
            field = None if are_chats else source.field
            yield from (_document(row, field, where) for where, row in read_rows(file, form))


def _document(row: Row, field: str | None, where: str) -> Document:
    """A conversation, or the text in `field`; without one the row is a conversation."""
    if row.get("messages") is not None:
        return Document(messages=_messages(row["messages"], where))
    if "prompt" in row and "response" in row:
        return Document(messages=(("user", _text(row, "prompt", where)), ("assistant", _text(row, "response", where))))
    if field is None:
        raise RunError(f"{where}: {CHATS} ({_fields(row)})")
    return Document(_text(row, field, where))


def _text(row: Row, field: str, where: str) -> str:
    if field not in row:
        raise RunError(f"{where}: there is no field '{field}' ({_fields(row)})")
    found = row[field]
    if not isinstance(found, str):
        raise RunError(f"{where}: the field '{field}' is not text but {type(found).__name__}")
    return well_formed(found)


def _fields(row: Row) -> str:
    return f"there is {', '.join(map(str, row)) or 'none'}"


def _messages(raw: object, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(raw, list) or not raw:
        raise RunError(f"{where}: 'messages' is a list of {{role, content}}")
    made: list[tuple[str, str]] = []
    for number, message in enumerate(raw):
        if not isinstance(message, dict):
            raise RunError(f"{where}: message {number} is not an object with role and content")
        at = f"{where}, message {number}"
        made.append((_text(message, "role", at), _text(message, "content", at)))
    return tuple(made)
