"""Images generated while training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid

from ..files import atomic_file
from .pipeline_parts import PipelineParts


def save_validation_images(parts: PipelineParts, prompts: list[str], seed: int, path: Path) -> None:
    """Generate one image per prompt with a pipeline that is being trained, and save them in a row.

    Args:
        parts ([`PipelineParts`]): Both stages, or the base alone. The trained one may be on another device.
        prompts (`list[str]`): What to generate.
        seed (`int`): Of the noise: the same seed, the same noise.
        path (`Path`): File of the row; its folder is made.
    """
    pipe: Any = parts.pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.to(parts.stage.unet.device)
    images = pipe(prompts, generator=torch.Generator().manual_seed(seed)).images
    if parts.other is not None:
        parts.other.cpu()  # where it was: training goes on without it
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        make_image_grid(images, rows=1, cols=len(images)).save(temporary)
