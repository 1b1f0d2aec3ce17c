"""How good a model is while training goes on: images of prompts, and the loss on images that are held out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import make_image_grid
from torch.utils.data import default_collate

from ..files import atomic_file
from ..sampling import Stage
from .dataset import TextToImageDataset
from .log import MeansByQuarter
from .pipeline_parts import PipelineParts
from .text_to_image import text_to_image_loss, training_scheduler
from .trainer import LossFunction


@contextmanager
def sampling_pipeline(parts: PipelineParts) -> Iterator[Any]:
    """The pipeline of both stages, or the base alone, ready to generate on the device of the one that is trained."""
    pipe: Any = parts.pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.to(parts.stage.unet.device)
    try:
        yield pipe
    finally:
        if parts.other is not None:
            parts.other.cpu()  # where it was: training goes on without it


def save_validation_images(parts: PipelineParts, prompts: list[str], seed: int, path: Path) -> None:
    """Generate one image per prompt with a pipeline that is being trained, and save them in a row.

    Args:
        parts ([`PipelineParts`]): Both stages, or the base alone. The trained one may be on another device.
        prompts (`list[str]`): What to generate.
        seed (`int`): Of the noise: the same seed, the same noise.
        path (`Path`): File of the row; its folder is made.
    """
    with sampling_pipeline(parts) as pipe:
        images = pipe(prompts, generator=torch.Generator().manual_seed(seed)).images
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        make_image_grid(images, rows=1, cols=len(images)).save(temporary)


@torch.no_grad()
def held_out_loss(
    stage: Stage,
    dataset: TextToImageDataset,
    num_images: int,
    batch_size: int,
    compute_loss: LossFunction | None = None,
) -> dict[str, Any]:
    """The loss on the first examples of a dataset: the same images, crops, noise and timesteps each time.

    Args:
        stage ([`Stage`]): On its device.
        dataset ([`TextToImageDataset`]): Images that the stage is not trained on. With a uniform weighting the figures
            of different runs can be compared.
        num_images (`int`): How many examples.
        batch_size (`int`): How many at once.
        compute_loss (`Callable`, *optional*): See [`train`]; by default [`text_to_image_loss`].

    Returns:
        `dict[str, Any]`: For the log: `validation_loss`, `validation_mse` and `validation_vb`, the last two also by
        quarter of the timesteps.
    """
    if compute_loss is None:
        compute_loss = text_to_image_loss(training_scheduler(stage), dataset.weighting)
    device = stage.unet.device
    means = MeansByQuarter(dataset.weighting.num_train_timesteps, device)
    for first in range(0, num_images, batch_size):
        examples = [dataset[number] for number in range(first, min(first + batch_size, num_images))]
        batch = {name: value.to(device) for name, value in default_collate(examples).items()}
        loss, metrics = compute_loss(stage, batch)
        means.add(batch["timesteps"], {"loss": loss, **metrics})
    return {f"validation_{name}": value for name, value in means.line().items()}
