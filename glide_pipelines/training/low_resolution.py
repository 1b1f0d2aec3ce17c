"""The input of an upsampler in training: a crop of the large image, and the same crop of the reduced one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from ..images import images_to_tensor, round_pixels
from .randomness import standard_normal


@dataclass(frozen=True)
class LowResolution:
    """Reduces an image, corrupts the result a little, and crops both at the same place.

    Whether the released upsampler was trained with corruption is not known. Here it is slight blur and noise, sampled
    anew for each example, because the images of a base model are no perfect reductions of large ones.

    Args:
        resolution (`int`): Width and height of the whole large image.
        low_resolution (`int`): Width and height of the whole small image.
        crop_size (`int`, *optional*): Width and height of the crop of the large image; by default all of it.
        low_res_blur (`float`, defaults to 0): Largest radius of a Gaussian blur of the small image, in its pixels.
        low_res_noise (`float`, defaults to 0): Largest standard deviation of Gaussian noise in the small image, whose
            values span [-1, 1].

    Raises:
        ValueError: if a value is out of its range.
    """

    resolution: int
    low_resolution: int
    crop_size: int | None = None
    low_res_blur: float = 0.0
    low_res_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.low_resolution < 1 or self.resolution % self.low_resolution:
            raise ValueError(
                f"`low_resolution` must divide the resolution, {self.resolution}, got {self.low_resolution}."
            )
        factor = self.resolution // self.low_resolution
        if self.crop_size is not None and not (0 < self.crop_size <= self.resolution and self.crop_size % factor == 0):
            raise ValueError(
                f"`crop_size` must be a multiple of {factor} and at most {self.resolution}, got {self.crop_size}."
            )
        for name in ("low_res_blur", "low_res_noise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, torch.Tensor]:
        """The crop of the large image, and that of the small one: 8-bit values in [-1, 1], of shape `[3, h, w]`."""
        factor = self.resolution // self.low_resolution
        small = image.reduce(factor)
        crop = (self.crop_size or self.resolution) // factor
        left, top = (int(rng.integers(self.low_resolution - crop + 1)) for _ in range(2))
        if self.low_res_blur:
            # Before the crop, whose edge must not look like the edge of the image.
            small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0, self.low_res_blur)))
        low_res = images_to_tensor([small.crop((left, top, left + crop, top + crop))])[0]
        if self.low_res_noise:
            std = rng.uniform(0, self.low_res_noise)
            low_res = low_res + std * standard_normal(rng, tuple(low_res.shape))
            low_res = round_pixels(low_res.clamp(-1, 1))
        box = (factor * left, factor * top, factor * (left + crop), factor * (top + crop))
        return image.crop(box), low_res
