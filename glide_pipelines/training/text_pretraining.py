"""Pretraining of a text encoder on captioned images: it learns to predict a small version of the image.

With a diffusion loss alone the text encoder of a small model learns slowly what its words look like: most of the error
is noise, and what remains is explained by the colours. Predicting the image from the caption, without noise, teaches it
in minutes; the UNet then finds in the text what it is to generate.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..images import images_to_tensor
from ..models import GLIDETextEncoder, tokenize_prompts
from .dataset import SourceDataset
from .randomness import random_stream


PATCH_SIZE = 4  # pixels of the small image, in each direction
THUMBNAIL_SIZE = 8
# Standard deviation of the noise on the outputs, in units of their root mean square: what is encoded weakly is lost in
# it, and a UNet would learn it slowly.
OUTPUT_NOISE = 0.3


class CaptionedImages(SourceDataset):
    """Images and their captions, without noise."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`pixel_values` `[3, H, W]`, `input_ids` and `attention_mask` `[L]`, and `timesteps`, which is 0: no noise."""
        image, caption = self.source(index, random_stream(self.seed, index))
        tokens = tokenize_prompts(self.tokenizer, [caption])
        example = {name: tokens[name][0] for name in ("input_ids", "attention_mask")}
        return example | {"pixel_values": images_to_tensor([image])[0], "timesteps": torch.tensor(0)}


class ImagePredictor(nn.Module):
    """A text encoder with two linear layers, thrown away after the pretraining, that predict the image of a caption.

    The first outputs predict a patch each, from left to right and from top to bottom: a UNet attends to them. The last
    output predicts the whole image, smaller still: it is what the UNet adds to the embedding of the timestep.

    Args:
        text_encoder ([`GLIDETextEncoder`]): In float32; trained in place.
        grid_size (`int`, defaults to 4): Patches in each direction. Their number must be below that of the outputs.

    Raises:
        ValueError: if the text encoder has too few outputs.
    """

    def __init__(self, text_encoder: GLIDETextEncoder, grid_size: int = 4) -> None:
        super().__init__()
        config: Any = text_encoder.config
        if not 1 <= grid_size**2 < config.max_position_embeddings:
            raise ValueError(
                f"`grid_size` must be at least 1, and its square below the text context of "
                f"{config.max_position_embeddings} tokens, got {grid_size}."
            )
        self.grid_size = grid_size
        self.text_encoder = text_encoder
        self.patches = nn.Linear(config.hidden_size, 3 * PATCH_SIZE**2)
        self.thumbnail = nn.Linear(config.hidden_size, 3 * THUMBNAIL_SIZE**2)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, noise: float = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The image of each caption, in [-1, 1].

        Args:
            input_ids, attention_mask (`torch.Tensor` of shape `[B, L]`): Tokens, as the text encoder takes them.
            noise (`float`, defaults to 0): Standard deviation of noise on the text encoder's outputs, in units of their
                root mean square.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: `[B, 3, S, S]`, put together of the patches, where `S` is four times
            `grid_size`; and the thumbnail `[B, 3, 8, 8]`.
        """
        outputs = self.text_encoder(input_ids, attention_mask).last_hidden_state.float()
        if noise:
            outputs = outputs + noise * outputs.detach().square().mean().sqrt() * torch.randn_like(outputs)
        patches = self.patches(outputs[:, : self.grid_size**2])
        image = F.fold(patches.mT, self.grid_size * PATCH_SIZE, PATCH_SIZE, stride=PATCH_SIZE)
        return image, self.thumbnail(outputs[:, -1]).unflatten(1, (3, THUMBNAIL_SIZE, THUMBNAIL_SIZE))


def image_prediction_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, Any]]:
    """The mean squared errors of both predictions of an [`ImagePredictor`], added up, as [`train`] takes it."""
    image, thumbnail = model(batch["input_ids"], batch["attention_mask"], OUTPUT_NOISE)
    errors = [
        (predicted.float() - F.adaptive_avg_pool2d(batch["pixel_values"], predicted.shape[-1])).square().mean((1, 2, 3))
        for predicted in (image, thumbnail)
    ]
    return errors[0] + errors[1], {"patches": errors[0], "thumbnail": errors[1]}
