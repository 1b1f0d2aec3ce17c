"""Running an upsampler on images of any size, at the memory of one tile."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from ..models import GLIDEUNet2DConditionModel


class TiledUNet:
    """An upsampler that sees its input in overlapping tiles, one after the other.

    All tiles are predicted at every step and blended by weights that fall off linearly towards a tile's edges
    (MultiDiffusion, arXiv 2302.08113): the tiles agree on what is generated where they overlap, so no seam arises.

    Args:
        unet ([`GLIDEUNet2DConditionModel`]): An upsampler.
        tile_size (`int`): Height and width of a tile in pixels.
        tile_overlap (`int`): Pixels that neighbouring tiles share, at least; at most `tile_size - step`.
        step (`int`): Tiles start at multiples of so many pixels, which divide `tile_size` and the images' sides.
    """

    def __init__(self, unet: GLIDEUNet2DConditionModel, tile_size: int, tile_overlap: int, step: int) -> None:
        self.unet = unet
        self.tile_size = tile_size
        # Rounded up: tiles can only be moved by whole steps, and must not lose overlap by it.
        self.tile_overlap = -(-tile_overlap // step) * step
        self.step = step

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        return self.unet.dtype

    def __call__(
        self, sample: torch.Tensor, timestep: torch.Tensor, low_res: torch.Tensor, **kwargs: Any
    ) -> UNet2DConditionOutput:
        """As the network's own `forward`, for `sample` of shape `[B, 3, H, W]` and any `low_res`."""
        height, width = sample.shape[-2:]
        # Enlarged as a whole: at the edge of a tile alone the enlargement would be another one.
        low_res = F.interpolate(low_res, (height, width), mode="bilinear", align_corners=False)
        total = sample.new_zeros(sample.shape[0], self.unet.config.out_channels, height, width, dtype=torch.float32)
        weights = sample.new_zeros(1, 1, height, width, dtype=torch.float32)
        for y, tile_height, rows in self._spans(height, sample.device):
            for x, tile_width, columns in self._spans(width, sample.device):
                tile = (..., slice(y, y + tile_height), slice(x, x + tile_width))
                output = self.unet(sample[tile], timestep, low_res=low_res[tile], **kwargs).sample
                weight = rows[:, None] * columns[None, :]
                total[tile] += output.float() * weight
                weights[tile] += weight
        return UNet2DConditionOutput(total / weights)

    def _spans(self, length: int, device: torch.device) -> list[tuple[int, int, torch.Tensor]]:
        """Start, length and weights of the tiles along one side."""
        size = min(self.tile_size, length)
        count = 1 + -(-(length - size) // (size - self.tile_overlap)) if length > size else 1
        starts = [round(i * (length - size) / max(count - 1, 1) / self.step) * self.step for i in range(count)]
        distance = torch.arange(size, device=device) + 0.5
        ramp = torch.minimum(distance, size - distance).clamp(max=max(self.tile_overlap, 1))
        return [(start, size, ramp) for start in starts]
