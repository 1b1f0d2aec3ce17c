"""The metrics of a pipeline that changes, as while it is trained: the same captions and noise each time."""

from __future__ import annotations

from typing import Any

from diffusers import DiffusionPipeline
from torch import nn

from .generation import SampledImages
from .images import CaptionedImages
from .sweep import figures, measure


class PipelineMetrics:
    """FID, precision, recall, Inception score and CLIP score of pipelines, against the same images.

    Every process must make it and call it; they share the work.

    Args:
        images ([`CaptionedImages`]): What to generate, and to compare with.
        size (`int`): Width and height of the images that the pipelines generate.
        network (`nn.Module`): Of [`load_feature_network`].
        clip (`nn.Module`, *optional*): Of [`load_clip`].
        seed (`int`, defaults to 0): Of the first image's noise; each image takes the next one.
        batch_size (`int`, defaults to 32): Images at a time.
        call: Further arguments of the pipelines' calls, such as `num_inference_steps`.

    Raises:
        ValueError: if there are too few images that can be read.
    """

    def __init__(
        self,
        images: CaptionedImages,
        size: int,
        network: nn.Module,
        clip: nn.Module | None = None,
        seed: int = 0,
        batch_size: int = 32,
        **call: Any,
    ) -> None:
        self.captions, self.size, self.network, self.clip = images.captions, size, network, clip
        self.seed, self.batch_size, self.call = seed, batch_size, call
        self.real = measure(images, size, network, None, batch_size, "real images")
        figures(self.real, self.real)  # refuses too few

    def __call__(self, pipe: DiffusionPipeline) -> dict[str, float]:
        """Generate an image for each caption, and measure them: see [`figures`]."""
        images = SampledImages(pipe, self.captions, self.seed, self.batch_size, **self.call)
        generated = measure(images, self.size, self.network, self.clip, self.batch_size, "generated images")
        return figures(self.real, generated)
