"""Image models trained on files: build, run, stop, go on; the same on any mesh and by any microbatch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import specc
from specc.runtime import checkpoint, cli
from specc.runtime.api import export, run, sample
from specc.runtime.built import Build, Stage
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.data.batches import batch, microbatches
from specc.runtime.data.images.pictures import Pictures
from specc.runtime.data.images.rows import Maker, Taken, albums, class_names, prepare_pictures
from specc.runtime.data.prepare import Prepared
from specc.runtime.errors import RunError
from specc.runtime.evaluate import validation_loss
from specc.runtime.loop import Run
from specc.runtime.metrics import METRICS, VOLATILE
from specc.runtime.train import begin, stage_folder
from tests.pictures import CLIP, DIT, VIT, built, digits, folder_of_digits, same, spec_of

EXAMPLES = Path(__file__).parent.parent / "examples"
FP32 = torch.float32
VAE = {"C": 1, "Y": 16, "X": 16, "widths": [16, 16], "R": 1, "GROUPS": 4, "Z": 2}
LEARNS: dict[str, Any] = {
    "budget": {"steps": 60},
    "optimizer": {"lr": 2e-3},
    "batch": {"sequences": 32},
    "schedule": {"kind": "constant"},
}


def folder_of(build: Build) -> Path:
    return stage_folder(build, build.stages["train"])


def losses(build: Build, key: str = "loss") -> list[float]:
    rows = map(json.loads, (folder_of(build) / "metrics.jsonl").read_text().splitlines())
    return [row[key] for row in rows if key in row]


def told_lines(build: Build) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without what differs from run to run."""
    rows = map(json.loads, (folder_of(build) / METRICS).read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in VOLATILE} for row in rows]


def weights(build: Build) -> dict[str, torch.Tensor]:
    loaded = checkpoint.load_newest(folder_of(build) / "checkpoints")
    assert loaded is not None
    return {**loaded.tensors["weights"], **{f"moment {n}": t for n, t in loaded.tensors["optimizer"].items()}}


def prepared(stage: Stage, base: Path) -> Prepared:
    taken = Taken(stage.facts["shapes"], stage.compute, stage.facts["classes"])
    return prepare_pictures(stage.spec, albums(stage.spec, base, base / "cache"), taken, None)


def trains(folder: Path, spec: dict[str, Any], *overrides: str, name: str = "build") -> tuple[Build, list[str]]:
    build, told = built(folder, spec, *overrides, name=name), list[str]()
    run(build, base=folder, say=told.append)
    return build, told


def test_a_vit_learns_the_classes_of_folders_and_knows_their_names(tmp_path: Path) -> None:
    """Chance is log 6 = 1.79 nats."""
    folder_of_digits(tmp_path / "pictures", 480)
    build, told = trains(tmp_path, spec_of("vit", VIT, "images", **LEARNS))
    assert np.mean(losses(build)[-5:]) < 0.7
    assert losses(build, "validation_loss")[-1] < 0.7
    assert "held out; entropy of classes 1.7" in "".join(told)
    facts = json.loads((folder_of(build) / "facts.json").read_text())
    assert facts["classes"] == ["five", "four", "one", "three", "two", "zero"]
    assert losses(build, "images_per_s")
    assert not (folder_of(build) / "tokenizer.json").exists()


def test_a_vit_is_trained_on_parquet_as_on_its_folders(tmp_path: Path) -> None:
    """Rows in the order of the files, with numbers for classes that are sorted as their names are."""
    spec = spec_of("vit", VIT, "images")
    folder_of_digits(tmp_path / "a" / "pictures", 30)
    files = sorted((tmp_path / "a" / "pictures").rglob("*.png"))
    names = sorted({f.parent.name for f in files})
    rows = [{"image": {"bytes": f.read_bytes(), "path": f.name}, "label": names.index(f.parent.name)} for f in files]
    (tmp_path / "b" / "pictures").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b" / "pictures" / "train.parquet")
    folders, table = (trains(tmp_path / each, spec)[0] for each in "ab")
    assert losses(folders) == losses(table)
    assert same(weights(folders), weights(table))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 40)
    more = {"data": {"image": {"crop": "resized", "flip": True}}, "checkpoint": {"every": 1, "keep": 9}}
    for name, spec in (
        ("vit", spec_of("vit", VIT, "images", **more)),
        ("dit", spec_of("dit", DIT, "denoising", **more)),
    ):
        build, _ = trains(tmp_path, spec, name=name)
        seen, made = told_lines(build), weights(build)
        (folder_of(build) / "done.json").unlink()
        for step in (3, 4):
            (folder_of(build) / "checkpoints" / f"step_{step:08d}").rename(tmp_path / f"{name}{step}")
        told: list[str] = []
        run(build, base=tmp_path, say=told.append)
        assert any("goes on from step 2" in line for line in told), told
        assert told_lines(build) == seen
        assert same(weights(build), made)


def test_classes_keep_their_numbers_from_run_to_run_and_from_stage_to_stage(tmp_path: Path) -> None:
    """Names are numbered in their order: `six` would move three of them, `zoo` none."""
    folder_of_digits(tmp_path / "pictures", 40)
    spec = spec_of("vit", {**VIT, "CLASSES": 8}, "images")
    more = {**spec["stages"]["train"], "from": "train", "data": {"sources": [{"path": "more"}], "validation": 0.3}}
    spec["stages"]["tune"] = {**more, "budget": {"steps": 2}}
    build = built(tmp_path, spec)
    run(build, "train", base=tmp_path, say=lambda _: None)

    def classes(folder: str, *names: str) -> None:
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
            for i, (_, raw) in enumerate(digits(9, seed=len(name))):
                (tmp_path / folder / name / f"{i}.png").write_bytes(raw)

    (folder_of(build) / "done.json").unlink()
    classes("pictures", "six")
    with pytest.raises(RunError, match="'train': class 'three' is number 4 now and 3 in the steps before; name"):
        run(build, "train", base=tmp_path, say=lambda _: None)
    (tmp_path / "pictures" / "six").rename(tmp_path / "pictures" / "zoo")
    run(build, "train", base=tmp_path, say=lambda _: None)
    known = ["five", "four", "one", "three", "two", "zero", "zoo"]
    facts = json.loads((folder_of(build) / "facts.json").read_text())
    assert (facts["classes"], facts["unigram_entropy"] > 1) == (known, True)
    classes("more", "five", "four", "six")
    run(build, "tune", base=tmp_path, say=lambda _: None)  # `six` has a number that means another there
    shutil.rmtree(stage_folder(build, build.stages["tune"]))
    classes("more", "two")
    with pytest.raises(RunError, match="'tune': class 'two' is number 3 now and 4 in the weights of 'train'"):
        run(build, "tune", base=tmp_path, say=lambda _: None)


@pytest.mark.parametrize("model", ["vit", "dit"])
def test_validation_is_of_whole_steps_whatever_the_microbatch(model: str, tmp_path: Path) -> None:
    """Against the loss of each row alone. Fewer rows than a step's come round again."""
    folder_of_digits(tmp_path / "pictures", 80)
    dims, objective = {"vit": (VIT, "images"), "dit": (DIT, "denoising")}[model]
    spec = spec_of(model, dims, objective, data={"validation": 0.4})
    runs: list[Run] = []
    for size in (8, 2, 1):
        build = built(tmp_path, spec, f"stages.train.batch.microbatch={size}", name=f"by{size}")
        runs.append(begin(build, build.stages["train"], tmp_path, tmp_path, lambda _: None))
    one, whole = runs[-1], runs[-1].data.validation
    alone = [float(one.executor.forward(one.params, batch(whole, [i], one.stage.fields))["loss"]) for i in range(19)]
    for held, counted in ((19, 16), (8, 8), (5, 8)):
        rows = replace(whole, n=held)
        wanted = sum(alone[i % held] for i in range(counted)) / counted
        found = [validation_loss(each.stage, each.executor, each.params, rows) for each in runs]
        assert found == pytest.approx([wanted] * len(runs), rel=1e-6)


@pytest.mark.parametrize(("model", "dims", "objective"), [("vit", VIT, "images"), ("dit", DIT, "denoising")])
def test_samples_depend_on_seed_and_number_alone(
    model: str, dims: dict[str, Any], objective: str, tmp_path: Path
) -> None:
    folder_of_digits(tmp_path / "pictures", 40)
    spec = spec_of(model, dims, objective, data={"image": {"crop": "random", "crop_pct": 0.8, "flip": True}})
    stages = [
        built(tmp_path, spec, f"stages.train.batch.microbatch={n}", f"stages.train.seed={seed}").stages["train"]
        for n, seed in ((2, 0), (4, 0), (4, 1))
    ]

    def made(stage: Stage, step: int) -> dict[str, torch.Tensor]:
        parts, shares = microbatches(prepared(stage, tmp_path).train, stage.spec, step, stage.fields)
        assert shares == [1 / len(parts)] * len(parts)
        return {name: torch.cat([p[name] for p in parts]) for name in stage.fields}

    halves, whole, other = (made(stage, 3) for stage in stages)
    assert same(halves, whole)
    assert same(made(stages[0], 3), halves)
    for different in (other, made(stages[0], 4)):
        assert all(not torch.equal(different[n], whole[n]) for n in stages[0].fields - {"class"})
    validation = [batch(prepared(s, tmp_path).validation, [0, 2], s.fields) for s in stages]
    again = batch(prepared(stages[0], tmp_path).validation, [0, 1, 2], stages[0].fields)
    assert same(validation[0], validation[1])
    assert all(torch.equal(again[n][[0, 2]], x) for n, x in validation[0].items()), "noise of validation is fixed"


def test_a_rank_reads_its_own_pictures_alone(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 40)
    stage = built(tmp_path, spec_of("dit", DIT, "denoising")).stages["train"]
    data, kept = prepared(stage, tmp_path), np.arange(8) >= 4
    (whole,), _ = microbatches(data.train, stage.spec, 1, stage.fields)
    (part,), _ = microbatches(data.train, stage.spec, 1, stage.fields, kept=kept)
    assert all(torch.equal(part[n][4:], whole[n][4:]) for n in stage.fields)
    assert not part["x_t"][:4].any()


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(("model", "mesh"), [("vit", "dp: 2"), ("dit", "pp: 2")])
def test_a_mesh_trains_on_the_same_samples(model: str, mesh: str, tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 40)
    dims, objective = {"vit": (VIT, "images"), "dit": (DIT, "denoising")}[model]
    spec = spec_of(model, dims, objective, batch={"sequences": 8, "microbatch": 4})
    exact = "plan.precision={compute: fp64, master: fp64, reduce: fp64}"
    one, _ = trains(tmp_path, spec, exact, name="one")
    two = built(
        tmp_path, spec, exact, f"plan.mesh={{{mesh}}}", "plan.zero=3" if "dp" in mesh else "plan.zero=1", name="two"
    )
    run(two, base=tmp_path, say=lambda _: None)
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-9)
    np.testing.assert_allclose(losses(two, "validation_loss"), losses(one, "validation_loss"), rtol=1e-9)


@pytest.mark.dist
@pytest.mark.slow
def test_verify_takes_pictures_without_a_length(capsys: pytest.CaptureFixture[str]) -> None:
    """Small sequences are put over the spec, where the user could not say them (S529)."""
    words = [str(EXAMPLES / "digits.yaml"), "--set", "plan.mesh={dp: 2}"]
    assert cli.main(["verify", *words, "--ranks", "2"]) == cli.OK
    assert "the loss and 40 gradients agree with one process" in capsys.readouterr().out
    assert cli.main(["check", *words, "--set", "stages.train.data.seq_len=8"]) == cli.WRONG_SPEC


def test_a_dit_learns_to_tell_the_noise_and_drops_classes(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 120)
    settings = {"denoising": {"path": "ddpm", "betas": "cosine", "drop": 0.25}, **LEARNS}
    build, told = trains(tmp_path, spec_of("dit", DIT, "denoising", **settings))
    assert losses(build)[0] == pytest.approx(1.0, abs=0.1), "it begins with zeros, and noise has variance 1"
    assert np.mean(losses(build)[-5:]) < 0.6
    assert "entropy" not in "".join(told)
    stage = build.stages["train"]
    classes = [microbatches(prepared(stage, tmp_path).train, stage.spec, s, {"class"})[0][0]["class"] for s in range(6)]
    dropped = torch.cat(classes) == 6
    assert 0.1 < float(dropped.float().mean()) < 0.4
    assert set(torch.cat(classes).tolist()) == set(range(7))


def test_a_clip_learns_which_caption_is_whose(tmp_path: Path) -> None:
    """Six pictures of six classes a step: chance is log 6."""
    rows = [{"image": {"bytes": raw, "path": None}, "caption": f"a {name}"} for name, raw in digits(200)]
    (tmp_path / "pictures").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pictures" / "a.parquet")
    data = {"sources": [{"path": "pictures/*.parquet", "field": "caption"}], "seq_len": 12}
    spec = spec_of("clip", CLIP, "images", **{**LEARNS, "batch": {"sequences": 6}}, tokenizer={"vocab": 300}, data=data)
    build, _ = trains(tmp_path, spec)
    assert np.mean(losses(build)[:3]) > 1.6
    assert np.mean(losses(build)[-10:]) < 1.1
    assert (folder_of(build) / "tokenizer.json").is_file()


def test_an_autoencoder_learns_to_draw_a_picture_again(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 60)
    build, _ = trains(tmp_path, spec_of("autoencoder_kl", VAE, "images", **{**LEARNS, "batch": {"sequences": 8}}))
    assert np.mean(losses(build)[-5:]) < 0.35 * losses(build)[0]


def test_more_classes_than_the_model_has_are_told(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 30)
    with pytest.raises(RunError, match=r"pictures of class 5 \('zero'\), the model has 5 classes"):
        trains(tmp_path, spec_of("vit", {**VIT, "CLASSES": 5}, "images"))
    dit = spec_of("dit", {**DIT, "CLASSES": 5}, "denoising")
    trains(tmp_path, dit)  # its table has a row more
    dit["stages"]["train"]["denoising"] = {"drop": 0.5}
    with pytest.raises(RunError, match=r"class 5 .*the last row of its table is for dropped ones"):
        trains(tmp_path, dit)


def test_pictures_without_what_the_model_takes_are_told(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for i, (_, raw) in enumerate(digits(10)):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(raw)
    with pytest.raises(RunError, match="10 of the 10 pictures of pictures have no class: folders"):
        trains(tmp_path, spec_of("vit", VIT, "images"))
    with pytest.raises(RunError, match=r"10 of the 10 pictures of pictures have no caption: a \.txt"):
        trains(tmp_path, spec_of("clip", CLIP, "images", tokenizer={"vocab": 300}, data={"seq_len": 12}))
    with pytest.raises(RunError, match=r"there is no .*gone"):
        trains(tmp_path, spec_of("vit", VIT, "images", data={"sources": [{"path": "gone"}]}))


def test_a_stage_of_images_writes_no_texts_and_is_not_exported(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 30)
    build, _ = trains(tmp_path, spec_of("vit", VIT, "images"))
    with pytest.raises(RunError, match="its model writes no texts"):
        sample(build, "a")
    with pytest.raises(RunError, match="models of texts alone are exported"):
        export(build, tmp_path / "out")


def test_captions_are_rows_with_an_end_padding_and_labels_of_the_next_token(tmp_path: Path) -> None:
    folder_of_digits(tmp_path / "pictures", 12, captions=True)
    spec = spec_of("clip", CLIP, "images", tokenizer={"vocab": 300}, data={"seq_len": 8})
    stage = built(tmp_path, spec).stages["train"]
    words = tokenizers.train(["the digit zero one two three four five " * 9], 300)
    (album,) = albums(stage.spec, tmp_path, tmp_path / "cache")
    taken, names = Taken({"tokens": [4, 8], "image": [4, 1, 16, 16]}, FP32, {}), class_names([album])
    maker = Maker(stage.spec, album.album(), taken, names, words)
    end, pad = words.token_to_id("<|endoftext|>"), words.token_to_id("<|pad|>")
    ids = words.encode("one").ids
    made = maker.caption("one")
    assert made["tokens"].tolist() == [*ids, end, *[pad] * (7 - len(ids))]
    assert made["labels"].tolist() == [*ids[1:], end, *[-100] * (8 - len(ids))]
    assert made["doc"].tolist() == [0] * (len(ids) + 1) + [-1] * (7 - len(ids))
    assert made["pos"].tolist() == [*range(len(ids) + 1), *range(7 - len(ids))]
    long = maker.caption("one " * 40)["tokens"]
    assert (len(long), long[-1], end in long[:-1]) == (8, end, False)
    assert maker.caption("<|endoftext|>")["tokens"].tolist().count(end) == 1, "text has no special tokens"


def test_the_example_of_pictures_checks_and_its_script_draws_them(tmp_path: Path) -> None:
    draws = [sys.executable, str(EXAMPLES / "draw_digits.py"), str(tmp_path / "digits"), "-n", "20"]
    subprocess.run(draws, check=True, timeout=60)
    assert cli.main(["check", str(EXAMPLES / "digits.yaml")]) == 0
    source = specc.load(EXAMPLES / "digits.yaml").stages["train"].data.sources[0]
    album = Pictures(source, tmp_path, 0.1, tmp_path / "cache").album()
    assert (len(album), len(album.names), album.text(0)) == (20, 10, "the digit eight")
