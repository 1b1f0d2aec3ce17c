"""Implicit inpainting: a text-to-image model paints around pixels that are known (GLIDE, appendix E)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor

from ..schedulers import SchedulerAdapter


@dataclass
class KnownRegion:
    """Pixels that are known, put into x_t at every step with the noise of that step.

    Attributes:
        image (`torch.Tensor` of shape `[B, 3, H, W]`): The known picture, in [-1, 1].
        mask (`torch.Tensor` of shape `[B, 1, H, W]`): 1 = repaint, 0 = known.
        generator: Source of the noise: one draw per step, and one more per step back.
        num_resample (`int`): How often each step is taken (RePaint, arXiv 2201.09865, algorithm 1): what is repainted
            then gets to know what is not. Above 1 for GLIDE's schedulers only.
    """

    image: torch.Tensor
    mask: torch.Tensor
    generator: torch.Generator | list[torch.Generator] | None = None
    num_resample: int = 1

    def noise_in(self, latents: torch.Tensor, adapter: SchedulerAdapter, index: int) -> torch.Tensor:
        """The sample with its known region replaced by a draw of q(x_t | x_0), in the scheduler's own scale."""
        timestep = adapter.timestep(index).expand(latents.shape[0])
        known = adapter.scheduler.add_noise(self.image, self._noise(latents), timestep)
        return torch.where(self.mask.bool(), latents, known)

    def step_back(self, latents: torch.Tensor, adapter: SchedulerAdapter, index: int) -> torch.Tensor:
        """x_t from x_{t-1}: the forward step that the sampler's step at `index` undid."""
        scheduler = adapter.scheduler
        beta = scheduler.process.betas[scheduler.step_index_of(adapter.timestep_value(index))].item()
        return (1 - beta) ** 0.5 * latents + beta**0.5 * self._noise(latents)

    def _noise(self, like: torch.Tensor) -> torch.Tensor:
        return randn_tensor(like.shape, generator=self.generator, device=like.device, dtype=like.dtype)
