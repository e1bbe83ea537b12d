"""`use:` and `set:`: a part of a spec that starts from another file or from the library, and values put in by path.

They stand at the top of a file, in `model`, `plan`, a model, a block or a stage. A file named so lies in the folder
of the spec or below it, symbolic links followed. `file.yaml#model.blocks.layer` names a part of a file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from specc.spec.errors import Diagnostic, Mark, SpecError, did_you_mean
from specc.spec.yaml import MAX_CHARACTERS, MAX_NODES, Document, KeyPath, load_text

MAX_CHAIN, MAX_USES, MAX_SETS = 8, 64, 200
# Where `use:` and `set:` may stand; `*` is any key. Parts come before what holds them.
PLACES: tuple[KeyPath, ...] = (
    ("model", "blocks", "*"), ("models", "*", "blocks", "*"), ("model",), ("models", "*"), ("plan",), ("stages", "*"),
    (),
)  # fmt: skip
SECTIONS = ("model", "plan")  # that an override may make


class Sources:
    """The files that a spec is made of: inside one folder, and not too many."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uses = self.sets = self.values = 0

    def resolve(self, document: Document, folder: Path, chain: tuple[str, ...] = ()) -> Document:
        """The document with all that it uses and sets put in; `folder` is where its file lies."""
        for pattern in PLACES:
            for at in list(_matching(document.data, pattern, ())):
                if not _says(document.data, at):
                    continue
                if not at:
                    document = self._resolved(document, at, folder, chain)
                    continue
                part = self._resolved(document.part(at), at, folder, chain)
                _replace(document, at, part)
        return document

    def _resolved(self, part: Document, at: KeyPath, folder: Path, chain: tuple[str, ...]) -> Document:
        """A part without `use:` and `set:`: its own keys are merged over what it uses."""
        data: dict[str, Any] = part.data
        sets, mark = data.pop("set", None), part.mark(("use",))
        if not isinstance(sets, dict | None):
            raise SpecError(Diagnostic("S103", "'set' is a mapping of paths to values", part.mark(("set",))))
        whole = part
        if "use" in data:
            name = data.pop("use")
            if not isinstance(name, str) or not name:
                raise SpecError(Diagnostic("S103", "'use' names a file or something of the library", mark))
            whole = merged(self.used(name, at, mark, folder, chain), part)
        self.sets += len(sets or {})
        if self.sets > MAX_SETS:
            raise SpecError(Diagnostic("S005", f"more than {MAX_SETS} values are set", part.mark(("set",))))
        for key, value in (sets or {}).items():
            put(whole, key, value, part.mark(("set", key)))
        return whole

    def used(self, name: str, at: KeyPath, mark: Mark | None, folder: Path, chain: tuple[str, ...]) -> Document:
        """What a `use:` at a place names."""
        where, _, inner = name.partition("#")
        self.uses += 1
        if where in chain or len(chain) >= MAX_CHAIN:
            raise SpecError(Diagnostic("S008", f"'{where}' uses itself", mark))
        if self.uses > MAX_USES:
            raise SpecError(Diagnostic("S005", f"more than {MAX_USES} uses", mark))
        known = library("library" if "blocks" in at else "models")
        short = where.removeprefix("models/").removeprefix("library/")
        if short in known:
            kind = "library" if "blocks" in at else "models"
            document = load_text(known[short].read_text(encoding="utf-8"), f"specc:{kind}/{short}.yaml")
            here = folder
        else:
            path = self.inside(folder, where, mark, did_you_mean(short, known))
            document, here = load_text(read_file(path), str(path)), path.parent
        document = self.resolve(document, here, (*chain, where))
        self.values += len(document.marks)
        if self.values > MAX_NODES:
            raise SpecError(Diagnostic("S005", f"more than {MAX_NODES} values with what is used", mark))
        return _named_part(document, inner, name, at, mark)

    def inside(self, folder: Path, name: str, mark: Mark | None, hint: str) -> Path:
        """The file that a name stands for, which lies inside the root."""
        try:
            target = (folder / name).resolve()
            if not target.is_relative_to(self.root):
                raise SpecError(Diagnostic("S007", f"'{shown(name)}' lies outside {self.root.name}/", mark))
            if target.is_file():
                return target
        except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, a circle of links
            hint = ""
        raise SpecError(Diagnostic("S001", f"there is no '{shown(name)}'", mark, hint))


def library(kind: str) -> dict[str, Traversable]:
    """The YAML files that come with specc, by name."""
    found = files(f"specc.spec.{kind}").iterdir()
    return {p.name.removesuffix(".yaml"): p for p in found if p.name.endswith(".yaml")}


def read_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) and e.strerror else "not UTF-8 text"
        raise SpecError(Diagnostic("S001", f"cannot read {shown(str(path))}: {reason}")) from None
    return text


def shown(text: str) -> str:
    """A text of the user's in a message: printable, and not too long."""
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"


def _matching(data: Any, pattern: KeyPath, at: KeyPath) -> Iterator[KeyPath]:
    """Where in the data a pattern of keys leads to a mapping."""
    if not isinstance(data, dict):
        return
    if not pattern:
        yield at
        return
    for key in list(data) if pattern[0] == "*" else [pattern[0]]:
        if key in data:
            yield from _matching(data[key], pattern[1:], (*at, key))


def _says(data: Any, at: KeyPath) -> bool:
    """Whether `use:` or `set:` stands at a place."""
    for key in at:
        data = data[key]
    return "use" in data or "set" in data


def _replace(document: Document, at: KeyPath, part: Document) -> None:
    """Put a part back where it was taken from."""
    holder = document.data
    for key in at[:-1]:
        holder = holder[key]
    if holder[at[-1]] is part.data:
        return
    own = document.marks.get(at)
    holder[at[-1]] = part.data
    document.marks = {k: m for k, m in document.marks.items() if k[: len(at)] != at}
    document.marks |= {(*at, *k): m for k, m in part.marks.items()}
    if own:
        document.marks[at] = own


def _named_part(document: Document, inner: str, name: str, at: KeyPath, mark: Mark | None) -> Document:
    """The part after the `#`; a model that uses a whole spec takes its `model:`."""
    keys = inner.split(".") if inner else []
    if not keys and at and at[0] in ("model", "models") and "blocks" not in at and _holds(document.data, "model"):
        keys = ["model"]
    for i, key in enumerate(keys):
        if not _holds(document.part(tuple(keys[:i])).data, key):
            raise SpecError(Diagnostic("S006", f"there is no '{'.'.join(keys[: i + 1])}' in '{shown(name)}'", mark))
    part = document.part(tuple(keys))
    if not isinstance(part.data, dict):
        raise SpecError(Diagnostic("S006", f"'{shown(name)}' is not a mapping", mark))
    return part


def _holds(data: Any, key: str) -> bool:
    return isinstance(data, dict) and key in data


def merged(base: Document, over: Document) -> Document:
    """The base with the other's keys over it, mapping by mapping; lists and values are replaced whole."""
    replaced: set[KeyPath] = set()
    data = _merge(base.data, over.data, (), replaced)
    kept = {k: m for k, m in base.marks.items() if not any(k[:n] in replaced for n in range(len(k) + 1))}
    marks = kept | {k: m for k, m in over.marks.items() if k[:1] not in (("use",), ("set",))}
    return Document(data, marks)


def _merge(below: Any, above: Any, at: KeyPath, replaced: set[KeyPath]) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)):
        replaced.add(at)
        return above
    out = dict(below)
    for key, value in above.items():
        out[key] = _merge(below[key], value, (*at, key), replaced) if key in below else value
    return out


def put(document: Document, dotted: str, value: Any, mark: Mark | None) -> None:
    """Set a value by its path; what holds it must exist, or stand directly below what exists."""
    words = dotted.split(".")
    node: Any = document.data
    path: KeyPath = ()
    made: list[KeyPath] = []
    for i, word in enumerate(words[:-1]):
        key = _key(node, word)
        path = (*path, key)
        if isinstance(node, list) and isinstance(key, int):
            node = node[key]
        elif isinstance(node, dict) and word in node:
            node = node[word]
        elif isinstance(node, dict) and (i == len(words) - 2 if i else word in SECTIONS):
            node[word] = node = {}
            made.append(path)
        else:
            known = node if isinstance(node, dict) else ()
            message = f"there is no '{shown(word)}' in '{shown(dotted)}'"
            raise SpecError(Diagnostic("S006", message, mark, did_you_mean(word, known)))
    key = _key(node, words[-1])
    if isinstance(node, dict) or (isinstance(node, list) and isinstance(key, int)):
        node[key] = value  # type: ignore[index]
    else:
        raise SpecError(Diagnostic("S006", f"'{shown(dotted)}' cannot be set", mark))
    path = (*path, key)
    document.marks = {k: m for k, m in document.marks.items() if k[: len(path)] != path}
    if mark:
        document.marks |= dict.fromkeys([*made, *_paths(value, path)], mark)


def _paths(value: Any, at: KeyPath) -> Iterator[KeyPath]:
    """Of a value and of all that it holds."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _paths(part, (*at, key))


def _key(node: Any, word: str) -> str | int:
    """A word of a path as the key of what it goes into: a number for an entry of a list."""
    is_entry = isinstance(node, list) and word.isascii() and word.isdecimal() and len(word) < 9
    return int(word) if is_entry and int(word) < len(node) else word
