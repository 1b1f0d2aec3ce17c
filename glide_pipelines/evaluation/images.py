"""Captioned images to measure a model against."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ..datasets import captions_of, check_captions, load_captioned_rows, open_image
from ..images import crop_square


logger = logging.getLogger(__name__)


class CaptionedImages(Protocol):
    """Captions, and the true image of each."""

    captions: list[str]

    def image(self, index: int, size: int) -> Image.Image | None:
        """The image of a caption, RGB and square, `size` pixels wide; None if it cannot be read."""


@runtime_checkable
class JudgedImages(CaptionedImages, Protocol):
    """Captioned images of a world that brings a judge: it tells whether an image shows what its caption says."""

    def others(self) -> CaptionedImages:
        """As many images of other captions, for the FID, precision and recall of the true images themselves."""

    def judge(self, images: Iterable[Image.Image]) -> dict[str, Any]:
        """Compare images with the captions, in their order.

        Returns:
            `dict`: `whole_caption`, how many images show all that their captions say, in per cent; and `judge`, what
            else the judge found, as JSON can hold it.
        """


class DatasetImages:
    """The first images of a `datasets` dataset, scaled until the shorter side fits and cropped in the middle.

    Args:
        num_captions (`int`): How many; all if there are fewer.
        dataset_name (`str`, *optional*): A dataset on the Hub.
        data_dir (`str`, *optional*): A folder of images with a `metadata.jsonl` that lists all of them, in place of
            `dataset_name`.
        split (`str` or `Sequence[str]`, *optional*): Which part of it, see
            [`~glide_pipelines.datasets.load_captioned_rows`]; by default the only one there is.
        image_column, caption_column (`str`): Columns of the dataset. Of a list of captions, the first that is not blank
            is taken.
        label_column (`str`, *optional*): The column that names the class of each image, for a classifier to find.
        shuffle_seed (`int`, *optional*): Take images in an order that is random by this seed, in place of the first.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if there is no such dataset, split or column, it cannot be read, or a caption is missing.
    """

    def __init__(
        self,
        num_captions: int,
        dataset_name: str | None = None,
        data_dir: str | None = None,
        split: str | Sequence[str] | None = None,
        image_column: str = "image",
        caption_column: str = "text",
        label_column: str | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        if data_dir is not None and not Path(data_dir).is_dir():
            raise ValueError(f"`data_dir` must be a folder, got {data_dir!r}.")
        try:
            rows = load_captioned_rows(dataset_name, data_dir, image_column, caption_column, split, all_listed=True)
        except (ImportError, ValueError):
            raise
        except Exception as error:  # whatever the Hub, the disk or a file's reader did
            from datasets.exceptions import DatasetGenerationError

            what = f"`data_dir` {data_dir!r}" if dataset_name is None else f"`dataset_name` {dataset_name!r}"
            # This one says of itself only that it occurred.
            reason = error.__cause__ if isinstance(error, DatasetGenerationError) else error
            raise ValueError(f"{what} cannot be read: {reason}") from error
        if shuffle_seed is not None:
            rows = rows.shuffle(seed=shuffle_seed, keep_in_memory=True)
        rows = rows.select(range(min(num_captions, len(rows))))
        # Training takes a blank caption for the empty prompt; here it is nothing to measure an image against.
        captions = [next(filter(str.strip, captions_of(value)), None) for value in rows[caption_column]]
        check_captions(captions, caption_column)
        self.captions = [caption for caption in captions if caption is not None]  # all of them, as checked
        if label_column is not None and label_column not in rows.column_names:
            raise ValueError(f"`label_column` must be one of {', '.join(rows.column_names)}, got {label_column!r}.")
        self.labels = None if label_column is None else list(rows[label_column])
        from datasets import Image as ImageFeature

        # As bytes, so that one that cannot be read does not stop everything.
        self.files = rows.cast_column(image_column, ImageFeature(decode=False))[image_column]

    def image(self, index: int, size: int) -> Image.Image | None:
        """The image of a caption; None, with a warning that names it, if it cannot be read."""
        try:
            return crop_square(open_image(self.files[index]), size)
        except ValueError as error:
            logger.warning(f"{self.name(index)} cannot be read as an image: {error}")
            return None

    def name(self, index: int) -> str:
        """The file of an image, or its row."""
        return (self.files[index] or {}).get("path") or f"row {index}"
