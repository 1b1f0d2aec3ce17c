"""DDIM sampling on any spacing, as GLIDE samples its upsampler."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from .scheduling_glide import GLIDEScheduler


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
            timestep (`int` or `torch.Tensor`): One of `scheduler.timesteps`.
            sample (`torch.Tensor` of shape `[B, C, H, W]`): x_t.
            eta (`float`, defaults to 0.0): 0 is deterministic, 1 has the noise of ancestral sampling.
            generator (`torch.Generator` or a list of them, *optional*): Used only where `eta` is above 0.
            denoised_fn (`Callable`, *optional*): Changes the estimate of x_0 before it is clipped.
            cond_grad (`torch.Tensor` of shape `[B, C, H, W]`, *optional*): Gradient of a log-likelihood with respect
                to x_t, added to the score (arXiv 2105.05233, algorithm 2).
            return_dict (`bool`, defaults to `True`): False gives a tuple.

        Returns:
            [`~diffusers.schedulers.scheduling_ddim.DDIMSchedulerOutput`]: `prev_sample`, x_{t-1},
            and `pred_original_sample`, the estimate of x_0 that the step used.

        Raises:
            ValueError: if the timestep is none of the chosen ones, the shapes do not fit, or `eta` is not in [0, 1].
        """
        if not 0 <= eta <= 1:
            raise ValueError(f"`eta` must lie between 0 and 1, got {eta}.")
        step = self.step_index_of(timestep)
        noise_pred, _ = self._split(model_output, sample)
        x_t = sample.to(noise_pred.dtype)
        x_start = self._estimate_x_start(noise_pred, step, x_t, denoised_fn)
        # The noise that goes with the changed and clipped x_0. A gradient shifts it, and x_0 with it; that x_0 is not
        # clipped again.
        noise_pred = self.process.predict_noise(x_t, x_start, step)
        if cond_grad is not None:
            noise_pred = self.process.shift_noise(noise_pred, cond_grad.to(x_t.dtype), step)
            x_start = self.process.predict_x_start(x_t, noise_pred, step)
        alpha_bar_prev = self.process.alphas_cumprod_prev[step].item()
        sigma = eta * self.process.posterior_variance[step].sqrt().item()
        prev_sample = alpha_bar_prev**0.5 * x_start + (1 - alpha_bar_prev - sigma**2) ** 0.5 * noise_pred
        if sigma > 0:
            prev_sample = prev_sample + sigma * randn_tensor(
                x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype
            )
        output = DDIMSchedulerOutput(prev_sample.to(sample.dtype), x_start.to(sample.dtype))
        return output if return_dict else output.to_tuple()
