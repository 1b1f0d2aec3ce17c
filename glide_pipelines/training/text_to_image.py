"""Training text to image: the base model and the upsampler."""

from __future__ import annotations

import torch
from diffusers import SchedulerMixin
from torch import nn

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from .losses import hybrid_loss
from .timesteps import TimestepWeighting
from .trainer import LossFunction


class TextConditionedUNet(nn.Module):
    """A text encoder and its UNet, trained together.

    Args:
        text_encoder ([`GLIDETextEncoder`]): The text encoder.
        unet ([`GLIDEUNet2DConditionModel`]): The UNet.
    """

    def __init__(self, text_encoder: GLIDETextEncoder, unet: GLIDEUNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        **conditions: torch.Tensor,
    ) -> torch.Tensor:
        """Noise and variance `[B, 6, H, W]` for x_t `[B, 3, H, W]`, timesteps `[B]` and tokens `[B, L]`; `conditions`
        are what the UNet takes besides (`low_res`, `image`, `mask`)."""
        hidden_states = self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state
        return self.unet(sample, timesteps, encoder_hidden_states=hidden_states, **conditions).sample


def text_to_image_loss(scheduler: SchedulerMixin, weighting: TimestepWeighting) -> LossFunction:
    """The loss function of a [`TextConditionedUNet`] on batches of a [`TextToImageDataset`].

    Args:
        scheduler ([`GLIDEDDPMScheduler`] or [`GLIDEDDIMScheduler`]): The noise schedule to train on.
        weighting ([`TimestepWeighting`]): What the batches' timesteps were drawn by.
    """

    def compute_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        conditions = dict(batch)
        x_start, noise, timesteps = (conditions.pop(name) for name in ("pixel_values", "noise", "timesteps"))
        x_t = scheduler.add_noise(x_start, noise, timesteps)
        model_output = model(x_t, timesteps, **conditions)
        terms = hybrid_loss(scheduler, model_output, x_start, noise, timesteps)
        loss = weighting.apply(terms, scheduler.train_process, timesteps)
        return loss, {"mse": terms.mse, "vb": terms.vb}

    return compute_loss
