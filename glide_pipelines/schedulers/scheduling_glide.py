"""What GLIDE's two schedulers share: float64 tables, respacing, and one estimate of the clean image."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import logging

from ..arguments import check_tensor
from .gaussian_diffusion import GaussianDiffusion, make_betas
from .respacing import check_num_inference_steps, check_num_train_timesteps, check_timesteps, space_timesteps


LEARNED = ("learned_range", None)
VARIANCE_TYPES = (*LEARNED, "fixed_small", "fixed_large")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")
PREDICTION_TYPES = ("epsilon", "v_prediction")

logger = logging.get_logger(__name__)


class GLIDEScheduler(DDPMScheduler):
    """Base of [`GLIDEDDPMScheduler`] and [`GLIDEDDIMScheduler`], which differ only in `step`.

    Beside diffusers' own schedulers these two have float64 tables, GLIDE's respacing, learned-range variance, and two
    hooks in `step`: one changes x_0 (known pixels), the other adds a gradient to the score (CLIP, a classifier).

    Args:
        num_train_timesteps (`int`, defaults to 1000): Steps T of the training process.
        beta_start, beta_end (`float`, defaults to 0.0001 and 0.02): Range of beta; unused by the cosine schedule.
        beta_schedule (`str`, defaults to `"linear"`): `"linear"`, `"scaled_linear"`, `"sigmoid"` or
            `"squaredcos_cap_v2"`.
        trained_betas (`Sequence[float]`, *optional*): The betas themselves, in place of a schedule.
        variance_type (`str`, defaults to `"learned_range"`): Where the ancestral step's variance comes from: the
            model's second half of channels (`"learned_range"`, or None as some of diffusers' schedulers have it), or
            beta~ (`"fixed_small"`) or beta (`"fixed_large"`).
        clip_sample (`bool`, defaults to `True`): Clip x_0 to `[-clip_sample_range, clip_sample_range]` at each step.
        clip_sample_range (`float`, defaults to 1.0): See `clip_sample`.
        prediction_type (`str`, defaults to `"epsilon"`): What the model predicts: noise, as GLIDE's own do, or
            `"v_prediction"` (arXiv 2202.00512, section 4).
        thresholding (`bool`, defaults to `False`): Dynamic thresholding of x_0 (Imagen, arXiv 2205.11487, section
            2.3), in place of clipping.
        dynamic_thresholding_ratio (`float`, defaults to 0.995): The percentile of |x_0| that is the threshold.
        sample_max_value (`float`, defaults to 1.0): The largest threshold; at 1.0 it equals clipping.
        timestep_spacing (`str`, defaults to `"linspace"`): How an integer number of steps is spread: `"linspace"`
            (GLIDE's own, both ends included), `"leading"` or `"trailing"` as in diffusers.
        steps_offset (`int`, defaults to 0): Added to the timesteps of the `"leading"` spacing.
        lambda_min_clipped (`float`, defaults to -5.1): Not used here; carried to the DPM-Solvers made from this config,
            which need it on the cosine schedule (no effect on the linear one).
        skip_prk_steps (`bool`, defaults to `True`): Not used here; carried to a `PNDMScheduler` made from this config,
            whose Runge-Kutta start is unstable on the cosine schedule.
        trained_timesteps (`list[int]`, *optional*): The only timesteps that the model was trained at, descending: those
            of a few-step student. They are its default and what as many steps stand for; others get a warning.
        default_timesteps (`list[int]`, *optional*): The few timesteps that a checkpoint recommends, descending: what
            as many steps stand for, and the default where the prompt and known pixels alone decide, without a
            `cond_fn`, a CLIP or a sketch.
    """

    betas: torch.Tensor
    alphas_cumprod: torch.Tensor
    train_process: GaussianDiffusion
    custom_timesteps: bool

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str | None = "learned_range",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        lambda_min_clipped: float = -5.1,
        skip_prk_steps: bool = True,
        trained_timesteps: Sequence[int] | None = None,
        default_timesteps: Sequence[int] | None = None,
    ) -> None:
        for name, choice, allowed in (
            ("prediction_type", prediction_type, PREDICTION_TYPES),
            ("variance_type", variance_type, VARIANCE_TYPES),
            ("timestep_spacing", timestep_spacing, TIMESTEP_SPACINGS),
        ):
            if not isinstance(choice, str | None) or choice not in allowed:  # an array compares with each of them
                raise ValueError(f"`{name}` must be one of {allowed}, got {choice!r}.")
        for name, flag in (("clip_sample", clip_sample), ("thresholding", thresholding)):
            if not isinstance(flag, bool):
                raise TypeError(f"`{name}` must be True or False, got {flag!r}.")
        check_num_train_timesteps(num_train_timesteps)
        for name, own in (("trained_timesteps", trained_timesteps), ("default_timesteps", default_timesteps)):
            if own is not None:
                try:
                    check_timesteps(own, num_train_timesteps)
                except ValueError as error:
                    raise ValueError(f"`{name}`: {error}") from error
        for name, value in (
            ("beta_start", beta_start),
            ("beta_end", beta_end),
            ("clip_sample_range", clip_sample_range),
            ("dynamic_thresholding_ratio", dynamic_thresholding_ratio),
            ("sample_max_value", sample_max_value),
        ):
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
                raise ValueError(f"`{name}` must be a finite number above 0, got {value!r}.")
        if isinstance(steps_offset, bool) or not isinstance(steps_offset, Integral):
            raise TypeError(f"`steps_offset` must be an integer, got {steps_offset!r}.")
        if dynamic_thresholding_ratio > 1:
            raise ValueError(f"`dynamic_thresholding_ratio` must be 1 or less, got {dynamic_thresholding_ratio}.")
        # diffusers drops the values that are named here when a config goes to a class of its own, whose defaults are
        # others: only those that it would warn of, and that mean nothing there.
        unknown = ["default_timesteps"] if trained_timesteps is not None else ["default_timesteps", "trained_timesteps"]
        self.register_to_config(_use_default_values=unknown)
        if trained_betas is not None:
            try:
                self.betas = torch.as_tensor(trained_betas, dtype=torch.float64)
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"`trained_betas` must be numbers: {error}") from error
            if self.betas.shape != (num_train_timesteps,):
                raise ValueError(
                    f"`trained_betas` must hold one for each of `num_train_timesteps` {num_train_timesteps}, "
                    f"got {self.betas.numel()}."
                )
        else:
            self.betas = make_betas(beta_schedule, num_train_timesteps, beta_start, beta_end)
        self.train_process = GaussianDiffusion.from_betas(self.betas)
        if not (self.betas > 0).all() or not self.train_process.is_usable():
            fields = "`beta_start` and `beta_end`" if trained_betas is None else "`trained_betas`"
            raise ValueError(
                f"{fields} must lie between 0 and 1 and leave some of the image at the last of the "
                f"{num_train_timesteps} steps, got betas from {self.betas.min().item()} to {self.betas.max().item()}."
            )
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.train_process.alphas_cumprod
        self.init_noise_sigma = 1.0
        self.custom_timesteps = False
        self.num_inference_steps: int | None = None
        self._visit(list(range(num_train_timesteps))[::-1])

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None = None, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """As any scheduler of diffusers; what is wrong with a config is told with the name of its file."""
        try:
            return super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        except (TypeError, ValueError) as error:
            path = "/".join(str(part) for part in (pretrained_model_name_or_path, subfolder) if part is not None)
            raise ValueError(f"{path}/{cls.config_name}: {error}") from error

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        # A config of diffusers' own schedulers too names what was left at its default, to have it dropped.
        config_dict = {name: value for name, value in config_dict.items() if name != "_use_default_values"}
        return super().extract_init_dict(config_dict, **kwargs)

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: str | Sequence[int] | torch.Tensor | None = None,
    ) -> None:
        """Choose the timesteps that sampling visits, before a run.

        Args:
            num_inference_steps (`int`, *optional*): So many steps, spread as `timestep_spacing` says, or the
                `trained_timesteps` or `default_timesteps`, if they are as many.
            device (`str` or `torch.device`, *optional*): Where `scheduler.timesteps` is put.
            timesteps (`str` or `Sequence[int]`, *optional*): The timesteps themselves, descending, or a GLIDE
                respacing string ([`space_timesteps`]), in place of `num_inference_steps`.

        Raises:
            ValueError: if both or none are given, a string is no respacing, the timesteps do not descend, or one is
                outside the training process.
        """
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Pass exactly one of `num_inference_steps` and `timesteps`.")
        total, trained = self.config.num_train_timesteps, self.config.trained_timesteps
        own = trained or self.config.default_timesteps
        if isinstance(timesteps, str):
            kept = space_timesteps(timesteps, total)
        elif timesteps is not None:
            kept = check_timesteps(timesteps, total)
        else:
            num_inference_steps = check_num_inference_steps(num_inference_steps, total)
            if own is not None and num_inference_steps == len(own):
                kept = list(own)
            elif self.config.timestep_spacing == "linspace":
                kept = space_timesteps(str(num_inference_steps), total)
            else:
                super().set_timesteps(num_inference_steps)
                # Trailing, diffusers takes a timestep -1 too many for some numbers (61, for one): rounding.
                kept = check_timesteps(self.timesteps[:num_inference_steps], total)
        if trained is not None and kept != list(trained):
            logger.warning(
                f"The model was distilled for {len(trained)} steps, at the timesteps {list(trained)}; it was never "
                "trained at others."
            )
        self.custom_timesteps = timesteps is not None
        self.num_inference_steps = len(kept)
        self._visit(kept, device)

    def _visit(self, timesteps: list[int], device: str | torch.device | None = None) -> None:
        self.timesteps: torch.Tensor = torch.tensor(timesteps)
        self.process = self.train_process.respaced(self.timesteps.flip(0))
        self.timesteps = self.timesteps.to(device)
        self._step_of = {timestep: len(timesteps) - 1 - index for index, timestep in enumerate(timesteps)}

    def step_index_of(self, timestep: int | torch.Tensor) -> int:
        """Index of a timestep in the tables of `scheduler.process`; 0 is the last step before the clean image."""
        try:
            return self._step_of[int(timestep)]
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError):
            raise ValueError(
                f"`timestep` must be one of `scheduler.timesteps` ({len(self._step_of)} of them), got {timestep!r}."
            ) from None

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t for each example's own training timestep.

        Args:
            original_samples (`torch.Tensor` of shape `[B, C, H, W]`): x_0, in [-1, 1].
            noise (`torch.Tensor` of shape `[B, C, H, W]`): Unit Gaussian noise.
            timesteps (`torch.Tensor` of shape `[B]`): Training timesteps, 0 to T - 1.

        Returns:
            `torch.Tensor` of shape `[B, C, H, W]`.
        """
        return self.train_process.q_sample(original_samples, noise, timesteps)

    def _predict(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        denoised_fn: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x_0, changed by `denoised_fn` and then clipped, and the variance channels, in float32 or better."""
        step = self.step_index_of(timestep)
        check_tensor("sample", sample, "batch", "channels", "height", "width")
        check_tensor("model_output", model_output, len(sample), "channels", *sample.shape[2:])
        channels = sample.shape[1]
        if model_output.shape[1] not in (channels, 2 * channels):
            raise ValueError(
                f"`model_output` must have {channels} or {2 * channels} channels and the size of `sample` "
                f"{list(sample.shape)}, got {list(model_output.shape)}."
            )
        x_t = sample.to(at_least_float32(sample.dtype))
        prediction, *variance = model_output.to(x_t.dtype).split(channels, dim=1)
        noise_pred = noise_of_prediction(self.config.prediction_type, self.process, prediction, x_t, step)
        x_start = self.process.constrain_x_start(x_t, noise_pred, step, denoised_fn, x_start_limit(self))
        return x_start, variance[0] if variance else None


def noise_of_prediction(
    prediction_type: str,
    process: GaussianDiffusion,
    prediction: torch.Tensor,
    x_t: torch.Tensor,
    step: int | torch.Tensor,
) -> torch.Tensor:
    """The noise eps that a model's prediction stands for, at a step of the process, or at one for each example."""
    return prediction if prediction_type == "epsilon" else process.noise_of_velocity(x_t, prediction, step)


def x_start_limit(scheduler: SchedulerMixin) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The limit that a scheduler's config sets to x_0.

    Args:
        scheduler (`SchedulerMixin`): One of diffusers' or GLIDE's. One whose config has no `clip_sample` is clipped
            all the same, since a pixel outside [-1, 1] is none.

    Returns:
        `Callable[[torch.Tensor], torch.Tensor]`: dynamic thresholding (Imagen, arXiv 2205.11487, section 2.3) or a
        clip; None if the config switches both off.
    """
    config = scheduler.config
    # A config keeps `thresholding` also for schedulers that cannot do it.
    if config.get("thresholding", False) and hasattr(scheduler, "_threshold_sample"):
        return scheduler._threshold_sample
    if config.get("clip_sample", True):
        limit = float(config.get("clip_sample_range", 1.0))
        return lambda x_start: x_start.clamp(-limit, limit)
    return None


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype to compute a step in: half precision would lose the last steps."""
    return torch.promote_types(dtype, torch.float32)
