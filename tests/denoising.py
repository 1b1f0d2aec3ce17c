"""Steps of a run with a network that always predicts the same."""

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from glide_pipelines.sampling import Denoiser, SchedulerRun


class FixedUNet:
    """Predicts a given noise and, unless it is None, a given variance."""

    dtype = torch.float32

    def __init__(self, noise_pred: torch.Tensor, variance: torch.Tensor | None) -> None:
        self.output = noise_pred if variance is None else torch.cat([noise_pred, variance], dim=1)

    def __call__(self, *args, **kwargs) -> UNet2DConditionOutput:
        return UNet2DConditionOutput(self.output)


def take_step(
    run: SchedulerRun,
    index: int,
    noise_pred: torch.Tensor,
    variance: torch.Tensor | None,
    sample: torch.Tensor,
    denoised_fn=None,
    cond_grad: torch.Tensor | None = None,
) -> torch.Tensor:
    """The step at an index of a run, from a given prediction, with a constraint and a score gradient."""
    cond_fns = [] if cond_grad is None else [lambda x_t, timestep: cond_grad]
    denoiser = Denoiser(
        FixedUNet(noise_pred, variance), run, torch.zeros(1, 1, 1), constraint=denoised_fn, cond_fns=cond_fns
    )
    x_t = run.scale_model_input(sample, index)
    return run.step(index, denoiser(x_t, index), sample, x_t)
