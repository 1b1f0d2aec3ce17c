"""The Gaussian diffusion process: every formula of the forward process and its posterior, once.

Notation as in DDPM (arXiv 2006.11239), Improved DDPM (arXiv 2102.09672) and GLIDE (arXiv 2112.10741): `beta`, `alpha`,
`alpha_bar`, x_0 the clean image, x_t the noised one, eps the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch


def make_betas(
    schedule: str, num_train_timesteps: int, beta_start: float = 0.0001, beta_end: float = 0.02
) -> torch.Tensor:
    """The training noise schedule, in float64.

    Args:
        schedule (`str`): `"linear"` (DDPM), `"scaled_linear"` (latent diffusion), `"sigmoid"` (GeoDiff) or
            `"squaredcos_cap_v2"` (the cosine schedule of Improved DDPM, equation 17).
        num_train_timesteps (`int`): Number of steps T.
        beta_start, beta_end (`float`): Range of beta; the cosine schedule does not use them.

    Returns:
        `torch.Tensor` of shape `[T]`.

    Raises:
        ValueError: if `schedule` is unknown.
    """
    known = schedule if isinstance(schedule, str) else None  # an array compares with each name
    if known == "linear":
        return torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)
    if known == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps, dtype=torch.float64) ** 2
    if known == "sigmoid":
        return torch.linspace(-6, 6, num_train_timesteps, dtype=torch.float64).sigmoid() * (beta_end - beta_start) + (
            beta_start
        )
    if known == "squaredcos_cap_v2":
        time = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    raise ValueError(
        "`beta_schedule` must be 'linear', 'scaled_linear', 'sigmoid' or 'squaredcos_cap_v2', "
        f"got {schedule!r} (use `trained_betas` for any other)."
    )


@dataclass(eq=False)
class GaussianDiffusion:
    """A forward process over `S` steps, and its posterior. All tables are float64 tensors of shape `[S]` on the CPU.

    Keeping a subset of a process's timesteps gives another process of this class ([`~GaussianDiffusion.respaced`]):
    its betas are those between the kept steps (Improved DDPM, section 4).

    Every method takes `step`, the index of a step in the tables (0 is the last one before the clean image): either an
    `int`, or a `torch.Tensor` of shape `[B]` with one index per example.

    Attributes:
        timesteps: The training timestep that each step stands for, ascending, int64.
        alphas_cumprod: alpha_bar_t, the share of the image's variance that is left at step t.
        alphas_cumprod_prev: alpha_bar_{t-1}, 1 for the last step before the clean image.
        betas: beta_t, the variance of the noise that step t adds.
        posterior_variance: beta~_t, the variance of x_{t-1} given x_t and x_0 (DDPM, equation 7).
        posterior_log_variance: log beta~_t; as beta~_0 is 0, its logarithm is that of the next step (Improved DDPM,
            section 3.1).
        posterior_mean_coef_x0, posterior_mean_coef_xt: The coefficients of the posterior mean (DDPM, equation 7).
    """

    timesteps: torch.Tensor
    alphas_cumprod: torch.Tensor
    alphas_cumprod_prev: torch.Tensor = field(init=False)
    betas: torch.Tensor = field(init=False)
    posterior_variance: torch.Tensor = field(init=False)
    posterior_log_variance: torch.Tensor = field(init=False)
    posterior_mean_coef_x0: torch.Tensor = field(init=False)
    posterior_mean_coef_xt: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        alpha_bar = self.alphas_cumprod
        alpha_bar_prev = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        beta = 1 - alpha_bar / alpha_bar_prev
        variance = beta * (1 - alpha_bar_prev) / (1 - alpha_bar)
        self.alphas_cumprod_prev = alpha_bar_prev
        self.betas = beta
        self.posterior_variance = variance
        # A process of a single step has no next one; its own beta bounds the variance.
        self.posterior_log_variance = torch.cat([variance[1:2] if len(beta) > 1 else beta, variance[1:]]).log()
        self.posterior_mean_coef_x0 = alpha_bar_prev.sqrt() * beta / (1 - alpha_bar)
        self.posterior_mean_coef_xt = (1 - beta).sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar)

    @classmethod
    def from_betas(cls, betas: torch.Tensor) -> GaussianDiffusion:
        """The whole training process of a noise schedule of shape `[T]`."""
        betas = betas.to(torch.float64)
        return cls(torch.arange(len(betas)), torch.cumprod(1 - betas, dim=0))

    @classmethod
    def from_sigmas(cls, timesteps: torch.Tensor, sigmas: torch.Tensor) -> GaussianDiffusion:
        """The process with these ascending timesteps and noise levels, see [`~GaussianDiffusion.sigmas`]."""
        return cls(timesteps, 1 / (sigmas.to(torch.float64) ** 2 + 1))

    @property
    def sigmas(self) -> torch.Tensor:
        """Standard deviation of the noise relative to the image at each step (EDM, arXiv 2206.00364): one over the
        square root of the signal-to-noise ratio."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    def is_usable(self) -> bool:
        """Whether the tables are finite, and x_0 can be told from x_t in float32 at every step."""
        tables = (self.posterior_log_variance, self.posterior_mean_coef_x0, self.posterior_mean_coef_xt)
        is_finite = all(bool(table.isfinite().all()) for table in tables)
        return is_finite and bool((self.alphas_cumprod > torch.finfo(torch.float32).tiny).all())

    def respaced(self, timesteps: torch.Tensor) -> GaussianDiffusion:
        """The process that visits only the given steps (ascending indices into this process)."""
        return GaussianDiffusion(self.timesteps[timesteps], self.alphas_cumprod[timesteps])

    def __len__(self) -> int:
        return len(self.timesteps)

    @staticmethod
    def at(table: torch.Tensor, step: int | torch.Tensor, like: torch.Tensor) -> float | torch.Tensor:
        """`table[step]`, ready to multiply `like`: a number for an `int`, `[B, 1, 1, 1]` for a tensor of steps."""
        if isinstance(step, int):
            return table[step].item()
        # The dtype first: MPS has no float64.
        values = table.to(like.dtype).to(like.device)[step]
        return values.reshape(-1, *[1] * (like.ndim - 1))

    def q_sample(self, x_start: torch.Tensor, noise: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """Sample x_t from q(x_t | x_0) with the noise eps (DDPM, equation 4)."""
        signal = self.at(self.alphas_cumprod.sqrt(), step, x_start)
        return signal * x_start + self.at((1 - self.alphas_cumprod).sqrt(), step, x_start) * noise

    def forward_step(self, x_prev: torch.Tensor, noise: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """Sample x_t from q(x_t | x_{t-1}) with the noise eps (DDPM, equation 2)."""
        signal = self.at((1 - self.betas).sqrt(), step, x_prev)
        return signal * x_prev + self.at(self.betas.sqrt(), step, x_prev) * noise

    def predict_x_start(self, x_t: torch.Tensor, noise: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """x_0 from x_t and the noise eps (DDPM, equation 4 solved for x_0)."""
        signal = self.at(self.alphas_cumprod.rsqrt(), step, x_t)
        return signal * x_t - self.at(self.sigmas, step, x_t) * noise

    def predict_noise(self, x_t: torch.Tensor, x_start: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """The noise eps from x_t and x_0 (DDPM, equation 4 solved for eps)."""
        signal = self.at(self.alphas_cumprod.rsqrt(), step, x_t)
        return (signal * x_t - x_start) / self.at(self.sigmas, step, x_t)

    def velocity(self, x_t: torch.Tensor, x_start: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 from x_t and x_0 (arXiv 2202.00512, section 4)."""
        signal = self.at(self.alphas_cumprod.sqrt(), step, x_t)
        return (signal * x_t - x_start) / self.at((1 - self.alphas_cumprod).sqrt(), step, x_t)

    def noise_of_velocity(self, x_t: torch.Tensor, v: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """The noise eps from x_t and v (arXiv 2202.00512, appendix D)."""
        signal = self.at(self.alphas_cumprod.sqrt(), step, x_t)
        return signal * v + self.at((1 - self.alphas_cumprod).sqrt(), step, x_t) * x_t

    def ddim_x_start(self, x_prev: torch.Tensor, x_t: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """The x_0 with which a DDIM step takes x_t to x_{t-1} (arXiv 2202.00512, algorithm 2)."""
        alpha_bar, alpha_bar_prev = self.alphas_cumprod, self.alphas_cumprod_prev
        noise_ratio = ((1 - alpha_bar_prev) / (1 - alpha_bar)).sqrt()
        x_start = x_prev - self.at(noise_ratio, step, x_t) * x_t
        return x_start / self.at(alpha_bar_prev.sqrt() - noise_ratio * alpha_bar.sqrt(), step, x_t)

    def constrain_x_start(
        self,
        x_t: torch.Tensor,
        noise: torch.Tensor,
        step: int | torch.Tensor,
        *constraints: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> torch.Tensor:
        """x_0 from x_t and the noise eps, changed by each constraint in turn.

        GLIDE's order: the known pixels first, then the clip (released code).
        """
        x_start = self.predict_x_start(x_t, noise, step)
        for constraint in constraints:
            x_start = x_start if constraint is None else constraint(x_start)
        return x_start

    def noise_of(
        self, x_t: torch.Tensor, x_start: torch.Tensor, step: int | torch.Tensor, score_grad: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The noise eps that goes with a constrained x_0, after adding `score_grad` to the score.

        The shift is that of arXiv 2105.05233, algorithm 2: eps - sqrt(1 - alpha_bar_t) times the gradient.
        """
        noise = self.predict_noise(x_t, x_start, step)
        return (
            noise if score_grad is None else noise - self.at((1 - self.alphas_cumprod).sqrt(), step, noise) * score_grad
        )

    def posterior_mean(self, x_start: torch.Tensor, x_t: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """mu~_t, the mean of x_{t-1} given x_t and x_0 (DDPM, equation 7)."""
        coef_x0 = self.at(self.posterior_mean_coef_x0, step, x_t)
        return coef_x0 * x_start + self.at(self.posterior_mean_coef_xt, step, x_t) * x_t

    def learned_log_variance(self, model_variance: torch.Tensor, step: int | torch.Tensor) -> torch.Tensor:
        """log Sigma between log beta~_t and log beta_t, as the channels in [-1, 1] say (Improved DDPM, eq. 15)."""
        low = self.at(self.posterior_log_variance, step, model_variance)
        high = self.at(self.betas.log(), step, model_variance)
        fraction = (model_variance + 1) / 2
        return fraction * high + (1 - fraction) * low
