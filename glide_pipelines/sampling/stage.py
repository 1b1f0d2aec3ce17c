"""A stage of GLIDE: a text encoder, its UNet and the scheduler that samples it (arXiv 2112.10741, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel


# The stages in the order in which they run, and what their components' names begin with in a pipeline.
STAGE_PREFIXES = {"base": "", "super_res": "super_res_"}


class Stage(nn.Module):
    """One of the two stages of a pipeline, as pipelines sample it, training trains it and conversion converts it.

    Args:
        name (`str`): `"base"` or `"super_res"`.
        text_encoder ([`GLIDETextEncoder`], *optional*): Each stage has its own.
        unet ([`GLIDEUNet2DConditionModel`]): The network that predicts noise and variance.
        scheduler (`SchedulerMixin`, *optional*): The noise schedule, and how it is sampled.
    """

    def __init__(
        self,
        name: str,
        text_encoder: GLIDETextEncoder | None,
        unet: GLIDEUNet2DConditionModel,
        scheduler: SchedulerMixin | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.text_encoder = text_encoder
        self.unet = unet
        self.scheduler = scheduler

    @classmethod
    def of(cls, pipeline: DiffusionPipeline, name: str) -> Stage | None:
        """The stage of that name in a pipeline; None if the pipeline has no UNet for it."""
        text_encoder, unet, scheduler = (getattr(pipeline, part, None) for part in cls.component_names(name))
        return None if unet is None else cls(name, text_encoder, unet, scheduler)

    @staticmethod
    def component_names(name: str) -> tuple[str, str, str]:
        """What text encoder, UNet and scheduler of a stage are called in a pipeline."""
        prefix = STAGE_PREFIXES[name]
        return f"{prefix}text_encoder", f"{prefix}unet", f"{prefix}scheduler"

    @property
    def prefix(self) -> str:
        """What the names of the stage's components and arguments begin with: `""` or `"super_res_"`."""
        return STAGE_PREFIXES[self.name]

    def components(self) -> dict[str, Any]:
        """Text encoder, UNet and scheduler under their names in a pipeline."""
        return dict(zip(self.component_names(self.name), (self.text_encoder, self.unet, self.scheduler), strict=True))

    @property
    def sample_size(self) -> tuple[int, int]:
        """Height and width of the images that the stage was trained on, in pixels."""
        return height_and_width(self.unet.config.sample_size)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The text encoder's output `[B, L, C]` for tokens `[B, L]` and their mask, which is 1 on text."""
        if self.text_encoder is None:
            raise ValueError(f"The stage has no `{self.prefix}text_encoder` to encode prompts with.")
        return self.text_encoder(input_ids, attention_mask=attention_mask).last_hidden_state

    def forward(
        self,
        sample: torch.Tensor,
        timesteps: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        **conditions: torch.Tensor,
    ) -> torch.Tensor:
        """Predict noise and variance from text; what training calls.

        Args:
            sample (`torch.Tensor` of shape `[B, 3, H, W]`): x_t.
            timesteps (`torch.Tensor` of shape `[B]`): Timestep of each example.
            input_ids, attention_mask (`torch.Tensor` of shape `[B, L]`): Tokens and their mask.
            conditions (`torch.Tensor`): What the UNet takes besides: `low_res`, `image`, `mask`.

        Returns:
            `torch.Tensor` of shape `[B, 6, H, W]`: noise prediction, then variance.
        """
        hidden_states = self.encode(input_ids, attention_mask)
        return self.unet(sample, timesteps, encoder_hidden_states=hidden_states, **conditions).sample


def scale_factor(large: int | tuple[int, int], small: int | tuple[int, int]) -> int:
    """How many times larger than the base's images those of the upsampler are, by the `sample_size` of both.

    Raises:
        ValueError: if that is no whole number.
    """
    large, small = height_and_width(large)[0], height_and_width(small)[0]
    if large < small or large % small:
        raise ValueError(f"The upsampler's images must be a whole number of times the base's {small}, got {large}.")
    return large // small


def height_and_width(sample_size: int | tuple[int, int]) -> tuple[int, int]:
    """Of the images of a UNet, by the `sample_size` of its config."""
    if isinstance(sample_size, int):
        return sample_size, sample_size
    height, width = sample_size
    return height, width
