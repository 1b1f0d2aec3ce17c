"""Ancestral sampling with the learned variance, as GLIDE samples its base model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from ..arguments import check_tensor
from .scheduling_glide import LEARNED, GLIDEScheduler, at_least_float32


class GLIDEDDPMScheduler(GLIDEScheduler):
    __doc__ = (
        "Ancestral (DDPM) steps, arXiv 2006.11239, with learned-range variance, arXiv 2102.09672.\n\n"
        + (GLIDEScheduler.__doc__.split("\n\n", 1)[1])
    )

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        denoised_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        cond_grad: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Draw x_{t-1} from its posterior given x_t and the estimate of x_0 (DDPM, algorithm 2).

        Args:
            model_output (`torch.Tensor` of shape `[B, 2C, H, W]` or `[B, C, H, W]`): Noise prediction, then variance
                channels (needed by `variance_type="learned_range"`).
            timestep (`int` or `torch.Tensor`): One of `scheduler.timesteps`.
            sample (`torch.Tensor` of shape `[B, C, H, W]`): x_t.
            generator (`torch.Generator` or a list of them, *optional*): One draw of noise is made at every step, the
                last one included, where it is not used.
            denoised_fn (`Callable`, *optional*): Changes the estimate of x_0 before it is clipped.
            cond_grad (`torch.Tensor` of shape `[B, C, H, W]`, *optional*): Gradient of a log-likelihood with respect
                to x_t; the mean is shifted by variance times gradient (arXiv 2105.05233, algorithm 1).
            return_dict (`bool`, defaults to `True`): False gives a tuple.

        Returns:
            [`~diffusers.schedulers.scheduling_ddpm.DDPMSchedulerOutput`]: `prev_sample`, x_{t-1},
            and `pred_original_sample`, the estimate of x_0 that the step used.

        Raises:
            ValueError: if the timestep is none of the chosen ones or the shapes do not fit.
        """
        x_start, model_variance = self._predict(model_output, timestep, sample, denoised_fn)
        output = self.step_from_x_start(x_start, model_variance, timestep, sample, generator, cond_grad)
        return output if return_dict else output.to_tuple()

    def step_from_x_start(
        self,
        x_start: torch.Tensor,
        model_variance: torch.Tensor | None,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        cond_grad: torch.Tensor | None = None,
    ) -> DDPMSchedulerOutput:
        """[`~GLIDEDDPMScheduler.step`] from an estimate of x_0 `[B, C, H, W]` that is constrained already, and the
        model's variance channels `[B, C, H, W]`."""
        step = self.step_index_of(timestep)
        if cond_grad is not None:
            check_tensor("cond_grad", cond_grad, *sample.shape)
        x_t = sample.to(at_least_float32(sample.dtype))
        log_variance = self._log_variance(model_variance, step, x_t)
        prev_sample = self.process.posterior_mean(x_start, x_t, step)
        if cond_grad is not None:
            prev_sample = prev_sample + log_variance.exp() * cond_grad.to(x_t.dtype)
        noise = randn_tensor(x_t.shape, generator=generator, device=x_t.device, dtype=x_t.dtype)
        if step > 0:
            prev_sample = prev_sample + (0.5 * log_variance).exp() * noise
        return DDPMSchedulerOutput(prev_sample.to(sample.dtype), x_start.to(sample.dtype))

    def _log_variance(self, model_variance: torch.Tensor | None, step: int, x_t: torch.Tensor) -> torch.Tensor:
        if self.config.variance_type in LEARNED:
            if model_variance is None:
                raise ValueError(
                    "`variance_type='learned_range'` needs a `model_output` with variance channels, "
                    f"twice the {x_t.shape[1]} of `sample`."
                )
            return self.process.learned_log_variance(model_variance, step)
        log_variance = self.process.posterior_log_variance[step]
        if self.config.variance_type == "fixed_large" and step > 0:
            log_variance = self.process.betas[step].log()
        return log_variance.to(at_least_float32(x_t.dtype))
