"""GLIDE's learned-range hybrid loss: prediction error and the variational bound (arXiv 2102.09672, section 3.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..schedulers import GLIDEScheduler, noise_of_prediction


@dataclass
class HybridLoss:
    """The two terms of the loss, per example.

    Attributes:
        mse (`torch.Tensor` of shape `[B]`): Mean squared error of the prediction of noise, or of v.
        vb (`torch.Tensor` of shape `[B]`): The timestep's term of the variational bound, in bits per dimension. Its
            gradient reaches the variance channels only.
        vb_scale (`float`): What `vb` is multiplied by in the loss, T / 1000.
        prediction_type (`str`): What `mse` is the error of, `"epsilon"` or `"v_prediction"`.
    """

    mse: torch.Tensor
    vb: torch.Tensor
    vb_scale: float
    prediction_type: str = "epsilon"

    @property
    def loss(self) -> torch.Tensor:
        """What to minimise, of shape `[B]` (Improved DDPM, equation 16)."""
        return self.weighted(1.0, 1.0)

    def weighted(self, mse_weight: torch.Tensor | float, vb_weight: torch.Tensor | float) -> torch.Tensor:
        """The loss with a weight `[B]` on each term. They are separate because a weight that favours some noise levels
        is meant for the prediction; on the bound it would make another bound."""
        return mse_weight * self.mse + vb_weight * self.vb_scale * self.vb


def hybrid_loss(
    scheduler: GLIDEScheduler,
    model_output: torch.Tensor,
    x_start: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
) -> HybridLoss:
    """L_simple + L_vlb of Improved DDPM (arXiv 2102.09672, equations 9, 15 and 16), which GLIDE trains with.

    The second term passes no gradient to the prediction: the bound trains the variance alone.

    Args:
        scheduler ([`GLIDEDDPMScheduler`] or [`GLIDEDDIMScheduler`]): Holds the process over all training timesteps, and
            says whether the model predicts noise or v.
        model_output (`torch.Tensor` of shape `[B, 2 * C, H, W]`): Prediction, then variance channels.
        x_start (`torch.Tensor` of shape `[B, C, H, W]`): The images x_0: 8-bit values in [-1, 1].
        noise (`torch.Tensor` of shape `[B, C, H, W]`): The noise eps in x_t.
        timesteps (`torch.Tensor` of shape `[B]`): Training timesteps.

    Raises:
        ValueError: if the model output does not have twice the channels of the image.
    """
    channels = x_start.shape[1]
    if model_output.shape[1] != 2 * channels:
        raise ValueError(
            f"`model_output` must have {2 * channels} channels (prediction and variance), got {model_output.shape[1]}."
        )
    process, prediction_type = scheduler.train_process, scheduler.config.prediction_type
    prediction, model_variance = model_output.float().chunk(2, dim=1)
    x_start, noise = x_start.float(), noise.float()
    x_t = process.q_sample(x_start, noise, timesteps)
    target = noise if prediction_type == "epsilon" else process.velocity(x_t, x_start, timesteps)
    noise_pred = noise_of_prediction(prediction_type, process, prediction.detach(), x_t, timesteps)

    true_mean = process.posterior_mean(x_start, x_t, timesteps)
    true_log_variance = process.at(process.posterior_log_variance, timesteps, x_t)
    mean = process.posterior_mean(process.predict_x_start(x_t, noise_pred, timesteps), x_t, timesteps)
    log_variance = process.learned_log_variance(model_variance, timesteps)

    kl = _gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    first = timesteps.reshape(-1, *[1] * (x_start.ndim - 1)) == 0
    bits = torch.where(first, -_discretized_log_likelihood(x_start, mean, log_variance), kl) / math.log(2)
    return HybridLoss(
        mse=(target - prediction).square().flatten(1).mean(1),
        vb=bits.flatten(1).mean(1),
        vb_scale=len(process) / 1000,
        prediction_type=prediction_type,
    )


def _gaussian_kl(
    mean: torch.Tensor, log_variance: torch.Tensor | float, other_mean: torch.Tensor, other_log_variance: torch.Tensor
) -> torch.Tensor:
    """KL(N(mean) || N(other_mean)) of diagonal Gaussians, elementwise, in nats."""
    difference = log_variance - other_log_variance
    return 0.5 * (-1 - difference + difference.exp() + (mean - other_mean).square() * (-other_log_variance).exp())


def _discretized_log_likelihood(x_start: torch.Tensor, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Log-probability that a Gaussian, rounded to 256 levels on [-1, 1], gives `x_start` (DDPM, equation 13)."""
    centred, inverse_std = x_start - mean, (-0.5 * log_variance).exp()
    upper = _normal_cdf((centred + 1 / 255) * inverse_std)
    lower = _normal_cdf((centred - 1 / 255) * inverse_std)
    # The first and the last level hold the tails.
    upper = torch.where(x_start > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x_start < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()


def _normal_cdf(x: torch.Tensor) -> torch.Tensor:
    """Page's approximation of the normal distribution function, as in DDPM: the recorded losses depend on it."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
