"""From a text-to-image model to an inpainting one (arXiv 2112.10741, section 3.2), and back."""

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
    noised, low_res = unet.conv_in.weight.split([3, unet.config.in_channels - 3], dim=1)
    new = torch.zeros_like(noised[:, :1]).expand(-1, 4, -1, -1)
    return _with_first_weight(unet, torch.cat([noised, new, low_res], dim=1))


def narrow_for_text_to_image(unet: GLIDEUNet2DConditionModel) -> GLIDEUNet2DConditionModel:
    """A copy of an inpainting model that makes images from text alone, and computes what the old one did without an
    image and a mask; any other model is returned as it is.

    Args:
        unet ([`GLIDEUNet2DConditionModel`]): Any.

    Returns:
        [`GLIDEUNet2DConditionModel`]: Of 3 channels or, an upsampler, of 6.
    """
    if not unet.is_inpainter:
        return unet
    noised, _, low_res = unet.conv_in.weight.split([3, 4, unet.config.in_channels - 7], dim=1)
    return _with_first_weight(unet, torch.cat([noised, low_res], dim=1))


def _with_first_weight(unet: GLIDEUNet2DConditionModel, weight: torch.Tensor) -> GLIDEUNet2DConditionModel:
    """A copy whose first convolution has this weight."""
    other = GLIDEUNet2DConditionModel.from_config(unet.config, in_channels=weight.shape[1])
    other.load_state_dict({**unet.state_dict(), "conv_in.weight": weight})
    # Not the model's own `to`, which warns of modules to be kept in float32; there are none.
    return torch.nn.Module.to(other, unet.device, unet.dtype).train(unet.training)
