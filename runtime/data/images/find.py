"""Where the pictures of a source are, with their classes and captions: folders, rows that name or hold them, and tars.

- A folder: the class of a picture is the first folder on the way to it, its caption the text file of its name.
- A folder with metadata.jsonl, as Hugging Face's `imagefolder` has it: rows with `file_name`.
- JSON Lines, Parquet, Arrow: rows whose picture is bytes, {bytes, path}, or a path from the file's folder.
- Tar files (WebDataset): members that share a name up to its first dot: a picture, and `.cls`, `.txt` or `.json`."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from stat import S_ISREG

from specc.runtime.data.files import Row, find, read_rows, read_text, well_formed
from specc.runtime.errors import RunError
from specc.spec.data import Source

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
ENDINGS = {**dict.fromkeys(PICTURES, "image"), ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet",
           ".arrow": "arrow", ".tar": "tar"}  # fmt: skip
METADATA, FILE_NAME = "metadata.jsonl", "file_name"
NOT_A_PATH = "://"
MOST_CLASSES = 1 << 31
Class = int | str | None
Stamp = list[int] | None  # bytes and time of change (ns) of a file, as JSON has them; None if there is none


@dataclass(frozen=True)
class Found:
    """A picture: in a file, all of it or `length` bytes from `offset` on, or `raw` bytes out of a file of rows."""

    where: str  # for messages
    file: Path
    offset: int = 0
    length: int = -1
    raw: bytes | None = None
    label: Class = None
    text: str | None = None

    def read(self) -> bytes:
        """Its bytes; raises RunError if they are not there."""
        return self.raw if self.raw is not None else read_part(self.file, self.offset, self.length, self.where)


def read_part(file: Path, offset: int, length: int, where: str) -> bytes:
    """`length` bytes of a file (-1: all)."""
    try:
        with file.open("rb") as opened:
            opened.seek(offset)
            found = opened.read(length)
    except OSError as e:
        raise RunError(f"{where}: {e.strerror}") from None
    if length >= 0 and len(found) != length:
        raise RunError(f"{where}: it has changed since it was first read; run again")
    return found


def stamp(file: Path) -> Stamp:
    """What a file's stamp is now."""
    try:
        at = file.stat()
    except OSError:
        return None
    return [at.st_size, at.st_mtime_ns] if S_ISREG(at.st_mode) else None


def files_of(source: Source, path: Path) -> list[tuple[Path, str]]:
    """The files of a source, each with its format. Where some hold rows, pictures beside them are what rows name."""
    if (path / METADATA).is_file() and source.format is None:
        return [(path / METADATA, "jsonl")]
    found = find(path, source.format, ENDINGS)
    files = [(f, form) for f, form in found if form != "text"]  # a pattern may fit captions
    if not files:
        known = ", ".join(dict.fromkeys(ENDINGS.values()))
        raise RunError(f"{found[0][0]} is no picture by its ending; if it is one of {known}, say so in 'format'")
    rows = [(f, form) for f, form in files if form != "image"]
    return rows or files


def pictures(source: Source, path: Path, files: list[tuple[Path, str]]) -> Iterator[Found]:
    """All pictures of these files, in a fixed order."""
    for file, form in files:
        if form == "image":
            yield Found(str(file), file, label=_folder(file, path), text=_caption(file.with_suffix(".txt")))
        elif form == "tar":
            yield from _of_tar(source, file)
        else:
            for where, row in read_rows(file, form):
                yield _of_row(source, row, where, file)


def first_of_classes(files: list[tuple[Path, str]], path: Path, limit: int) -> list[tuple[Path, str]]:
    """So many pictures, a first one of each class before a second one of any, in the order that they had."""
    seen = Counter[str | None]()
    turns: list[int] = []
    for file, _ in files:
        turns.append(seen[label := _folder(file, path)])
        seen[label] += 1
    return [files[i] for i in sorted(sorted(range(len(files)), key=turns.__getitem__)[:limit])]


def _folder(file: Path, path: Path) -> str | None:
    """The class of a picture: the first folder below the source's, or the folder that a pattern found it in."""
    if not path.is_dir():
        return file.parent.name or None
    inside = file.relative_to(path).parts
    return inside[0] if len(inside) > 1 else None


def _caption(file: Path) -> str | None:
    return read_text(file).strip() if file.is_file() else None


def _of_row(source: Source, row: Row, where: str, file: Path) -> Found:
    column = source.image or next((c for c in ("image", FILE_NAME) if c in row), "image")
    label, text = _label(source, row, where), _text(source, row, where)
    value = _column(row, column, where, "image")
    raw = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(raw, bytes):
        return Found(where, file, raw=raw, label=label, text=text)
    name = value.get("path") if isinstance(value, dict) else value
    if not isinstance(name, str) or NOT_A_PATH in name or "\0" in name:
        raise RunError(f"{where}: '{column}' is neither bytes, {{bytes, path}} nor the path of a file")
    if Path(name).is_absolute() or ".." in Path(name).parts:  # rows of others name no files of the reader's
        raise RunError(f"{where}: '{name}' leads out of {file.parent}; paths start at the folder of the rows")
    return Found(f"{where} ({name})", file.parent / name, label=label, text=text)


def _column(row: Mapping[str, object], column: str, where: str, key: str) -> object:
    if column not in row:
        has = ", ".join(map(str, row)) or "nothing"
        raise RunError(f"{where}: there is no '{column}' (there is {has}); the source's '{key}' says where it is")
    return row[column]


def _label(source: Source, row: Mapping[str, object], where: str) -> Class:
    """The class of a row. A default column that a row lacks is no mistake before a model asks for classes."""
    value = _column(row, source.label, where, "label") if source.label else row.get("label")
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST_CLASSES:
        return value
    if source.label and value is not None:
        raise RunError(f"{where}: the class '{source.label}' is neither a name nor a number from 0 on")
    return None


def _text(source: Source, row: Mapping[str, object], where: str) -> str | None:
    value = _column(row, source.field, where, "field") if source.field != "text" else row.get("text")
    if value is not None and not isinstance(value, str):
        if source.field != "text":
            raise RunError(f"{where}: the caption '{source.field}' is not text but {type(value).__name__}")
        return None
    return None if value is None else well_formed(value)


def _of_tar(source: Source, file: Path) -> Iterator[Found]:
    try:
        with tarfile.open(file, "r:") as tar:
            members = [m for m in tar if m.isreg() and not m.issparse()]
            for key, group in groupby(members, lambda m: _key(m.name)):
                if found := _member(source, file, key, {m.name[len(key) :].lower(): m for m in group}):
                    yield found
    except (tarfile.TarError, OSError, ValueError, EOFError) as e:
        raise RunError(f"{file} is not a tar file without compression: {e}") from None


def _key(name: str) -> str:
    """A member's name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _member(source: Source, file: Path, key: str, group: Mapping[str, tarfile.TarInfo]) -> Found | None:
    image = next((m for ending, m in group.items() if ending in PICTURES), None)
    if image is None:
        return None
    where = f"{file}, {image.name}"

    def text(ending: str) -> str | None:
        m = group.get(ending)
        raw = read_part(file, m.offset_data, m.size, where) if m else None
        return None if raw is None else raw.decode("utf-8", "replace").strip()

    row: dict[str, object] = {}
    if (described := text(".json")) is not None:
        try:
            row = dict(json.loads(described))
        except (ValueError, TypeError, RecursionError):
            raise RunError(f"{file}, {key}.json: not an object in JSON") from None
    label, caption = _label(source, row, where), text(".txt") or _text(source, row, where)
    if (number := text(".cls")) is not None:
        label = int(number) if number.isascii() and number.isdigit() and len(number) < 10 else number
    return Found(where, file, image.offset_data, image.size, label=label, text=caption)
