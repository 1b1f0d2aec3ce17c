"""Which timesteps are trained on, and how much each counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..schedulers import GaussianDiffusion
from .losses import HybridLoss


_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # of 2**64


@dataclass(frozen=True)
class TimestepWeighting:
    """
    How training timesteps are drawn and weighted. The defaults are the paper's: uniform, weight 1.

    Timesteps are evenly spread over any run of neighbouring examples (an additive recurrence in place of independent
    draws, after the low-discrepancy sampler of arXiv 2107.00630, appendix I.1): the same distribution, less noise in
    the gradient.

    Args:
        num_train_timesteps (`int`): Steps T of the process.
        noisy_share (`float`, defaults to 0.0): So many of the timesteps, beyond the uniform ones, come from the noisier
            half, where small models learn what stands where; below 0 as many from the cleaner half, where there is
            more to see. The bound's term is reweighted so that it stays the same bound; other losses are not.
        snr_weight_range (`tuple[float, float]`, *optional*): The noise prediction counts
            `clamp(1 / SNR, low, high)`. (0, 1 / g) is, up to a factor, Min-SNR-g (arXiv 2303.09556).

    Raises:
        ValueError: if a value is out of its range.
    """

    num_train_timesteps: int
    noisy_share: float = 0.0
    snr_weight_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not -1 < self.noisy_share < 1:
            raise ValueError(f"`noisy_share` must be between -1 and 1, got {self.noisy_share}.")
        if self.snr_weight_range is not None:
            low, high = self.snr_weight_range
            if not 0 <= low <= high or high == 0:
                raise ValueError(f"`snr_weight_range` must be 0 <= low <= high, high > 0, got {self.snr_weight_range}.")

    def draw(self, index: int, seed: int) -> int:
        """The timestep of the example at a global index."""
        quantile = ((index + 1) * _GOLDEN_RATIO + seed * 0xD1342543DE82EF95) % 2**64 / 2**64
        clean_half = (1 - self.noisy_share) / 2
        if quantile < clean_half:
            share = quantile / clean_half / 2
        else:
            share = 0.5 + (quantile - clean_half) / (1 - clean_half) / 2
        return min(int(share * self.num_train_timesteps), self.num_train_timesteps - 1)

    def apply(self, loss: HybridLoss, process: GaussianDiffusion, timesteps: torch.Tensor) -> torch.Tensor:
        """The weighted loss, of shape `[B]`, of examples whose timesteps `[B]` were drawn by this object."""
        mse_weight: torch.Tensor | float = 1.0
        if self.snr_weight_range is not None:
            # The dtype first: MPS has no float64.
            alpha_bar = process.alphas_cumprod.float().to(timesteps.device)[timesteps]
            mse_weight = ((1 - alpha_bar) / alpha_bar).clamp(*self.snr_weight_range)
        noisy = timesteps >= self.num_train_timesteps / 2
        density = torch.where(noisy, 1 + self.noisy_share, 1 - self.noisy_share)
        return loss.weighted(mse_weight, 1 / density)
