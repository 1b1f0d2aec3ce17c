"""One run of any diffusers scheduler over a GLIDE model: planned once, then stepped."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Sequence

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from ..schedulers import (
    PREDICTION_TYPES,
    GaussianDiffusion,
    GLIDEScheduler,
    noise_of_prediction,
    space_timesteps,
    x_start_limit,
)
from ..schedulers.respacing import check_num_inference_steps, check_timesteps
from .denoiser import Prediction


class SchedulerRun:
    """A scheduler's timesteps and steps in one call, with one interface to GLIDE's schedulers and to diffusers' own.

    The run steps a copy: the scheduler that is given serves any number of runs, in any number of threads.

    `timesteps` beats `num_inference_steps`, which beats `default`.

    Args:
        scheduler (`SchedulerMixin`): Any scheduler of a model that predicts noise, or v.
        num_inference_steps (`int`, *optional*): So many steps, spaced in the scheduler's own way.
        timesteps (`str` or `Sequence[int]`, *optional*): A GLIDE respacing string or a descending list.
        default (`str` or `int`): A respacing, of which a stock scheduler gets as many steps in its own spacing, or a
            number of steps.
        generator (`torch.Generator` or a list of them, *optional*): Source of the noise of stochastic schedulers.
        eta (`float`, defaults to 0.0): DDIM's eta, for the schedulers that have one.
        strength (`float`, defaults to 1.0): The share of the steps, from the clean end, that is run (SDEdit).
        device (`torch.device`, *optional*): Where the timesteps are put.
        prefix (`str`, defaults to `""`): What the arguments' names begin with in error messages (`"super_res_"`).

    Attributes:
        scheduler: The copy.
        timesteps (`torch.Tensor`): Of the run, one entry per evaluation of the model, on the run's device.
        process ([`GaussianDiffusion`]): Noise levels at the scheduler's timesteps, ascending.
        limit: Keeps x_0 in its range, see [`x_start_limit`]; None if nothing does.
        init_noise_sigma: Standard deviation of the noise that sampling starts from.

    Raises:
        ValueError: if the scheduler is not one for predictions of noise or v over discrete training steps, or the
            choice of steps does not fit it.
    """

    def __init__(
        self,
        scheduler: SchedulerMixin,
        num_inference_steps: int | None = None,
        timesteps: str | Sequence[int] | None = None,
        default: str | int = "100",
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        prefix: str = "",
    ) -> None:
        if not isinstance(scheduler, GLIDEScheduler):
            _check_stock_scheduler(scheduler)
        self.scheduler = copy.deepcopy(scheduler)
        self.limit = x_start_limit(self.scheduler)
        self.prediction_type = self.scheduler.config.get("prediction_type", "epsilon")
        parameters = inspect.signature(scheduler.step).parameters
        # DDIM would keep the noise prediction that its own clip of x_0 has made inconsistent.
        offered = {"generator": generator, "eta": eta, "use_clipped_model_output": True}
        self._step_kwargs = {name: value for name, value in offered.items() if name in parameters}
        try:
            steps = self._set_timesteps(num_inference_steps, timesteps, default)
        except ValueError as error:
            # The scheduler speaks of its own arguments; say which of the pipeline's is meant.
            message = re.sub(r"\b(num_inference_steps|timesteps)(?=[`=])", rf"{prefix}\1", str(error))
            raise ValueError(message) from None
        self._first = self._skip(steps, strength)
        if self.scheduler.timesteps.isnan().any():
            raise ValueError(
                f"`{prefix}num_inference_steps`: {type(scheduler).__name__} makes timesteps that are not numbers of "
                f"{steps} steps on this noise schedule; choose more steps, or another scheduler."
            )
        # The scheduler keeps its own on the CPU: some ask them for their values at every step, and would wait for an
        # accelerator.
        own = self.scheduler.timesteps[self._first :]
        # MPS has no float64.
        self.timesteps = own.to(device, torch.float32 if own.is_floating_point() else own.dtype)
        self.init_noise_sigma = self.scheduler.init_noise_sigma
        if isinstance(self.scheduler, GLIDEScheduler):
            self.process = self.scheduler.process
        else:
            self.process = self._interpolated_process()
            if isinstance(self.scheduler, EulerAncestralDiscreteScheduler):
                # In float32 its steps take the root of a difference that rounding makes negative where few steps
                # cross the noisy end of the cosine schedule.
                self.scheduler.sigmas = self.scheduler.sigmas.double()
            # The denoiser has clipped x_0 by then; a gradient may have moved it since, and is not to be undone.
            own = {name for name in ("clip_sample", "thresholding") if self.scheduler.config.get(name, False)}
            self.scheduler.register_to_config(**dict.fromkeys(own, False), prediction_type="epsilon")

    def copy(self) -> SchedulerRun:
        """The same run from its beginning, as long as this one was not stepped."""
        run = copy.copy(self)
        run.scheduler = copy.deepcopy(self.scheduler)
        return run

    def __len__(self) -> int:
        """Evaluations of the model in the run."""
        return len(self.timesteps)

    def _own_timestep(self, index: int) -> torch.Tensor:
        return self.scheduler.timesteps[self._first + index]

    def process_step(self, index: int) -> int:
        """The step in the tables of `process` that belongs to an index into the run."""
        return len(self.process) - 1 - (self._first + index)

    def scale_model_input(self, sample: torch.Tensor, index: int) -> torch.Tensor:
        """x_t, the variance-preserving sample that the model sees, from the scheduler's own sample."""
        return self.scheduler.scale_model_input(sample, self._own_timestep(index))

    def noise_of_prediction(self, prediction: torch.Tensor, x_t: torch.Tensor, index: int) -> torch.Tensor:
        """The noise that the model's prediction stands for, which is all that the run steps."""
        return noise_of_prediction(self.prediction_type, self.process, prediction, x_t, self.process_step(index))

    def add_noise(self, x_start: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """A clean image with the noise of a step, in the scheduler's own scale."""
        timesteps = self._own_timestep(index).reshape(1).expand(x_start.shape[0])
        return self.scheduler.add_noise(x_start, noise, timesteps)

    def undo_step(self, sample: torch.Tensor, noise: torch.Tensor, index: int) -> torch.Tensor:
        """x_t from x_{t-1}: the forward step that the step at `index` undid (RePaint, arXiv 2201.09865, algorithm 1).

        For GLIDE's schedulers, whose sample is x_t itself.
        """
        return self.process.forward_step(sample, noise, self.process_step(index))

    def step(self, index: int, prediction: Prediction, sample: torch.Tensor, model_input: torch.Tensor) -> torch.Tensor:
        """One step of the run.

        Args:
            index (`int`): Index into the run's timesteps.
            prediction ([`Prediction`]): Of the denoiser at that step.
            sample (`torch.Tensor` of shape `[B, 3, H, W]`): The scheduler's current sample.
            model_input (`torch.Tensor` of shape `[B, 3, H, W]`): x_t, the same sample as the model saw it.

        Returns:
            `torch.Tensor` of shape `[B, 3, H, W]`: the next sample.
        """
        timestep = self._own_timestep(index)
        if isinstance(self.scheduler, GLIDEScheduler):
            # x_0 and not the noise: near the end of the cosine schedule going back and forth costs half of the
            # precision that the recorded numbers ask for.
            return self.scheduler.step_from_x_start(
                prediction.x_start,
                prediction.model_variance,
                timestep,
                sample,
                cond_grad=prediction.score_grad,
                **self._step_kwargs,
            ).prev_sample
        noise_pred = prediction.noise_pred
        if prediction.is_constrained or prediction.score_grad is not None:
            noise_pred = self.process.noise_of(
                model_input, prediction.x_start, self.process_step(index), prediction.score_grad
            )
        model_output = noise_pred
        if self._takes_variance and prediction.model_variance is not None:
            model_output = torch.cat([noise_pred, prediction.model_variance], dim=1)
        return self.scheduler.step(model_output, timestep, sample, **self._step_kwargs, return_dict=False)[0]

    @property
    def _takes_variance(self) -> bool:
        """Whether a stock scheduler wants the variance channels beside the noise prediction."""
        # A config keeps `variance_type` also for schedulers that have none, and others only cut the channels off.
        uses_it = isinstance(self.scheduler, DDPMScheduler | DDPMParallelScheduler)
        return uses_it and self.scheduler.config.variance_type == "learned_range"

    # -- planning -----------------------------------------------------------------------------------------------------

    def _set_timesteps(self, count: int | None, timesteps: str | Sequence[int] | None, default: str | int) -> int:
        """Returns how many steps were asked for: not every scheduler keeps the number of a list of timesteps."""
        total = self.scheduler.config.num_train_timesteps
        if timesteps is None and count is None:
            if isinstance(default, int):
                count = default
            elif isinstance(self.scheduler, GLIDEScheduler):
                timesteps = default
            else:
                count = len(space_timesteps(default, total))
        if isinstance(self.scheduler, GLIDEScheduler):  # checks both itself
            self.scheduler.set_timesteps(count if timesteps is None else None, timesteps=timesteps)
            return len(self.scheduler.timesteps)
        if timesteps is None:
            count = check_num_inference_steps(count, total)
            self.scheduler.set_timesteps(count)
            return count
        if "timesteps" not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(
                f"`timesteps` are not taken by {type(self.scheduler).__name__}; choose a number of steps, or a "
                "scheduler that takes them (GLIDE's, DDPM, DPM-Solver, Euler, Heun, LCM)."
            )
        kept = space_timesteps(timesteps, total) if isinstance(timesteps, str) else check_timesteps(timesteps, total)
        self.scheduler.set_timesteps(timesteps=kept)
        return len(kept)

    def _skip(self, steps: int, strength: float) -> int:
        """How many of the scheduler's timesteps `strength` skips."""
        skipped = steps - min(int(steps * strength), steps)
        if skipped == steps:
            raise ValueError(f"`strength` {strength} leaves none of the {steps} steps: raise it, or take more.")
        first = skipped * self.scheduler.order
        if skipped and isinstance(self.scheduler, PNDMScheduler):
            first = self._skip_pndm(skipped, strength)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(first)
        return first

    def _skip_pndm(self, skipped: int, strength: float) -> int:
        """PNDM counts its calls, and takes the second one for the repeat of the second timestep: repeat that."""
        if not self.scheduler.config.skip_prk_steps:
            raise ValueError(
                f"`strength` {strength} cannot cut the Runge-Kutta start of {type(self.scheduler).__name__}: make "
                "the scheduler with `skip_prk_steps=True`."
            )
        # The whole run has a repeat of its own, at index 1.
        run = self.scheduler.timesteps[skipped + 1 :]
        self.scheduler.timesteps = torch.cat([run[:2], run[1:]])
        return 0

    def _interpolated_process(self) -> GaussianDiffusion:
        """The process over a stock scheduler's timesteps.

        Between training timesteps (Karras spacing) the noise level is interpolated, or known, where a scheduler rounds
        its timesteps and steps by its own noise levels.
        """
        ascending = self.scheduler.timesteps.cpu().flip(0)
        if hasattr(self.scheduler, "sigmas") and not self.scheduler.timesteps.is_floating_point():
            sigmas = self.scheduler.sigmas[: len(ascending)].cpu().double().flip(0)
        else:
            alphas_cumprod = self.scheduler.alphas_cumprod.cpu().double()
            training = GaussianDiffusion(torch.arange(len(alphas_cumprod)), alphas_cumprod).sigmas
            below = ascending.floor().long().clamp(0, len(training) - 1)
            above = (below + 1).clamp(max=len(training) - 1)
            sigmas = torch.lerp(training[below], training[above], ascending.double() - below)
        return GaussianDiffusion.from_sigmas(ascending, sigmas)


def _check_stock_scheduler(scheduler: SchedulerMixin) -> None:
    name = type(scheduler).__name__
    prediction_type = scheduler.config.get("prediction_type", "epsilon")
    if not hasattr(scheduler, "alphas_cumprod") or prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"`scheduler` must step predictions of noise or v over discrete training timesteps; {name} with "
            f"prediction_type={prediction_type!r} does not."
        )
    if not scheduler.alphas_cumprod.isfinite().all():
        raise ValueError(f"`scheduler` must have a finite noise schedule; the `betas` of this {name} are not.")
    needed = [
        parameter.name
        for parameter in inspect.signature(scheduler.step).parameters.values()
        if parameter.default is parameter.empty and parameter.name not in ("model_output", "timestep", "sample")
    ]
    if needed or not hasattr(scheduler, "order"):
        lacks = f"its `step` needs {', '.join(needed)}" if needed else "it is made for one pipeline of its own"
        raise ValueError(f"`scheduler` must step by noise prediction, timestep and sample; {name}: {lacks}.")
