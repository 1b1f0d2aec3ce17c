"""Which timesteps are trained on, and how much each counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.training_utils import compute_snr

from ..schedulers import GaussianDiffusion
from .losses import HybridLoss


STRATEGIES = ("none", "earlier", "later")
_GOLDEN_RATIO = 0x9E3779B97F4A7C15  # of 2**64


@dataclass(frozen=True)
class TimestepWeighting:
    """How training timesteps are sampled and weighted. The defaults are the paper's: uniform, weight 1.

    Timesteps are spread evenly over any run of neighbouring examples (an additive recurrence in place of independent
    samples, after the low-discrepancy sampler of arXiv 2107.00630, appendix I.1): the same distribution, less noise in
    the gradient.

    The bias of the timesteps is that of diffusers' SDXL training script. Small models learn the layout of an image at
    the noisy end, and a noised CLIP sees more at the clean end. The bound's term is divided by the bias, so it stays
    the same bound; other losses are not.

    Args:
        num_train_timesteps (`int`): Steps T of the process.
        timestep_bias_strategy (`str`, defaults to `"none"`): Which timesteps are sampled more often: `"later"`, the
            noisiest ones, `"earlier"`, the cleanest ones, or `"none"`.
        timestep_bias_multiplier (`float`, defaults to 1.0): How many times more often than the others.
        timestep_bias_portion (`float`, defaults to 0.25): Their share of all timesteps.
        snr_weight_range (`tuple[float, float]`, *optional*): The noise prediction counts
            `clamp(1 / SNR, low, high)`.
        snr_gamma (`float`, *optional*): The noise prediction counts `min(SNR, snr_gamma) / SNR` (Min-SNR,
            arXiv 2303.09556, section 3.4; 5 is its choice).

    Both weights mean the error of the noise. That of v is `(SNR + 1) / SNR` times as large, so it counts the less.

    Raises:
        ValueError: if a value is out of its range, or a strategy and its multiplier do not go together.
    """

    num_train_timesteps: int
    timestep_bias_strategy: str = "none"
    timestep_bias_multiplier: float = 1.0
    timestep_bias_portion: float = 0.25
    snr_weight_range: tuple[float, float] | None = None
    snr_gamma: float | None = None

    def __post_init__(self) -> None:
        if self.timestep_bias_strategy not in STRATEGIES:
            allowed = ", ".join(STRATEGIES)
            raise ValueError(f"`timestep_bias_strategy` must be one of {allowed}, got {self.timestep_bias_strategy!r}.")
        if not 0 < self.timestep_bias_multiplier < float("inf"):
            raise ValueError(f"`timestep_bias_multiplier` must be above 0, got {self.timestep_bias_multiplier}.")
        if (self.timestep_bias_strategy == "none") != (self.timestep_bias_multiplier == 1):
            raise ValueError(
                "`timestep_bias_strategy` and `timestep_bias_multiplier` go together, got "
                f"{self.timestep_bias_strategy!r} and {self.timestep_bias_multiplier}."
            )
        if not 0 < self.timestep_bias_portion < 1:
            raise ValueError(
                f"`timestep_bias_portion` must lie between 0 and 1, exclusive, got {self.timestep_bias_portion}."
            )
        if self.snr_weight_range is not None:
            low, high = self.snr_weight_range
            if not 0 <= low <= high or high == 0:
                raise ValueError(f"`snr_weight_range` must be 0 <= low <= high, high > 0, got {self.snr_weight_range}.")
        if self.snr_gamma is not None:
            if self.snr_weight_range is not None:
                raise ValueError("Pass only one of `snr_gamma` and `snr_weight_range`.")
            if not self.snr_gamma > 0:
                raise ValueError(f"`snr_gamma` must be above 0, got {self.snr_gamma}.")

    @property
    def _parts(self) -> tuple[int, float, float]:
        """Where the cleaner part of the timesteps ends, and the density of both parts relative to the uniform one."""
        total, multiplier = self.num_train_timesteps, self.timestep_bias_multiplier
        biased = int(self.timestep_bias_portion * total)
        if self.timestep_bias_strategy == "earlier":
            end, weights = biased, (multiplier, 1.0)
        else:
            end, weights = total - biased, (1.0, multiplier)
        mean = (end * weights[0] + (total - end) * weights[1]) / total
        return end, weights[0] / mean, weights[1] / mean

    def sample(self, index: int, seed: int) -> int:
        """The timestep of the example at a global index."""
        quantile = ((index + 1) * _GOLDEN_RATIO + seed * 0xD1342543DE82EF95) % 2**64 / 2**64
        # The inverse of the cumulative distribution, which has two linear parts.
        end, clean_density, noisy_density = self._parts
        position = quantile * self.num_train_timesteps
        mass = end * clean_density
        position = position / clean_density if position < mass else end + (position - mass) / noisy_density
        return min(int(position), self.num_train_timesteps - 1)

    def apply(self, loss: HybridLoss, process: GaussianDiffusion, timesteps: torch.Tensor) -> torch.Tensor:
        """The weighted loss, of shape `[B]`, of examples whose timesteps `[B]` were sampled by this object."""
        mse_weight: torch.Tensor | float = 1.0
        if self.snr_weight_range is not None or self.snr_gamma is not None:
            # Of all timesteps and on the CPU, because the tables are float64, which MPS does not have.
            snr = compute_snr(process, process.timesteps)
            if self.snr_weight_range is not None:
                weights = (1 / snr).clamp(*self.snr_weight_range)
            else:
                weights = (self.snr_gamma / snr).clamp(max=1)
            if loss.prediction_type == "v_prediction":
                weights = weights * snr / (snr + 1)
            mse_weight = weights.to(timesteps.device)[timesteps]
        end, clean_density, noisy_density = self._parts
        density = torch.where(timesteps >= end, noisy_density, clean_density)
        return loss.weighted(mse_weight, 1 / density)
