"""Documents of a source: files, directories, or the Python standard library's own text (PSF licence)."""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from specc.runtime.errors import RunError
from specc.spec.data import Source

SKIPPED = {"test", "tests", "idlelib", "site-packages", "__pycache__", "lib2to3", "idle_test"}
SUFFIXES = {"text": (".txt", ".md", ".py", ".rst"), "jsonl": (".jsonl",), "parquet": (".parquet",)}


@dataclass(frozen=True)
class Document:
    """A text, or the messages of a conversation: (role, content) pairs."""

    text: str = ""
    messages: tuple[tuple[str, str], ...] = ()

    def held_out(self, share: float) -> bool:
        """Whether it belongs to the validation set: a function of its content alone."""
        content = self.text or json.dumps(self.messages)
        number = int.from_bytes(hashlib.sha256(content.encode("utf-8", "replace")).digest()[:8], "big")
        return number < share * (1 << 64)


def documents(source: Source, base: Path) -> Iterator[Document]:
    """Documents in a fixed order; relative paths start at `base`."""
    if source.corpus == "python-stdlib":
        yield from (Document(text) for text in stdlib_sources())
    elif source.corpus == "python-docstrings":
        yield from (d for text in stdlib_sources() for d in docstring_pairs(text))
    else:
        assert source.path is not None
        yield from from_files(source, base / source.path)


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


def from_files(source: Source, path: Path) -> Iterator[Document]:
    """Text files are a document each; JSON Lines and Parquet one a row."""
    if not path.exists():
        raise RunError(f"there is no {path}")
    found = sorted(p for s in SUFFIXES[source.format] for p in path.rglob(f"*{s}")) if path.is_dir() else [path]
    for file in found:
        if source.format == "text":
            yield Document(file.read_text(encoding="utf-8", errors="replace"))
        elif source.format == "jsonl":
            yield from _rows((json.loads(line) for line in file.open(encoding="utf-8") if line.strip()), source, file)
        else:
            yield from _rows(_parquet(file), source, file)


def _parquet(file: Path) -> Iterator[dict[str, object]]:
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise RunError("Parquet files need pyarrow: pip install 'specc[parquet]'") from None
    for batch in pq.ParquetFile(file).iter_batches():
        yield from batch.to_pylist()


def _rows(rows: Iterator[dict[str, object]], source: Source, file: Path) -> Iterator[Document]:
    for row in rows:
        if isinstance(row.get("messages"), list):
            yield Document(messages=tuple((str(m["role"]), str(m["content"])) for m in row["messages"]))  # type: ignore[attr-defined]
        elif "prompt" in row and "response" in row:
            yield Document(messages=(("user", str(row["prompt"])), ("assistant", str(row["response"]))))
        elif source.field in row:
            yield Document(str(row[source.field]))
        else:
            raise RunError(f"{file}: a row has no field '{source.field}' (it has {', '.join(row)})")
