"""Where a run's images and captions come from: one by number, without end."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..datasets import (
    captions_of,
    check_captions,
    check_rows,
    dataset_fingerprint,
    image_names,
    open_image,
    undecoded,
)
from ..images import crop_square
from .randomness import random_stream


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

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
        skip_bad_images (`int`, defaults to 0): How many images that cannot be read may be skipped. The next one of the
            epoch takes the place of each; `bad_rows` holds their names and what is wrong with them.

    Raises:
        ValueError: if a column or a caption is missing, the dataset is empty, or, when the row is reached, an image
            cannot be read.
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
        skip_bad_images: int = 0,
    ) -> None:
        check_rows(rows, image_column, caption_column)
        captions, names = rows[caption_column][:], image_names(rows, image_column)
        check_captions(captions, caption_column, names)
        self.fingerprint = dataset_fingerprint(names, captions, rows.column_names)
        self.rows = undecoded(rows, image_column)
        self.skip_bad_images = skip_bad_images
        self.bad_rows: dict[str, str] = {}
        self._bad_numbers: set[int] = set()
        self.resolution, self.seed = resolution, seed
        self.image_column, self.caption_column = image_column, caption_column
        self.center_crop, self.random_flip = center_crop, random_flip
        self._order: tuple[int, np.ndarray] | None = None

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """The image and the caption of the example with this number; `rng` chooses crop, flip and caption."""
        epoch, place = divmod(index, len(self.rows))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, random_stream(self.seed, epoch, 1).permutation(len(self.rows))
        image, row = self._read(self._order[1], place)
        image = crop_square(image, self.resolution, None if self.center_crop else rng)
        if self.random_flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        captions = captions_of(row[self.caption_column])
        # Only a real choice takes a random number, so that the numbers after it stay the same.
        return image, captions[int(rng.integers(len(captions))) if len(captions) > 1 else 0]

    def _read(self, order: np.ndarray, place: int) -> tuple[Image.Image, dict[str, Any]]:
        """The image at this place of an epoch, or the next one that can be read, and its row."""
        for after in range(len(order)):
            number = int(order[(place + after) % len(order)])
            if number in self._bad_numbers:
                continue
            row = self.rows[number]
            try:
                return open_image(row[self.image_column]), row
            except ValueError as error:
                value = row[self.image_column]
                path = value.get("path") if isinstance(value, dict) else value
                name = f"row {number}" + (f" ({path})" if isinstance(path, str) else "")
                problem = f"The image of {name} cannot be read: {error}"
                if len(self._bad_numbers) >= self.skip_bad_images:
                    more = f" (`skip_bad_images` is {self.skip_bad_images}.)" if self._bad_numbers else ""
                    raise ValueError(problem + more) from error
                logger.warning(f"{problem} It is skipped.")
                self._bad_numbers.add(number)
                self.bad_rows[name] = str(error)
        raise ValueError("No image of the dataset can be read.")
