"""Indices of pictures of every kind of file: what they hold, when they are made anew, what cannot be read."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from specc.runtime.data.images.index import CLASS
from specc.runtime.data.images.pictures import Pictures
from specc.runtime.errors import RunError
from specc.spec.data import Source
from tests.pictures import DIGITS, digits, folder_of_digits, png


def rows_of_digits(n: int) -> list[dict[str, Any]]:
    return [
        {"image": {"bytes": raw, "path": None}, "label": i % 6, "text": f"the digit {name}", "kind": name}
        for i, (name, raw) in enumerate(digits(n))
    ]


def as_folder(root: Path) -> Source:
    folder_of_digits(root / "pictures", 12, captions=True)
    return Source(path="pictures")


def as_metadata(root: Path) -> Source:
    """As the imagefolder of Hugging Face's datasets."""
    (root / "pictures" / "train").mkdir(parents=True)
    lines = []
    for i, row in enumerate(rows_of_digits(12)):
        (root / "pictures" / "train" / f"{i}.png").write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({"file_name": f"train/{i}.png", "label": row["kind"], "text": row["text"]}))
    (root / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    return Source(path="pictures")


def as_jsonl(root: Path) -> Source:
    source = as_metadata(root)
    file = root / "pictures" / "metadata.jsonl"
    file.rename(root / "pictures" / "list.jsonl")
    return source.model_copy(update={"path": "pictures/list.jsonl"})


def as_parquet(root: Path) -> Source:
    (root / "pictures").mkdir()
    pq.write_table(pa.Table.from_pylist(rows_of_digits(12)), root / "pictures" / "a.parquet", row_group_size=5)
    return Source(path="pictures", label="kind")


def as_arrow(root: Path) -> Source:
    (root / "pictures").mkdir()
    table = pa.Table.from_pylist([{**r, "image": r["image"]["bytes"]} for r in rows_of_digits(12)])
    with pa.OSFile(str(root / "pictures" / "data.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    return Source(path="pictures", label="kind")


def as_tar(root: Path) -> Source:
    (root / "pictures").mkdir()
    with tarfile.open(root / "pictures" / "00000.tar", "w") as tar:
        for i, row in enumerate(rows_of_digits(12)):
            parts = {
                "png": row["image"]["bytes"],
                "cls": row["kind"].encode(),
                "json": b'{"text": "%s"}' % row["text"].encode(),
            }
            for ending, raw in parts.items():
                member = tarfile.TarInfo(f"a.b/{i:03d}.{ending}")
                member.size = len(raw)
                tar.addfile(member, BytesIO(raw))
    return Source(path="pictures")


@pytest.mark.parametrize("write", [as_folder, as_metadata, as_jsonl, as_parquet, as_arrow, as_tar])
def test_every_kind_of_file_gives_the_same_pictures_classes_and_captions(write: Any, tmp_path: Path) -> None:
    source = write(tmp_path)
    album = Pictures(source, tmp_path, 0.2, tmp_path / "cache").album()
    found = {(album.read(i), album.names[album.table[i, CLASS]], album.text(i)) for i in range(len(album))}
    assert found == {(raw, name, f"the digit {name}") for name, raw in digits(12)}


def test_an_index_is_made_once_and_anew_when_a_file_changes(tmp_path: Path) -> None:
    source = as_folder(tmp_path)

    def made() -> Pictures:
        return Pictures(source, tmp_path, 0.2, tmp_path / "cache")

    digest = made().digest()
    (index,) = (tmp_path / "cache").iterdir()
    before = (index / "table").stat().st_mtime_ns
    assert made().digest() == digest
    assert (index / "table").stat().st_mtime_ns == before
    (index / "table").write_bytes(b"damaged")
    assert made().digest() == digest
    known = made().album()
    one = tmp_path / "pictures" / "five" / "0000.png"
    one.write_bytes(digits(7)[6][1])
    with pytest.raises(RunError, match="has changed since"):
        [known.read(i) for i in range(len(known))]
    assert made().digest() != digest


@pytest.mark.parametrize("write", [as_metadata, as_jsonl])
def test_an_index_is_made_anew_when_a_picture_that_rows_name_changes_or_comes(write: Any, tmp_path: Path) -> None:
    source, one = write(tmp_path), tmp_path / "pictures" / "train" / "0.png"

    def made() -> Pictures:
        return Pictures(source, tmp_path, 0.2, tmp_path / "cache", skips=True)

    before, kept = made(), one.read_bytes()
    digest = before.digest()
    (index,) = (tmp_path / "cache").iterdir()
    written = (index / "table").stat().st_mtime_ns
    assert (made().digest(), (index / "table").stat().st_mtime_ns) == (digest, written)
    one.write_bytes(digits(7)[6][1])
    with pytest.raises(RunError, match=r"0\.png. has changed since the run began; run again"):
        before.album().read(0)
    after = made()
    assert after.digest() != digest
    assert after.album().read(0) == digits(7)[6][1]
    one.unlink()
    assert (len(made().album()), "no such file" in made().album().unreadable[0]) == (11, True)
    one.write_bytes(kept[:60])
    assert "no such file" not in made().album().unreadable[0]
    one.write_bytes(kept)
    assert (len(made().album()), made().digest()) == (12, digest)


def test_pictures_that_change_while_their_index_is_made_are_told(tmp_path: Path) -> None:
    source, one = as_jsonl(tmp_path), tmp_path / "pictures" / "train" / "0.png"
    with pytest.raises(RunError, match="files have changed meanwhile; run again"):
        Pictures(source, tmp_path, 0.2, tmp_path / "cache", touch=lambda: one.write_bytes(b"")).album()


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_numbers_that_are_no_grey_or_colours_are_no_pictures(mode: str, tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 12)
    raw = png(Image.new(mode, (4, 4)), "TIFF")
    (tmp_path / "pictures" / "five" / "a.tif").write_bytes(raw)
    with pytest.raises(RunError, match=rf"a\.tif is no picture: its numbers are of the kind {mode}, .*skip"):
        Pictures(Source(path="pictures"), tmp_path, 0.2, tmp_path / "cache").album()
    assert len(Pictures(Source(path="pictures"), tmp_path, 0.2, tmp_path / "cache", skips=True).album()) == 12


@pytest.mark.parametrize(
    ("write", "told"),
    [(as_folder, r"five/0000\.png"), (as_jsonl, r"list\.jsonl:1 \(train/0\.png\)"), (as_parquet, r"a\.parquet, row 1"),
     (as_arrow, r"data\.arrow, row 1"), (as_tar, r"00000\.tar, a\.b/000\.png")],
)  # fmt: skip
def test_a_picture_is_told_by_its_file_and_its_place_in_it(write: Any, told: str, tmp_path: Path) -> None:
    album = Pictures(write(tmp_path), tmp_path, 0.2, tmp_path / "cache").album()
    assert re.search(f"{told}$", album.where(0))
    assert len({album.where(i) for i in range(len(album))}) == 12
    with pytest.raises(RunError, match=f"{told} has changed since the run began"):
        replace(album, digests=album.digests * 0).read(0)


def test_a_limit_goes_round_the_classes_of_folders(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 24)
    album = Pictures(Source(path="pictures"), tmp_path, 0.2, tmp_path / "cache", limit=8).album()
    counts = np.bincount(album.table[:, CLASS])
    assert (counts.tolist(), [*album.names]) == ([2, 2, 1, 1, 1, 1], sorted(DIGITS))
    assert [*album.files] == sorted(album.files)
    rows = as_metadata(tmp_path / "rows")
    few = Pictures(rows, tmp_path / "rows", 0.2, tmp_path / "cache", limit=3).album()
    assert [few.text(i) for i in range(len(few))] == ["the digit five", "the digit four", "the digit one"]


def test_held_out_are_pictures_by_their_bytes(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 60)
    album = Pictures(Source(path="pictures"), tmp_path, 0.3, tmp_path / "cache").album()
    held = album.held(0.3)
    assert 8 < held.sum() < 30
    wanted = [int.from_bytes(album.digests[i, :8].tobytes(), "big") < 0.3 * 2**64 for i in range(60)]
    assert held.tolist() == wanted
    assert album.held(1.0).all()


def test_files_that_are_no_pictures_are_refused_by_name_or_left_out_and_told(tmp_path: Path) -> None:
    source = as_folder(tmp_path)
    broken = tmp_path / "pictures" / "five" / "0006.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(RunError, match=r"0006\.png is no picture: .*unreadable: skip"):
        Pictures(source, tmp_path, 0.2, tmp_path / "cache").album()
    album = Pictures(source, tmp_path, 0.2, tmp_path / "cache", skips=True).album()
    assert len(album) == 11
    assert "0006.png" in album.unreadable[0]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"picture": "a.png"}, "there is no 'image' .there is picture."),
        ({"image": 3}, "neither bytes"),
        ({"image": "https://x.org/a.png"}, "neither bytes"),
        ({"image": "gone.png"}, "there is no such file"),
        ({"image": "/etc/passwd"}, "leads out of"),
        ({"image": "b/../../a.png"}, "leads out of"),
        ({"image": "a.png", "label": 1.5}, "neither a name nor a number"),
        ({"image": "a.png", "label": -1}, "neither a name nor a number"),
        ({"image": "a.png", "label": 1 << 40}, "neither a name nor a number"),
    ],
)
def test_rows_without_what_was_named_are_told_with_their_line(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(digits(1)[0][1])
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    source = Source(path="x.jsonl", label="label" if "label" in row else None)
    with pytest.raises(RunError, match=rf"x\.jsonl:1.*{told}"):
        Pictures(source, tmp_path, 0.2, tmp_path / "cache").album()


def test_classes_that_are_names_and_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(digits(1)[0][1])
    rows = [{"image": "a.png", "label": label} for label in ("cat", 1)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(RunError, match="some are names, and some are numbers"):
        Pictures(Source(path="x.jsonl"), tmp_path, 0.2, tmp_path / "cache").album()


def test_a_pattern_finds_pictures_and_leaves_captions_beside_them(tmp_path: Path) -> None:
    as_folder(tmp_path)
    album = Pictures(Source(path="pictures/*o/*"), tmp_path, 0.2, tmp_path / "cache").album()
    assert sorted(album.names) == ["two", "zero"]
    alone = Pictures(Source(path="pictures/two"), tmp_path, 0.2, tmp_path / "cache").album()
    named = Pictures(Source(path="pictures/two/*"), tmp_path, 0.2, tmp_path / "cache").album()
    assert ([*alone.names], [*named.names]) == ([], ["two"]), "the same files, and classes by where one begins"
    assert album.text(0) == "the digit two"
    (tmp_path / "x.dat").write_text("no picture")
    with pytest.raises(RunError, match=r"x\.dat is no picture by its ending"):
        Pictures(Source(path="x.dat"), tmp_path, 0.2, tmp_path / "cache").album()
