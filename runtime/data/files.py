"""Rows of files: text, JSON Lines, Parquet, and the Arrow files of Hugging Face's `Dataset.save_to_disk`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from specc.runtime.errors import RunError

ENDINGS = {".txt": "text", ".md": "text", ".py": "text", ".rst": "text",
           ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".arrow": "arrow"}  # fmt: skip
DATASET, DATASETS = "state.json", "dataset_dict.json"  # what save_to_disk writes beside the Arrow files
NO_TEXT = (".json", ".csv", ".tsv", ".gz", ".bz2", ".xz", ".zst", ".zip", ".npy", ".bin")
Row = dict[str, object]


def find(path: Path, form: str | None, endings: Mapping[str, str] = ENDINGS) -> list[tuple[Path, str]]:
    """Files in a fixed order, each with its format; `path` is a file, a directory or a pattern. `endings` are those
    that are read below a directory."""
    first = next((i for i, part in enumerate(path.parts) if _is_pattern(path, i, part)), None)
    if first is not None:
        root = Path(*path.parts[:first])
        found = [p for p in sorted(root.glob(str(Path(*path.parts[first:])))) if p.is_file()]
        if not found:
            raise RunError(f"no file fits {path}")
        readable = [p for p in found if form or p.suffix.lower() not in NO_TEXT]
        return [(p, form or _form(p, endings)) for p in readable or found]
    if path.is_dir():
        return list(_below(path, form, endings))
    if not path.exists():
        raise RunError(f"there is no {path}")
    if not path.is_file():
        raise RunError(f"{path} is not a regular file")
    return [(path, form or _form(path, endings))]


def _is_pattern(path: Path, i: int, part: str) -> bool:
    """Whether a part of a path is no name as it stands; folders may have brackets in theirs."""
    return bool(set(part) & set("*?[")) and not Path(*path.parts[: i + 1]).exists()


def _form(path: Path, endings: Mapping[str, str]) -> str:
    """What is in a file that was named: text if its ending does not tell."""
    ending = path.suffix.lower()
    if ending in NO_TEXT:
        known = ", ".join(dict.fromkeys(endings.values()))
        raise RunError(f"{path}: files that end in {ending} are not read; if it is one of {known}, say so in 'format'")
    return endings.get(ending, "text")


def _below(path: Path, form: str | None, endings: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    if (path / DATASETS).is_file():
        raise RunError(f"{path} holds several splits; name one of them, such as {path / 'train'}")
    if (path / DATASET).is_file():
        for entry in _json((path / DATASET).read_bytes(), str(path / DATASET)).get("_data_files", []):  # type: ignore[attr-defined]
            name = Path(str(entry["filename"])).name
            yield path / name, "arrow"
        return
    none = True
    for folder, below, names in os.walk(path):
        below.sort()
        for file in sorted(Path(folder) / n for n in names):
            known = endings.get(file.suffix.lower())
            if known and form in (None, known) and file.is_file():
                none = False
                yield file, known
    if none:
        known = ", ".join(e for e, f in endings.items() if form in (None, f))
        raise RunError(f"{path} has no files that end in {known}")


def well_formed(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which JSON may have and UTF-8 has not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise RunError(f"{file}: byte {e.start} is not UTF-8 ({e.reason})") from None


def read_rows(file: Path, form: str) -> Iterator[tuple[str, Row]]:
    """Rows with the place of each, such as `more.jsonl:12`."""
    if form == "jsonl":
        yield from _lines(file)
        return
    try:
        for number, row in enumerate(_parquet(file) if form == "parquet" else _arrow(file), 1):
            yield f"{file}, row {number}", row
    except ImportError:
        raise RunError(f"{file}: {form} files need pyarrow: pip install 'specc[parquet]'") from None
    except (OSError, ValueError) as e:  # pyarrow's own errors are of these kinds
        raise RunError(f"{file} is not {form}: {e}") from None


def _lines(file: Path) -> Iterator[tuple[str, Row]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{file}:{number}", _json(line.rstrip(b"\r\n"), f"{file}:{number}")


def _json(raw: bytes, where: str) -> Row:
    try:
        found = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise RunError(f"{where}: byte {e.start} is not UTF-8 ({e.reason})") from None
    except json.JSONDecodeError as e:
        raise RunError(f"{where}: not JSON: {e.msg} at column {e.colno}") from None
    except (RecursionError, ValueError):
        raise RunError(f"{where}: not JSON that can be read: too deep, or a number too long") from None
    if not isinstance(found, dict):
        raise RunError(f"{where}: a row is an object, not {type(found).__name__}")
    return found


def _parquet(file: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file) as opened:
        for batch in opened.iter_batches(1024):
            yield from batch.to_pylist()


def _arrow(file: Path) -> Iterator[Row]:
    import pyarrow as pa

    with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
        for batch in stream:
            yield from batch.to_pylist()
