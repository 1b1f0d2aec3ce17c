"""Where a run's images and captions come from: one by number, without end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..datasets import captions_of, check_captions, check_rows
from ..images import crop_square, load_images
from .randomness import random_stream


if TYPE_CHECKING:
    import datasets

# The number of an example and its generator, to a square RGB image and its caption.
Source = Callable[[int, np.random.Generator], tuple[Image.Image, str]]


class DatasetSource:
    """Images and captions of a `datasets` dataset, in another order in each epoch.

    Images are read as the pipelines read theirs (upright, transparent pixels white), scaled until their shorter side
    fits and then cropped, never squashed.

    Args:
        rows (`datasets.Dataset`): See [`~glide_pipelines.datasets.load_captioned_rows`].
        resolution (`int`): Width and height of the images that are returned, in pixels.
        seed (`int`): Decides the order.
        image_column, caption_column (`str`): Columns of the dataset. Where the caption is a list, one is chosen at
            random each time.
        center_crop (`bool`, defaults to `False`): Crop the centre; otherwise at random.
        random_flip (`bool`, defaults to `False`): Mirror half of the images. Captions that say left or right become
            wrong.

    Raises:
        ValueError: if a column or a caption is missing, or the dataset is empty.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        resolution: int,
        seed: int,
        image_column: str = "image",
        caption_column: str = "text",
        center_crop: bool = False,
        random_flip: bool = False,
    ) -> None:
        check_rows(rows, image_column, caption_column)
        check_captions(rows[caption_column][:], caption_column)
        self.rows = rows
        self.resolution, self.seed = resolution, seed
        self.image_column, self.caption_column = image_column, caption_column
        self.center_crop, self.random_flip = center_crop, random_flip
        self._order: tuple[int, np.ndarray] | None = None

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """The image and the caption of the example with this number; `rng` chooses crop, flip and caption."""
        epoch, place = divmod(index, len(self.rows))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, random_stream(self.seed, epoch, 1).permutation(len(self.rows))
        number = int(self._order[1][place])
        row = self.rows[number]
        [image] = load_images(f"{self.image_column}[{number}]", row[self.image_column])
        image = crop_square(image, self.resolution, None if self.center_crop else rng)
        if self.random_flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        captions = captions_of(row[self.caption_column])
        # Only a real choice takes a random number, so that the numbers after it stay the same.
        return image, captions[int(rng.integers(len(captions))) if len(captions) > 1 else 0]
