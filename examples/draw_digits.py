"""Pictures to try image models on, drawn on this machine: python examples/draw_digits.py digits

Digits in Pillow's own font, of several sizes, moved and turned, in a folder for each, with captions."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 28


def digit(n: int, draw: random.Random) -> Image.Image:
    """A grey picture of a digit."""
    image = Image.new("L", (SIDE, SIDE), draw.randrange(60))
    place = (SIDE / 2 + draw.uniform(-2, 2), SIDE / 2 + draw.uniform(-2, 2))
    font = ImageFont.load_default(draw.uniform(18, 26))
    ImageDraw.Draw(image).text(place, str(n), fill=draw.randrange(160, 256), font=font, anchor="mm")
    return image.rotate(draw.uniform(-15, 15), Image.Resampling.BILINEAR)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", type=int, default=4000, help="pictures")
    args = parser.parse_args()
    draw = random.Random(0)
    for i in range(args.n):
        n = i % len(NAMES)
        folder = args.folder / NAMES[n]
        folder.mkdir(parents=True, exist_ok=True)
        digit(n, draw).save(folder / f"{i:05d}.png")
        (folder / f"{i:05d}.txt").write_text(f"the digit {NAMES[n]}\n")


if __name__ == "__main__":
    main()
