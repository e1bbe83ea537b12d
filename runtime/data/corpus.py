"""Documents of a source: files, directories, or the Python standard library's own text (PSF licence)."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from specc.runtime.data.files import Row, find, read_rows, read_text, well_formed
from specc.runtime.errors import RunError
from specc.spec.data import Source
from specc.spec.stage import Kind

SKIPPED = {"test", "tests", "idlelib", "site-packages", "__pycache__", "lib2to3", "idle_test"}

CHATS = "an sft stage needs 'messages', a list of {role, content}, or 'prompt' and 'response'"
PAIRS = "a preference stage needs 'chosen' and 'rejected': texts behind a 'prompt', or lists of {role, content}"
KEPT = 1 << 26  # characters of a source that are kept in memory


Messages = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Document:
    """A text, or the messages of a conversation: (role, content) pairs; beside one that is `rejected`, the better."""

    text: str = ""
    messages: Messages = ()
    rejected: Messages = ()

    @property
    def content(self) -> str:
        """All of its text."""
        return self.text or "\n".join(content for _, content in (*self.messages, *self.rejected))

    def digest(self) -> bytes:
        """SHA-256 of its content."""
        content = self.text or json.dumps([self.messages, self.rejected] if self.rejected else self.messages)
        return hashlib.sha256(content.encode("utf-8", "replace")).digest()

    def held_out(self, share: float) -> bool:
        """Whether it belongs to the validation set: a function of its content alone."""
        return int.from_bytes(self.digest()[:8], "big") < share * (1 << 64)


def documents(source: Source, base: Path, limit: int | None = None, kind: Kind = "pretrain") -> Iterator[Document]:
    """The first documents of a source, in a fixed order; relative paths start at `base`.

    Rows of files that have not what a stage of the kind needs, conversations or pairs of them, are refused."""
    return islice(_all(source, base, kind), limit)


def _all(source: Source, base: Path, kind: Kind) -> Iterator[Document]:
    if source.corpus == "python-stdlib":
        yield from (Document(text) for text in stdlib_sources())
    elif source.corpus == "python-docstrings":
        yield from (d for text in stdlib_sources() for d in docstring_pairs(text))
    elif source.corpus == "python-docstring-pairs":
        yield from (d for text in stdlib_sources() for d in docstring_choices(text))
    else:
        assert source.path is not None
        yield from from_files(source, base / source.path, kind)


@dataclass
class Corpus:
    """The documents of a source, of which a `share` is held out; read again for each pass, unless they are few."""

    source: Source
    base: Path
    share: float
    limit: int | None = None
    kind: Kind = "pretrain"
    kept: list[Document] | None = None
    known: str = ""  # its digest

    def __iter__(self) -> Iterator[Document]:
        if self.kept is not None:
            yield from self.kept
            return
        read: list[Document] = []
        size = 0
        for d in documents(self.source, self.base, self.limit, self.kind):
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


def docstring_choices(text: str) -> Iterator[Document]:
    """The instructions from a module, each with its own body preferred to that of the next function."""
    found = list(docstring_pairs(text))
    for d, other in zip(found, [*found[1:], *found[:1]], strict=True):
        if d.messages[-1] != other.messages[-1]:
            yield Document(messages=d.messages, rejected=(*d.messages[:-1], other.messages[-1]))


def from_files(source: Source, path: Path, kind: Kind = "pretrain") -> Iterator[Document]:
    """Text files are a document each; the others have one a row."""
    files = find(path, source.format)
    if source.field != "text" and all(form == "text" for _, form in files):
        raise RunError(f"{path} is read as text, which has no field '{source.field}'; say its 'format'")
    for file, form in files:
        if form == "text":
            yield Document(read_text(file))
        else:
            field = source.field if kind == "pretrain" else None
            read = _pair if kind == "preference" else partial(_document, field=field)
            yield from (read(row, where=where) for where, row in read_rows(file, form))


def _document(row: Row, field: str | None, where: str) -> Document:
    """A conversation, or the text in `field`; without one the row is a conversation."""
    if row.get("messages") is not None:
        return Document(messages=_messages(row, "messages", where))
    if "prompt" in row and "response" in row:
        return Document(messages=(("user", _text(row, "prompt", where)), ("assistant", _text(row, "response", where))))
    if field is None:
        raise RunError(f"{where}: {CHATS} ({_fields(row)})")
    return Document(_text(row, field, where))


def _pair(row: Row, where: str) -> Document:
    """Two conversations, of which the first is preferred."""
    if row.get("chosen") is None or row.get("rejected") is None:
        raise RunError(f"{where}: {PAIRS} ({_fields(row)})")
    return Document(messages=_side(row, "chosen", where), rejected=_side(row, "rejected", where))


def _side(row: Row, field: str, where: str) -> Messages:
    """A conversation: the prompt and what `field` says behind it, or `field` alone if that begins with the prompt."""
    prompt = row.get("prompt")
    lead: Messages = (("user", _text(row, "prompt", where)),) if isinstance(prompt, str) else ()
    if isinstance(prompt, list):
        lead = _messages(row, "prompt", where)
    if isinstance(row[field], str):
        if not lead:
            raise RunError(f"{where}: '{field}' is a text, and there is no 'prompt' that it answers")
        return (*lead, ("assistant", _text(row, field, where)))
    said = _messages(row, field, where)
    has_lead = said[: len(lead)] == lead if isinstance(prompt, list) else said[0][0] != "assistant"
    return said if has_lead else (*lead, *said)


def _text(row: Row, field: str, where: str) -> str:
    if field not in row:
        raise RunError(f"{where}: there is no field '{field}' ({_fields(row)})")
    found = row[field]
    if not isinstance(found, str):
        raise RunError(f"{where}: the field '{field}' is not text but {type(found).__name__}")
    return well_formed(found)


def _fields(row: Row) -> str:
    return f"there is {', '.join(map(str, row)) or 'none'}"


def _messages(row: Row, field: str, where: str) -> Messages:
    raw = row[field]
    if not isinstance(raw, list) or not raw:
        raise RunError(f"{where}: '{field}' is a list of {{role, content}}")
    made: list[tuple[str, str]] = []
    for number, message in enumerate(raw):
        if not isinstance(message, dict):
            raise RunError(f"{where}: message {number} is not an object with role and content")
        at = f"{where}, message {number}"
        made.append((_text(message, "role", at), _text(message, "content", at)))
    return tuple(made)
