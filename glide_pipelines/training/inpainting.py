"""From a text-to-image model to an inpainting one (arXiv 2112.10741, section 3.2)."""

from __future__ import annotations

from typing import Any

import torch

from ..models import GLIDEUNet2DConditionModel
from ..sampling import Stage
from ..schedulers import GLIDEDDPMScheduler


def prepare_for_inpainting(stage: Stage) -> None:
    """Make an inpainting stage of a text-to-image one, in place; an inpainting stage stays one. Like both released
    inpainting models it is sampled ancestrally.

    Args:
        stage ([`Stage`]): A stage with a scheduler.
    """
    if not stage.unet.is_inpainter:
        stage.unet = widen_for_inpainting(stage.unet)
    scheduler: Any = stage.scheduler
    stage.scheduler = GLIDEDDPMScheduler.from_config(scheduler.config)


def widen_for_inpainting(unet: GLIDEUNet2DConditionModel) -> GLIDEUNet2DConditionModel:
    """A copy of a model that takes the known image and its mask too, with zero weights for them: until it is trained
    it computes what the old one did, whatever the image and the mask.

    The four new channels stand behind x_t, so an upsampler's low-resolution channels move (see
    [`GLIDEUNet2DConditionModel`]).

    Args:
        unet ([`GLIDEUNet2DConditionModel`]): A base model (3 channels) or an upsampler (6 channels).

    Returns:
        [`GLIDEUNet2DConditionModel`]: Of 7 or 10 channels, in the dtype, mode and on the device of `unet`.

    Raises:
        ValueError: if the model is an inpainting one already.
    """
    if unet.is_inpainter:
        raise ValueError(f"`unet` is an inpainting model already, with {unet.config.in_channels} channels.")
    wide = GLIDEUNet2DConditionModel.from_config(unet.config, in_channels=unet.config.in_channels + 4)
    weights = unet.state_dict()
    noised, low_res = weights["conv_in.weight"].split([3, unet.config.in_channels - 3], dim=1)
    new = torch.zeros_like(noised[:, :1]).expand(-1, 4, -1, -1)
    weights["conv_in.weight"] = torch.cat([noised, new, low_res], dim=1)
    wide.load_state_dict(weights)
    # Not the model's own `to`, which warns of modules to be kept in float32; there are none.
    return torch.nn.Module.to(wide, unet.device, unet.dtype).train(unet.training)
