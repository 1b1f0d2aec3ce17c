"""DDIM sampling on any spacing, as GLIDE samples its upsampler."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real

import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from ..arguments import check_tensor
from .scheduling_glide import GLIDEScheduler, at_least_float32


class GLIDEDDIMScheduler(GLIDEScheduler):
    __doc__ = (
        "DDIM steps, arXiv 2010.02502; the variance channels of the model are not used.\n\n"
        + (GLIDEScheduler.__doc__.split("\n\n", 1)[1])
    )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        denoised_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        cond_grad: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """One step of DDIM (arXiv 2010.02502, equation 12).

        Args:
            model_output (`torch.Tensor` of shape `[B, 2C, H, W]` or `[B, C, H, W]`): Noise prediction; variance
                channels are dropped.
            eta (`float`, defaults to 0.0): 0 is deterministic, 1 has the noise of ancestral sampling.
            generator (`torch.Generator` or a list of them, *optional*): Used only where `eta` is above 0.
            cond_grad (`torch.Tensor` of shape `[B, C, H, W]`, *optional*): Gradient of a log-likelihood with respect
                to x_t, added to the score (arXiv 2105.05233, algorithm 2).
            timestep, sample, denoised_fn, return_dict: As in [`~GLIDEDDPMScheduler.step`].

        Returns, Raises: As [`~GLIDEDDPMScheduler.step`]; `eta` must lie between 0 and 1.
        """
        x_start, model_variance = self._predict(model_output, timestep, sample, denoised_fn)
        output = self.step_from_x_start(x_start, model_variance, timestep, sample, eta, generator, cond_grad)
        return output if return_dict else output.to_tuple()

    def step_from_x_start(
        self,
        x_start: torch.Tensor,
        model_variance: torch.Tensor | None,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        cond_grad: torch.Tensor | None = None,
    ) -> DDIMSchedulerOutput:
        """[`~GLIDEDDIMScheduler.step`] from an estimate of x_0 `[B, C, H, W]` that is constrained already; the variance
        is not used."""
        if isinstance(eta, bool) or not isinstance(eta, Real) or not 0 <= eta <= 1:
            raise ValueError(f"`eta` must lie between 0 and 1, got {eta!r}.")
        step = self.step_index_of(timestep)
        if cond_grad is not None:
            check_tensor("cond_grad", cond_grad, *sample.shape)
        x_t = sample.to(at_least_float32(sample.dtype))
        # A gradient shifts the noise, and x_0 with it; that x_0 is not clipped again.
        noise_pred = self.process.noise_of(x_t, x_start, step, None if cond_grad is None else cond_grad.to(x_t.dtype))
        if cond_grad is not None:
            x_start = self.process.predict_x_start(x_t, noise_pred, step)
        alpha_bar_prev = self.process.alphas_cumprod_prev[step].item()
        sigma = eta * self.process.posterior_variance[step].sqrt().item()
        prev_sample = alpha_bar_prev**0.5 * x_start + (1 - alpha_bar_prev - sigma**2) ** 0.5 * noise_pred
        if sigma > 0:
            prev_sample = prev_sample + sigma * randn_tensor(
                x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype
            )
        return DDIMSchedulerOutput(prev_sample.to(sample.dtype), x_start.to(sample.dtype))
