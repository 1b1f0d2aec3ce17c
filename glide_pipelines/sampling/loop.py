"""From noise to an image: the loop that every stage runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .denoiser import Denoiser
from .known_pixels import KnownPixels
from .run import SchedulerRun


@dataclass
class Step:
    """A step that was just taken.

    Attributes:
        index (`int`): Of the run's timesteps.
        timestep (`torch.Tensor` of shape `[]`): Where the step began.
        sample (`torch.Tensor` of shape `[B, 3, H, W]`): What the step gave. The loop goes on from what stands here.
        x_start (`torch.Tensor` of shape `[B, 3, H, W]`): The estimate of the clean image that the step used.
    """

    index: int
    timestep: torch.Tensor
    sample: torch.Tensor
    x_start: torch.Tensor


def num_steps(run: SchedulerRun, num_resample: int = 1) -> int:
    """Steps that [`denoise`] takes: all but the last are taken `num_resample` times."""
    return (len(run) - 1) * num_resample + 1


def denoise(
    denoiser: Denoiser, run: SchedulerRun, sample: torch.Tensor, known_pixels: KnownPixels | None = None
) -> Iterator[Step]:
    """Step a sample through a run, from noise to the clean image.

    Args:
        denoiser ([`Denoiser`]): Predicts at every step.
        run ([`SchedulerRun`]): Steps.
        sample (`torch.Tensor` of shape `[B, 3, H, W]`): The noise to start from, in the scheduler's scale.
        known_pixels ([`KnownPixels`], *optional*): Kept known by replacing them before every step.

    Yields:
        [`Step`]: after each step. The sample of the last one is the image, in [-1, 1].
    """
    for index in range(len(run)):
        # RePaint, arXiv 2201.09865, algorithm 1: each step but the last is undone and taken again.
        num_resample = 1 if known_pixels is None or index == len(run) - 1 else known_pixels.num_resample
        for repeat in range(num_resample):
            if known_pixels is not None:
                sample = known_pixels.replace(sample, run, index)
            x_t = run.scale_model_input(sample, index)
            prediction = denoiser(x_t, index)
            sample = run.step(index, prediction, sample, x_t)
            if repeat < num_resample - 1 and known_pixels is not None:
                sample = run.undo_step(sample, known_pixels.noise(sample), index)
            step = Step(index, run.timesteps[index], sample, prediction.x_start)
            yield step
            sample = step.sample
