"""Stages as OpenAI released them, without their weights."""

from __future__ import annotations

import torch

from ..models import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..models.released import RELEASED_BASE, RELEASED_SUPER_RES
from ..schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from .stage import Stage


def released_stage(name: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Stage:
    """A stage of the released sizes with random weights, which are made where and as they are wanted.

    Args:
        name (`str`): `"base"` or `"super_res"`.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where its networks are.
        dtype (`torch.dtype`, defaults to `torch.float32`): Number format of their weights.
    """
    text_config = GLIDETextConfig()
    sizes = RELEASED_BASE if name == "base" else RELEASED_SUPER_RES
    config = GLIDEUNet2DConditionModel.glide_config(**sizes, text_hidden_size=text_config.hidden_size)
    default_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            text_encoder, unet = GLIDETextEncoder(text_config), GLIDEUNet2DConditionModel(**config)
    finally:
        torch.set_default_dtype(default_dtype)
    return Stage(name, text_encoder, unet.use_fastest_layout(), released_scheduler(unet))


def released_scheduler(unet: GLIDEUNet2DConditionModel) -> GLIDEDDPMScheduler | GLIDEDDIMScheduler:
    """The noise schedule that OpenAI's UNets of this kind were trained with, and the sampler of their notebooks."""
    if not unet.is_upsampler:
        return GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return (GLIDEDDPMScheduler if unet.is_inpainter else GLIDEDDIMScheduler)(beta_schedule="linear")
