"""Pictures as tensors: bytes against formulas of Pillow and torch, crops, and noise."""

from __future__ import annotations

import math
import random
import zlib
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from specc.runtime.data.images.decode import MODES, MOST_PIXELS, READ, Unreadable, crop, opened, picture, with_channels
from specc.runtime.data.images.noise import noised, products
from specc.spec.image import Denoising, ImageSpec
from tests.pictures import png

FLOW, DDPM = Denoising(), Denoising(path="ddpm")


def noise_picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    draw = np.random.default_rng(0)
    n = len(Image.new(mode, (1, 1)).getbands())
    values = draw.integers(0, 256, (height, width, n), dtype=np.uint8)
    return Image.fromarray(values[..., 0] if n == 1 else values, mode if n != 2 else None)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_a_picture_of_the_images_size_is_its_bytes(mode: str, channels: int) -> None:
    image = noise_picture(7, 5, mode)
    found = picture(png(image), ImageSpec(), (channels, 5, 7))
    wanted = np.asarray(image, dtype=np.float64).reshape(5, 7, channels).transpose(2, 0, 1) / 127.5 - 1
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_mean_and_std_are_those_of_each_channel_and_the_layout_may_have_channels_last() -> None:
    image = noise_picture(4, 4)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    found = picture(png(image), ImageSpec(mean=mean, std=std, layout="hwc"), (3, 4, 4))
    np.testing.assert_allclose(found, (np.asarray(image) / 255 - mean) / std, atol=1e-5)


@pytest.mark.parametrize("size", [(96, 48), (48, 144), (48, 48)])
def test_the_middle_is_that_of_the_picture_as_torch_resizes_it(size: tuple[int, int]) -> None:
    """Both filter with a triangle as wide as the scale; Pillow rounds to 8 bits behind each of its two passes."""
    image = noise_picture(*size)
    found = picture(png(image), ImageSpec(resample="bilinear"), (3, 16, 16))
    width, height = size[0] // 3, size[1] // 3
    x = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None]
    whole = torch.nn.functional.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
    top, left = (height - 16) // 2, (width - 16) // 2
    wanted = whole[0, :, top : top + 16, left : left + 16] / 127.5 - 1
    assert float((torch.from_numpy(found) - wanted).abs().max()) < 1.2 / 127.5


@pytest.mark.parametrize("size", [(100, 33), (33, 100)])
@pytest.mark.parametrize("resample", ["bicubic", "lanczos", "nearest"])
def test_what_does_not_divide_is_resized_by_pillow_from_a_box_of_fractions(
    size: tuple[int, int], resample: str
) -> None:
    image = noise_picture(*size)
    left, top = (size[0] - 33) / 2, (size[1] - 33) / 2
    wanted = image.resize((16, 16), Image.Resampling[resample.upper()], (left, top, left + 33, top + 33))
    found = picture(png(image), ImageSpec(resample=resample), (3, 16, 16))
    np.testing.assert_allclose(found, np.asarray(wanted).transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_crops_have_the_shape_of_the_image_and_lie_inside() -> None:
    draw = np.random.default_rng(0)
    areas: list[float] = []
    for kind in ("center", "random", "resized"):
        for _ in range(300):
            have = int(draw.integers(5, 200)), int(draw.integers(5, 200))
            left, top, right, bottom = crop(have, (32, 16), ImageSpec(crop=kind, scale=(0.08, 1.0)), draw)
            assert 0 <= left < right <= have[0]
            assert 0 <= top < bottom <= have[1]
            shape = (right - left) / (bottom - top)
            if kind == "resized":
                assert 2 * 3 / 4 - 1e-6 < shape < 2 * 4 / 3 + 1e-6
                areas.append((right - left) * (bottom - top) / math.prod(have))
            else:
                assert shape == pytest.approx(2)
                assert right - left == pytest.approx(have[0]) or bottom - top == pytest.approx(have[1])
    assert min(areas) < 0.15
    assert max(areas) > 0.45
    assert crop((100, 50), (10, 10), ImageSpec(crop="stretch"), draw) == (0, 0, 100, 50)
    assert crop((256, 320), (224, 224), ImageSpec(crop_pct=0.875), None) == (16, 48, 240, 272)


def test_without_a_draw_nothing_is_random_and_flips_mirror_about_half() -> None:
    raw = png(noise_picture(8, 8))
    spec = ImageSpec(crop="resized", flip=True)
    assert np.array_equal(picture(raw, spec, (3, 4, 4)), picture(raw, ImageSpec(), (3, 4, 4)))
    plain = picture(raw, ImageSpec(), (3, 8, 8))
    flips = [picture(raw, ImageSpec(flip=True), (3, 8, 8), np.random.default_rng(i)) for i in range(40)]
    mirrored = [np.array_equal(f, plain[:, :, ::-1]) for f in flips]
    assert all(m or np.array_equal(f, plain) for m, f in zip(mirrored, flips, strict=True))
    assert 10 < sum(mirrored) < 30


def test_grey_of_16_bits_palettes_and_turned_photographs_are_read() -> None:
    wide = Image.fromarray(np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4))
    np.testing.assert_allclose(
        picture(png(wide), ImageSpec(mean=0, std=1), (1, 4, 4)).ravel(), np.arange(0, 256, 16) / 255, atol=1e-6
    )
    colours = noise_picture(4, 4)
    palette = colours.convert("P")
    found = picture(png(palette), ImageSpec(mean=0, std=1), (3, 4, 4))
    np.testing.assert_allclose(found, np.asarray(palette.convert("RGB")).transpose(2, 0, 1) / 255, atol=1e-6)
    out = BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    noise_picture(8, 4).save(out, "PNG", exif=exif)
    assert opened(out.getvalue()).size == (4, 8)


def bomb() -> bytes:
    """A PNG that says that it has more pixels than are read."""
    raw = bytearray(png(Image.new("L", (1, 1))))
    side = math.isqrt(MOST_PIXELS) + 1
    raw[16:24] = side.to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(bytes(raw[12:29])).to_bytes(4, "big")
    return bytes(raw)


def test_bytes_that_are_no_picture_are_told_not_raised() -> None:
    whole = {form: png(noise_picture(30, 20), form) for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")}
    assert all(opened(raw).size == (30, 20) for raw in whole.values())
    with pytest.raises(Unreadable, match="none of"):
        opened(b"GIF but not one")
    with pytest.raises(Unreadable, match="pixels"):
        opened(bomb())
    draw = random.Random(0)
    for raw in whole.values():
        for _ in range(60):  # damaged anywhere, or cut
            broken = bytearray(raw)
            for _ in range(draw.randrange(1, 6)):
                broken[draw.randrange(len(raw))] = draw.randrange(256)
            with suppress(Unreadable):  # and nothing else is raised
                picture(bytes(broken[: draw.choice([len(raw), draw.randrange(len(raw))])]), ImageSpec(), (3, 8, 8))


@pytest.mark.parametrize("mode", READ)
def test_what_is_read_becomes_grey_or_colours(mode: str) -> None:
    for channels, made in MODES.items():
        assert with_channels(Image.new(mode, (4, 4)), channels).mode == made


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def test_a_flow_goes_straight_from_the_data_to_the_noise() -> None:
    x, noise = normal(3, 4, 4), normal(3, 4, 4, seed=1)
    made = noised(x, noise, FLOW, np.random.default_rng(5), torch.float32)
    u = np.random.default_rng(5).random()
    assert float(made["t"]) == pytest.approx(1000 * u, rel=1e-6)
    np.testing.assert_allclose(made["x_t"], (1 - u) * x + u * noise, atol=1e-5)
    np.testing.assert_allclose(made["x_t"] - u * made["target"], x, atol=1e-5)  # along the velocity back to the data


def test_times_are_drawn_as_is_said() -> None:
    def times(**settings: Any) -> np.ndarray:
        spec, draw = Denoising(**settings), np.random.default_rng(0)
        x = np.zeros((1, 1, 1), dtype=np.float32)
        return np.array([float(noised(x, x, spec, draw, torch.float32)["t"]) for _ in range(4000)]) / 1000

    logits = np.log(times(times="logit_normal", mean=0.5, std=2.0))
    logits -= np.log1p(-np.exp(logits))
    assert logits.mean() == pytest.approx(0.5, abs=0.15)
    assert logits.std() == pytest.approx(2.0, abs=0.15)
    assert times().mean() == pytest.approx(0.5, abs=0.02)
    assert np.median(times(shift=3.0)) == pytest.approx(0.75, abs=0.02)  # 3 * 0.5 / (1 + 2 * 0.5)
    steps = times(path="ddpm") * 1000
    assert {*steps} == {*np.round(steps)}
    assert (steps.min(), steps.max()) == pytest.approx((0, 999), abs=3)


def test_steps_of_ddpm_keep_the_variance_and_give_noise_and_velocity() -> None:
    x, noise = normal(1, 64, 64), normal(1, 64, 64, seed=1)
    made = noised(x, noise, DDPM, np.random.default_rng(3), torch.float32)
    beta = np.linspace(1e-4, 0.02, 1000)
    kept = float(np.prod(1 - beta[: int(made["t"]) + 1]))
    a, b = math.sqrt(kept), math.sqrt(1 - kept)
    np.testing.assert_allclose(made["x_t"], a * x + b * noise, atol=1e-5)
    np.testing.assert_allclose(a * made["x_t"] - b * made["target"], x, atol=1e-4)  # eq. of x from v
    assert made["x_t"].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("betas", "name", "settings"),
    [("linear", "linear", {}), ("scaled_linear", "scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
     ("cosine", "squaredcos_cap_v2", {})],
)  # fmt: skip
def test_noise_schedules_are_those_of_diffusers(betas: str, name: str, settings: dict[str, float]) -> None:
    diffusers = pytest.importorskip("diffusers")
    reference = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule=name, **settings)
    np.testing.assert_allclose(products(betas), reference.alphas_cumprod.double().numpy(), rtol=2e-4, atol=1e-6)


def test_the_time_that_the_model_is_told_is_that_of_its_noise_in_bf16_too() -> None:
    x, noise = normal(1, 8, 8), normal(1, 8, 8, seed=1)
    made = noised(x, noise, FLOW, np.random.default_rng(2), torch.bfloat16)
    t = torch.tensor(float(made["t"]))
    assert float(t.bfloat16()) == float(t)
    u = float(t) / 1000
    np.testing.assert_allclose(made["x_t"], (1 - u) * x + u * noise, atol=1e-5)
