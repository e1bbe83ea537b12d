"""How pictures become tensors (`data.image`), and the noise that a model learns to take away (`denoising`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from specc.spec.node import Node

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class ImageSpec(Node):
    """From a file to numbers in the model's height, width and channels: crop, resize, flip, (x / 255 - mean) / std.

    What is random is drawn in training alone: validation has the crop of `center`, and no flips."""

    crop: Literal["center", "random", "resized", "stretch"] = Field(
        "center", description="of the shape of the model's input: the middle; at a random place; of a random size and "
                              "shape (RandomResizedCrop); or the whole picture, out of shape")  # fmt: skip
    crop_pct: float = Field(1.0, gt=0, le=1, description="center, random: the crop's side, of the largest that fits")
    scale: tuple[Share, Share] = Field((0.08, 1.0), description="resized: the crop's area, of the picture's")
    flip: bool = Field(False, description="mirror every other picture, left to right")
    mean: float | list[float] = Field(0.5, description="of all channels, or of each")
    std: Positive | list[Positive] = Field(0.5, description="of all channels, or of each; 0.5 and 0.5 give [-1, 1]")
    resample: Literal["bicubic", "bilinear", "lanczos", "nearest"] = "bicubic"
    layout: Literal["chw", "hwc"] = Field("chw", description="the dims of the model's images behind the first")
    unreadable: Literal["refuse", "skip"] = Field("refuse", description="what becomes of files that are no pictures")

    @model_validator(mode="after")
    def _fits(self) -> ImageSpec:
        if self.scale[0] > self.scale[1]:
            raise ValueError("'scale' is the smallest and the largest share of the area")
        if self.scale != (0.08, 1.0) and self.crop != "resized":
            raise ValueError(f"'scale' has no effect on the crop '{self.crop}'")
        if self.crop_pct != 1.0 and self.crop == "stretch":
            raise ValueError("'crop_pct' has no effect on the crop 'stretch'")
        return self

    def per_channel(self, n: int) -> tuple[list[float], list[float]]:
        """Mean and std of each of n channels. Raises ValueError for lists of another length."""
        found = []
        for name, given in (("mean", self.mean), ("std", self.std)):
            each = given if isinstance(given, list) else [given] * n
            if len(each) != n:
                raise ValueError(f"'{name}' has {len(each)} numbers, and the model's images {n} channels")
            found.append(each)
        return found[0], found[1]


class Denoising(Node):
    """Noise at a drawn time: what lies between a picture x and standard normal noise.

    flow (arXiv:2209.03003; arXiv:2403.03206, eq. 13): u in (0, 1), x_t = (1 - u) x + u noise, target = noise - x,
    t = 1000 u. ddpm (arXiv:2006.11239, eq. 4): t in 0 ... 999, x_t = sqrt(a) x + sqrt(1 - a) noise with the product a
    of 1 - beta up to t, target = sqrt(a) noise - sqrt(1 - a) x (v of arXiv:2202.00512, appendix D)."""

    path: Literal["flow", "ddpm"] = "flow"
    times: Literal["uniform", "logit_normal"] = Field("uniform", description="flow: how u is drawn")
    mean: float = Field(0.0, description="logit_normal: of the logit of u")
    std: float = Field(1.0, gt=0, description="logit_normal: of the logit of u")
    shift: float = Field(
        1.0, gt=0, description="flow: u becomes shift u / (1 + (shift - 1) u) (arXiv:2403.03206, eq. 23)"
    )
    betas: Literal["linear", "scaled_linear", "cosine"] = Field(
        "linear", description="ddpm: 1e-4 to 0.02; of latent diffusion, 0.00085 to 0.012 in their roots; "
                              "or those of arXiv:2102.09672, eq. 17")  # fmt: skip
    drop: float = Field(0.0, ge=0, lt=1, description="share of the samples without class (the last row of its table) "
                        "or caption (an empty one), for guidance")  # fmt: skip

    @model_validator(mode="after")
    def _fits(self) -> Denoising:
        for name, path in (("times", "flow"), ("shift", "flow"), ("betas", "ddpm")):
            if self.path != path and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"'{name}' has no effect on the path '{self.path}'")
        if self.times != "logit_normal" and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError("'mean' and 'std' have no effect on times that are not logit_normal")
        return self
