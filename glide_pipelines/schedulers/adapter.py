"""Stepping any diffusers scheduler with a GLIDE model: learned variance, known pixels and score gradients included."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from diffusers import DDPMParallelScheduler, DDPMScheduler, PNDMScheduler, SchedulerMixin

from .gaussian_diffusion import GaussianDiffusion
from .respacing import check_num_inference_steps, check_timesteps, space_timesteps
from .scheduling_glide import GLIDEScheduler


class SchedulerAdapter:
    """One run of a scheduler, with one interface to GLIDE's schedulers and to diffusers' own.

    GLIDE's schedulers take the variance channels and the two hooks of a step themselves. For any other scheduler the
    noise prediction is rewritten before the step: in the space of the model's input, which is the
    variance-preserving x_t for every scheduler, x_0 is estimated, changed (known pixels), clipped, turned back into
    noise, and shifted by the score gradient.

    `timesteps` beats `num_inference_steps`, which beats `default`.

    Args:
        scheduler (`SchedulerMixin`): Any scheduler of a noise-predicting model; it is the very object that is stepped.
        num_inference_steps (`int`, *optional*): So many steps, spread in the scheduler's own way.
        timesteps (`str` or `Sequence[int]`, *optional*): A GLIDE respacing string or a descending list.
        default (`str`): A respacing; a stock scheduler gets as many steps in its own spacing.
        generator (`torch.Generator` or a list of them, *optional*): Source of the noise of stochastic schedulers.
        eta (`float`, defaults to 0.0): DDIM's eta, for the schedulers that have one.
        strength (`float`, defaults to 1.0): The share of the steps, from the clean end, that is run (SDEdit).
        prefix (`str`, defaults to `""`): What the arguments' names begin with in error messages (`"super_res_"`).

    Raises:
        ValueError: if the scheduler is not one for noise predictions over discrete training steps.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        num_inference_steps: int | None = None,
        timesteps: str | Sequence[int] | None = None,
        default: str = "100",
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        strength: float = 1.0,
        prefix: str = "",
    ) -> None:
        self.scheduler = scheduler
        self.num_inference_steps = num_inference_steps
        self.timesteps = timesteps
        self.default = default
        self.strength = strength
        self.prefix = prefix
        self.is_glide = isinstance(scheduler, GLIDEScheduler)
        if not self.is_glide:
            self._check_stock_scheduler()
        parameters = inspect.signature(scheduler.step).parameters
        # DDIM would keep the noise prediction that its own clip of x_0 has made inconsistent.
        offered = {"generator": generator, "eta": eta, "use_clipped_model_output": True}
        self.step_kwargs = {name: value for name, value in offered.items() if name in parameters}

    def _check_stock_scheduler(self) -> None:
        name = type(self.scheduler).__name__
        prediction_type = self.scheduler.config.get("prediction_type", "epsilon")
        if not hasattr(self.scheduler, "alphas_cumprod") or prediction_type != "epsilon":
            raise ValueError(
                f"`scheduler` must step noise predictions over discrete training timesteps; {name} with "
                f"prediction_type={prediction_type!r} does not."
            )
        needed = [
            parameter.name
            for parameter in inspect.signature(self.scheduler.step).parameters.values()
            if parameter.default is parameter.empty and parameter.name not in ("model_output", "timestep", "sample")
        ]
        if needed or not hasattr(self.scheduler, "order"):
            lacks = f"its `step` needs {', '.join(needed)}" if needed else "it is made for one pipeline of its own"
            raise ValueError(f"`scheduler` must step by noise prediction, timestep and sample; {name}: {lacks}.")

    @functools.cached_property
    def takes_variance(self) -> bool:
        """Whether the scheduler wants the variance channels beside the noise prediction."""
        # A config keeps `variance_type` also for schedulers that have none, and others only cut the channels off.
        uses_it = isinstance(self.scheduler, DDPMScheduler | DDPMParallelScheduler)
        return self.is_glide or (uses_it and self.scheduler.config.variance_type == "learned_range")

    def start(self, device: torch.device | str | None = None) -> torch.Tensor:
        """Begin the run: set the scheduler's timesteps and forget any run before.

        Args:
            device (`torch.device`, *optional*): Where the timesteps are put.

        Returns:
            `torch.Tensor`: The timesteps of the run, one entry per evaluation of the model.

        Raises:
            ValueError: if the choice of steps does not fit the scheduler.
        """
        try:
            steps = self._set_timesteps(device)
        except ValueError as error:
            # The scheduler speaks of its own arguments; say which of the pipeline's is meant.
            message = re.sub(r"\b(num_inference_steps|timesteps)(?=[`=])", rf"{self.prefix}\1", str(error))
            raise ValueError(message) from None
        skipped = steps - min(int(steps * self.strength), steps)
        if skipped == steps:
            raise ValueError(f"`strength` {self.strength} leaves none of the {steps} steps: raise it, or take more.")
        self._first = skipped * self.scheduler.order
        if skipped and isinstance(self.scheduler, PNDMScheduler):
            self._cut_pndm(skipped)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(self._first)
        # Read once: asking a tensor on an accelerator for its values inside the loop would wait for it.
        self._timestep_values = self.scheduler.timesteps.tolist()
        # Kept, since the run of another stage may set the same scheduler to other steps before this one's turn comes.
        self.init_noise_sigma = self.scheduler.init_noise_sigma
        if not self.is_glide:
            self._process = self._interpolated_process()
        return self.scheduler.timesteps[self._first :]

    def __len__(self) -> int:
        """Evaluations of the model in the run."""
        return len(self._timestep_values) - self._first

    def timestep(self, index: int) -> torch.Tensor:
        """The timestep at an index into the run, of shape `[1]`, on the run's device."""
        return self.scheduler.timesteps[self._first + index].reshape(1)

    def timestep_value(self, index: int) -> float:
        """The timestep at an index into the run, as a number."""
        return self._timestep_values[self._first + index]

    def _set_timesteps(self, device: torch.device | str | None) -> int:
        """Returns how many steps were asked for: not every scheduler keeps the number of a list of timesteps."""
        total = self.scheduler.config.num_train_timesteps
        count, timesteps = self.num_inference_steps, self.timesteps
        if timesteps is None and count is None:
            if self.is_glide:
                timesteps = self.default
            else:
                count = len(space_timesteps(self.default, total))
        if timesteps is None:
            check_num_inference_steps(count, total)
            self.scheduler.set_timesteps(count, device=device)
            return count
        if "timesteps" not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(
                f"`timesteps` are not taken by {type(self.scheduler).__name__}; choose a number of steps, or a "
                "scheduler that takes them (GLIDE's, DDPM, DPM-Solver, Euler, Heun, LCM)."
            )
        if isinstance(timesteps, str):
            timesteps = space_timesteps(timesteps, total)
        kept = check_timesteps(timesteps, total)
        self.scheduler.set_timesteps(timesteps=kept, device=device)
        return len(kept)

    def _cut_pndm(self, skipped: int) -> None:
        """PNDM counts its calls, and takes the second one for the repeat of the second timestep: repeat that."""
        if not self.scheduler.config.skip_prk_steps:
            raise ValueError(
                f"`strength` {self.strength} cannot cut the Runge-Kutta start of {type(self.scheduler).__name__}: make "
                "the scheduler with `skip_prk_steps=True`."
            )
        # The whole run has a repeat of its own, at index 1.
        run = self.scheduler.timesteps[skipped + 1 :]
        self.scheduler.timesteps = torch.cat([run[:2], run[1:]])
        self._first = 0

    def step(
        self,
        index: int,
        noise_pred: torch.Tensor,
        model_variance: torch.Tensor | None,
        sample: torch.Tensor,
        model_input: torch.Tensor,
        denoised_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        cond_grad: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One step of the run that [`~SchedulerAdapter.start`] began.

        Args:
            index (`int`): Index into the run's timesteps.
            noise_pred (`torch.Tensor` of shape `[B, 3, H, W]`): The (guided) noise prediction.
            model_variance (`torch.Tensor` of shape `[B, 3, H, W]`, *optional*): The model's variance channels.
            sample (`torch.Tensor` of shape `[B, 3, H, W]`): The scheduler's current sample.
            model_input (`torch.Tensor` of shape `[B, 3, H, W]`): x_t, the same sample as the model saw it.
            denoised_fn (`Callable`, *optional*): Changes the estimate of x_0.
            cond_grad (`torch.Tensor` of shape `[B, 3, H, W]`, *optional*): Gradient to be added to the score.

        Returns:
            `torch.Tensor` of shape `[B, 3, H, W]`: the next sample.
        """
        if self.is_glide:
            return self.scheduler.step(
                self._join(noise_pred, model_variance),
                self.timestep_value(index),
                sample,
                denoised_fn=denoised_fn,
                cond_grad=cond_grad,
                **self.step_kwargs,
            ).prev_sample
        step = len(self._process) - 1 - (self._first + index)
        noise_pred = self._rewrite(noise_pred, model_input, step, denoised_fn, cond_grad)
        model_output = self._join(noise_pred, model_variance) if self.takes_variance else noise_pred
        timestep = self.scheduler.timesteps[self._first + index]
        with self._without_clip() if cond_grad is not None else contextlib.nullcontext():
            return self.scheduler.step(model_output, timestep, sample, **self.step_kwargs, return_dict=False)[0]

    @contextlib.contextmanager
    def _without_clip(self) -> Iterator[None]:
        """x_0 was clipped or thresholded before the gradient moved it; the scheduler would undo the move."""
        own = {name: True for name in ("clip_sample", "thresholding") if self.scheduler.config.get(name, False)}
        self.scheduler.register_to_config(**dict.fromkeys(own, False))
        try:
            yield
        finally:
            self.scheduler.register_to_config(**own)

    @staticmethod
    def _join(noise_pred: torch.Tensor, model_variance: torch.Tensor | None) -> torch.Tensor:
        return noise_pred if model_variance is None else torch.cat([noise_pred, model_variance], dim=1)

    def _rewrite(
        self,
        noise_pred: torch.Tensor,
        model_input: torch.Tensor,
        step: int,
        denoised_fn: Callable[[torch.Tensor], torch.Tensor] | None,
        cond_grad: torch.Tensor | None,
    ) -> torch.Tensor:
        config = self.scheduler.config
        # A config keeps `thresholding` also for schedulers that have none.
        threshold = config.get("thresholding", False) and hasattr(self.scheduler, "_threshold_sample")
        clip = config.get("clip_sample", True) and not threshold
        if denoised_fn is None and cond_grad is None and not clip:
            return noise_pred
        x_start = self._process.predict_x_start(model_input, noise_pred, step)
        if denoised_fn is not None:
            x_start = denoised_fn(x_start)
        if clip:
            limit = config.get("clip_sample_range", 1.0)
            x_start = x_start.clamp(-limit, limit)
        elif threshold and cond_grad is not None:
            # Without a gradient the scheduler is left to do so itself.
            x_start = self.scheduler._threshold_sample(x_start)
        noise_pred = self._process.predict_noise(model_input, x_start, step)
        return noise_pred if cond_grad is None else self._process.shift_noise(noise_pred, cond_grad, step)

    def _interpolated_process(self) -> GaussianDiffusion:
        """The process over the run's timesteps. Between training timesteps (Karras spacing) the noise level is
        interpolated, or known, where a scheduler rounds its timesteps and steps by its own noise levels."""
        ascending = self._timestep_values[::-1]
        if hasattr(self.scheduler, "sigmas") and not self.scheduler.timesteps.is_floating_point():
            sigmas = self.scheduler.sigmas[: len(ascending)].cpu().double().flip(0).numpy()
        else:
            alphas_cumprod = self.scheduler.alphas_cumprod.cpu().double().numpy()
            training_sigmas = ((1 - alphas_cumprod) / alphas_cumprod) ** 0.5
            sigmas = np.interp(ascending, np.arange(len(training_sigmas)), training_sigmas)
        return GaussianDiffusion(torch.tensor(ascending), torch.from_numpy(1 / (sigmas**2 + 1)))
