"""Constraints that keep known pixels: of implicit inpainting, and of an upsampler's low-resolution image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers.utils.torch_utils import randn_tensor

from .denoiser import Constraint


if TYPE_CHECKING:
    from .run import SchedulerRun


@dataclass
class KnownPixels:
    """Pixels that are known, put into x_t before every step with the noise of that step (GLIDE, appendix E).

    A text-to-image model inpaints around them.

    Attributes:
        image (`torch.Tensor` of shape `[B, 3, H, W]`): The known image, in [-1, 1].
        mask (`torch.Tensor` of shape `[B, 1, H, W]`): 1 = repaint, 0 = known.
        generator: Source of the noise: one draw per step, and one more per undone step.
        num_resample (`int`): How often each step but the last is taken (RePaint, arXiv 2201.09865, algorithm 1):
            what is repainted then adapts to what is not. Above 1 for GLIDE's schedulers only.
    """

    image: torch.Tensor
    mask: torch.Tensor
    generator: torch.Generator | list[torch.Generator] | None = None
    num_resample: int = 1

    def replace(self, sample: torch.Tensor, run: SchedulerRun, index: int) -> torch.Tensor:
        """The sample with its known pixels replaced by a draw of q(x_t | x_0), in the scheduler's own scale."""
        return torch.where(self.mask.bool(), sample, run.add_noise(self.image, self.noise(sample), index))

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """Unit noise of the shape of a sample."""
        return randn_tensor(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)


def keep_known(image: torch.Tensor, mask: torch.Tensor) -> Constraint:
    """Puts the known pixels into an estimate of x_0; `mask` is 1 where the estimate counts (GLIDE's released code)."""
    return lambda x_start: torch.where(mask.bool(), x_start, image)


def keep_low_res(low_res: torch.Tensor, then: Constraint | None = None) -> Constraint:
    """Corrects an estimate of x_0 so that, reduced, it is the low-resolution image (DDNM, arXiv 2212.00490, section
    3.2), and goes on with `then`."""

    def correct(x_start: torch.Tensor) -> torch.Tensor:
        x_start = x_start.clamp(-1, 1)
        missing = low_res - F.adaptive_avg_pool2d(x_start, (low_res.shape[-2], low_res.shape[-1]))
        # Spread smoothly: where the correction is not constant, blocks would show.
        x_start = x_start + F.interpolate(missing, x_start.shape[-2:], mode="bilinear", align_corners=False)
        return x_start if then is None else then(x_start)

    return correct
