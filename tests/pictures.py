"""Pictures for tests: digits drawn with Pillow's own font, and specs of small models that are trained on them."""

from __future__ import annotations

import random
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from specc.compiler.build import build_spec
from specc.runtime.built import Build, open_build
from specc.spec.dump import dump
from specc.spec.spec import load

SIDE = 16
CLASSES = ("five", "four", "one", "three", "two", "zero")  # as they are sorted
DIGITS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5}
VIT = {"C": 1, "Y": SIDE, "P": 8, "D": 32, "L": 2, "H": 2, "F": 64, "CLASSES": 6}
CLIP = {"C": 1, "Y": 16, "P": 8, "DV": 32, "LV": 1, "HV": 2, "FV": 64, "V": 400, "CTX": 16, "DT": 32, "LT": 1, "HT": 2,
        "FT": 64, "Z": 16, "EOS": 1}  # fmt: skip
DIT = {"C": 1, "Y": SIDE, "P": 4, "D": 32, "L": 2, "H": 2, "CLASSES": 6, "W": 32}


def digit(n: int, draw: random.Random, side: int = SIDE) -> Image.Image:
    """A grey picture of a digit, a little moved and turned, on a dark background."""
    image = Image.new("L", (side, side), draw.randrange(40))
    place = (side / 2 + draw.uniform(-0.5, 0.5), side / 2 + draw.uniform(-0.5, 0.5))
    font = ImageFont.load_default(side * 0.8)
    ImageDraw.Draw(image).text(place, str(n), fill=draw.randrange(180, 256), font=font, anchor="mm")
    return image.rotate(draw.uniform(-5, 5), Image.Resampling.BILINEAR)


def png(image: Image.Image, form: str = "PNG") -> bytes:
    out = BytesIO()
    image.save(out, form)
    return out.getvalue()


def digits(n: int, seed: int = 0) -> list[tuple[str, bytes]]:
    """Names of classes and PNG files."""
    draw = random.Random(seed)
    return [(name, png(digit(DIGITS[name], draw))) for i in range(n) for name in [sorted(DIGITS)[i % len(DIGITS)]]]


def folder_of_digits(root: Path, n: int, captions: bool = False) -> Path:
    """A folder with one of each class in it, as ImageFolder has it; with the name of each as its caption."""
    for i, (name, raw) in enumerate(digits(n)):
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / f"{i:04d}.png").write_bytes(raw)
        if captions:
            (root / name / f"{i:04d}.txt").write_text(f"the digit {name}\n")
    return root


def spec_of(model: str, dims: dict[str, Any], objective: str, **stage: Any) -> dict[str, Any]:
    """A spec of a model of the library, trained on the pictures of `pictures/`."""
    data = {"sources": [{"path": "pictures"}], "validation": 0.2, **stage.pop("data", {})}
    base = {"batch": {"sequences": 8}, "budget": {"steps": 4}, "optimizer": {"lr": 1e-3}}
    stages = {"train": {"objective": objective, **base, **stage, "data": data}}
    return {"specc": 1, "use": f"models/{model}", "model": {"dims": dims}, "stages": stages}


def built(folder: Path, spec: dict[str, Any], *overrides: str, name: str = "build") -> Build:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.yaml").write_text(dump(spec))
    build_spec(load(folder / "x.yaml", overrides), folder / name)
    return open_build(folder / name)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)
