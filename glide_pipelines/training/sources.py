"""Where a run's images and captions come from: one by number, without end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ..datasets import DatasetExamples, captions_of, open_image
from ..images import crop_square
from .randomness import random_stream
from .shards import TarShards


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

# The number of an example and its generator, to a square RGB image and its caption.
Source = Callable[[int, np.random.Generator], tuple[Image.Image, str]]


class Examples(Protocol):
    """Images and captions by number, as they are stored."""

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What tells them from others."""

    def __len__(self) -> int:
        """How many there are."""

    def check_captions(self) -> None:
        """Refuse examples without a caption."""

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        """What [`~glide_pipelines.datasets.open_image`] opens, and a caption or a list of them."""

    def caption(self, number: int) -> Any:
        """The caption or captions alone."""

    def name(self, number: int) -> str:
        """An example, for people to find it."""


def iterate_captions(examples: Examples, limit: int = 100_000) -> Iterator[str]:
    """The captions of all examples, or of `limit` of them at equal distances."""
    for number in np.linspace(0, len(examples) - 1, min(limit, len(examples)), dtype=np.int64).tolist():
        yield from captions_of(examples.caption(number))


class _ShuffledSource:
    """The examples in another order in each epoch, as square images, each with one of its captions."""

    def __init__(
        self, examples: Examples, resolution: int, seed: int, center_crop: bool, random_flip: bool, skip_bad_images: int
    ) -> None:
        examples.check_captions()
        self.examples = examples
        self.fingerprint = examples.fingerprint
        self.resolution, self.seed = resolution, seed
        self.center_crop, self.random_flip = center_crop, random_flip
        self.skip_bad_images = skip_bad_images
        self.bad_rows: dict[str, str] = {}
        self._bad_numbers: set[int] = set()

    def number(self, epoch: int, place: int) -> int:
        """The number of the example that has this place in an epoch."""
        raise NotImplementedError

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """The image and the caption of the example with this number; `rng` chooses crop, flip and caption."""
        image, caption = self._read(*divmod(index, len(self.examples)))
        image = crop_square(image, self.resolution, None if self.center_crop else rng)
        if self.random_flip and rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        captions = captions_of(caption)
        # Only a real choice takes a random number, so that the numbers after it stay the same.
        return image, captions[int(rng.integers(len(captions))) if len(captions) > 1 else 0]

    def _read(self, epoch: int, place: int) -> tuple[Image.Image, Any]:
        """The image at this place of an epoch, or the next one that can be read, and its captions."""
        for after in range(len(self.examples)):
            number = self.number(epoch, (place + after) % len(self.examples))
            if number in self._bad_numbers:
                continue
            try:
                value, caption = self.examples[number]
                image = open_image(value)
                if not captions_of(caption):
                    raise ValueError("it has no caption.")
                return image, caption
            except ValueError as error:
                name = self.examples.name(number)
                problem = f"The image of {name} cannot be read: {error}"
                if len(self._bad_numbers) >= self.skip_bad_images:
                    more = f" (`skip_bad_images` is {self.skip_bad_images}.)" if self._bad_numbers else ""
                    raise ValueError(problem + more) from error
                logger.warning(f"{problem} It is skipped.")
                self._bad_numbers.add(number)
                self.bad_rows[name] = str(error)
        raise ValueError("No image of the dataset can be read.")


class DatasetSource(_ShuffledSource):
    """Images and captions of a `datasets` dataset, in another order in each epoch.

    Images are read as the pipelines read theirs (upright, transparent pixels white), scaled until their shorter side
    fits and then cropped, never squashed.

    Args:
        rows (`datasets.Dataset` or [`DatasetExamples`]): See [`~glide_pipelines.datasets.load_captioned_rows`].
        resolution (`int`): Width and height of the images that are returned, in pixels.
        seed (`int`): Decides the order.
        image_column, caption_column (`str`): Columns of the dataset; [`DatasetExamples`] know theirs. Where the caption
            is a list, one is chosen at random each time.
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
        rows: datasets.Dataset | DatasetExamples,
        resolution: int,
        seed: int,
        image_column: str = "image",
        caption_column: str = "text",
        center_crop: bool = False,
        random_flip: bool = False,
        skip_bad_images: int = 0,
    ) -> None:
        examples = rows if isinstance(rows, DatasetExamples) else DatasetExamples(rows, image_column, caption_column)
        super().__init__(examples, resolution, seed, center_crop, random_flip, skip_bad_images)
        self._order: tuple[int, np.ndarray] | None = None

    def number(self, epoch: int, place: int) -> int:
        """The row that has this place in an epoch."""
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, random_stream(self.seed, epoch, 1).permutation(len(self.examples))
        return int(self._order[1][place])


class ShardSource(_ShuffledSource):
    """Images and captions of tar shards, in another order in each epoch: the shards are put in a random order one after
    the other, and this row of examples is shuffled within windows, so that only a few shards are read at a time.

    The rest is as with [`DatasetSource`]. An example is a function of the seed and its number, whichever process asks
    for it.

    Args:
        shards ([`TarShards`]): The examples.
        resolution (`int`): Width and height of the images that are returned, in pixels.
        seed (`int`): Decides the order.
        shuffle_buffer (`int`, defaults to 65536): Examples of a window. With as many as there are examples, each order
            is as likely as any other.
        center_crop, random_flip, skip_bad_images: See [`DatasetSource`].

    Raises:
        ValueError: if an image has no caption or, when it is reached, cannot be read.
    """

    def __init__(
        self,
        shards: TarShards,
        resolution: int,
        seed: int,
        shuffle_buffer: int = 65536,
        center_crop: bool = False,
        random_flip: bool = False,
        skip_bad_images: int = 0,
    ) -> None:
        if shuffle_buffer < 1:
            raise ValueError(f"`shuffle_buffer` must be at least 1, got {shuffle_buffer}.")
        super().__init__(shards, resolution, seed, center_crop, random_flip, skip_bad_images)
        self.counts, self.shuffle_buffer = shards.counts, shuffle_buffer
        self._epoch: int | None = None
        self._window: tuple[int, int] | None = None

    def number(self, epoch: int, place: int) -> int:
        """The example that has this place in an epoch."""
        if self._epoch != epoch:
            self._epoch = epoch
            self._order = random_stream(self.seed, epoch, 2).permutation(len(self.counts))
            self._ends = np.cumsum(self.counts[self._order])
            self._starts = (np.cumsum(self.counts) - self.counts)[self._order]
        window, inside = divmod(place, self.shuffle_buffer)
        first = window * self.shuffle_buffer
        if self._window != (epoch, window):
            self._window = epoch, window
            length = min(self.shuffle_buffer, len(self.examples) - first)
            self._permutation = random_stream(self.seed, epoch, 3, window).permutation(length)
        position = first + int(self._permutation[inside])
        turn = int(np.searchsorted(self._ends, position, "right"))
        return int(self._starts[turn] + position - (self._ends[turn] - self.counts[self._order[turn]]))
