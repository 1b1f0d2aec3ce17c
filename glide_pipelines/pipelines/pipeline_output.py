"""What GLIDE's pipelines return."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image


@dataclass
class GLIDEPipelineOutput(BaseOutput):
    """The images of one call.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): As `output_type` asked for: a list of RGB
            images, an array of shape `[B, H, W, 3]`, or a tensor of shape `[B, 3, H, W]`, both in [0, 1]. `"latent"`
            is the sample of the last stage as it is, of shape `[B, 3, H, W]`, where images lie in [-1, 1].
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
