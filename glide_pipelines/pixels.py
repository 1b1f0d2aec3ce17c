"""Pixels: 0 to 255 as pictures hold them, -1 to 1 as the networks see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """From 0 to 255 to -1 to 1."""
    return pixels / 127.5 - 1


def unscale_pixels(sample: torch.Tensor) -> torch.Tensor:
    """From -1 to 1 to 0 to 255, not rounded."""
    return (sample + 1) * 127.5


def round_pixels(sample: torch.Tensor) -> torch.Tensor:
    """A sample in [-1, 1] as it would come back from an 8-bit picture."""
    return scale_pixels(unscale_pixels(sample).round())


def pictures_to_tensor(pictures: Sequence[Image.Image | np.ndarray]) -> torch.Tensor:
    """RGB pictures of one size, with values from 0 to 255, as floats in [-1, 1] of shape `[B, 3, H, W]`."""
    return scale_pixels(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float())
