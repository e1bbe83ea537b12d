"""From the bytes of a file, which may be anything, to the numbers of an image: decode, crop, resize, normalise."""

from __future__ import annotations

import math
import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specc.runtime.errors import RunError
from specc.spec.image import ImageSpec

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # other decoders are never asked
MOST_PIXELS = 80_000_000  # more is a mistake, or meant to fill the memory
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
WIDE = ("I;16", "I;16L", "I;16B", "I;16N")  # grey of 16 bits
READ = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", *WIDE)  # what Pillow makes grey or RGB of
RATIOS = (3 / 4, 4 / 3)  # width over height of crops of a random size, as in torchvision
TRIES = 10
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels


class Unreadable(Exception):
    """Bytes that are no picture; the message says why."""


def opened(raw: bytes) -> Image:
    """The first frame of a picture, upright, with all pixels read. Raises Unreadable."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise RunError("pictures need Pillow: pip install 'specc[images]'") from None
    try:
        with Image.open(BytesIO(raw), formats=FORMATS) as image:
            if math.prod(image.size) > MOST_PIXELS:
                raise Unreadable(f"it has {image.size[0]} x {image.size[1]} pixels, more than {MOST_PIXELS:,}")
            if image.mode not in READ:
                raise Unreadable(f"its numbers are of the kind {image.mode}, not grey or colours of 8 or 16 bits")
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError:
        raise Unreadable(f"it has more than {MOST_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, OverflowError,
            NotImplementedError, struct.error, zlib.error) as e:  # fmt: skip
        known = "cannot identify" in str(e)  # what decoders raise about bytes that are not what they seem
        raise Unreadable("it is none of " + ", ".join(FORMATS) if known else f"{e or type(e).__name__}") from None


def with_channels(image: Image, channels: int) -> Image:
    """Grey, RGB or RGBA of 8 bits each; a colour below what is transparent is kept as it is."""
    from PIL import Image

    mode = MODES[channels]
    if image.mode in WIDE:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == mode else image.convert(mode)


def picture(
    raw: bytes, spec: ImageSpec, size: tuple[int, int, int], draw: np.random.Generator | None = None
) -> NDArray[np.float32]:  # fmt: skip
    """float[C H W] (or [H W C], as the layout says) of `size` = (C, H, W); without `draw` nothing is random.

    Pillow resizes the crop with a filter as wide as the scale (antialiased), and rounds to 8 bits."""
    from PIL import Image

    channels, height, width = size
    image = with_channels(opened(raw), channels)
    box = crop(image.size, (width, height), spec, draw)
    image = image.resize((width, height), Image.Resampling[spec.resample.upper()], box)
    made = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / np.float32(255)
    if draw is not None and spec.flip and draw.random() < 0.5:
        made = made[:, ::-1]
    mean, std = (np.asarray(v, dtype=np.float32) for v in spec.per_channel(channels))
    made = (made - mean) / std
    return np.ascontiguousarray(made if spec.layout == "hwc" else made.transpose(2, 0, 1))


def crop(have: tuple[int, int], want: tuple[int, int], spec: ImageSpec, draw: np.random.Generator | None) -> Box:
    """The part of a picture of have = (width, height) that becomes the image, in the shape of want."""
    w, h = have
    if spec.crop == "stretch":
        return 0.0, 0.0, float(w), float(h)
    scale = min(w / want[0], h / want[1])
    if spec.crop == "resized" and draw is not None:
        return resized_crop(have, want[0] / want[1], spec.scale, draw) or placed(have, want, scale, 0.5, 0.5)
    x, y = draw.random(2) if spec.crop == "random" and draw is not None else (0.5, 0.5)
    return placed(have, want, scale * spec.crop_pct, float(x), float(y))


def placed(have: tuple[int, int], want: tuple[int, int], scale: float, x: float, y: float) -> Box:
    """A box of scale * want at the share x and y of what is free."""
    wide, high = min(scale * want[0], have[0]), min(scale * want[1], have[1])
    left, top = (have[0] - wide) * x, (have[1] - high) * y
    return left, top, min(left + wide, have[0]), min(top + high, have[1])


def resized_crop(
    have: tuple[int, int], shape: float, scale: tuple[float, float], draw: np.random.Generator
) -> Box | None:  # fmt: skip
    """A box of a random share of the area and a random shape (arXiv:1409.4842, sec. 6); None if no try fits.

    `shape` is that of the image, width over height, by which the ratios count."""
    for _ in range(TRIES):
        area = have[0] * have[1] * draw.uniform(*scale)
        ratio = shape * math.exp(draw.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        wide, high = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if wide <= have[0] and high <= have[1]:
            left, top = draw.random() * (have[0] - wide), draw.random() * (have[1] - high)
            return left, top, min(left + wide, have[0]), min(top + high, have[1])
    return None
