"""Captioned pictures to measure a model against."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..shapes import Example, ShapesWorld, render
from ..training.data import crop_square, load_captioned_rows


logger = logging.getLogger(__name__)


class CaptionedPictures(Protocol):
    """Captions, and the true picture of each."""

    captions: list[str]

    def picture(self, index: int, size: int) -> Image.Image | None:
        """The picture of a caption, RGB and square, `size` pixels wide; None if it cannot be read."""


class ShapesPictures:
    """Scenes of the shapes world whose combinations of objects and background were never trained on.

    Args:
        num_captions (`int`): How many.
        seed (`int`): Which sequence of scenes.
        first (`int`, defaults to 0): Where in the sequence they begin.
    """

    def __init__(self, num_captions: int, seed: int, first: int = 0) -> None:
        world = ShapesWorld(seed, held_out=True)
        self.seed, self.end = seed, first + num_captions
        self.examples: list[Example] = [world.example(first + index) for index in range(num_captions)]
        self.captions = [str(example.caption) for example in self.examples]

    def picture(self, index: int, size: int) -> Image.Image:
        return render(self.examples[index].scene, size)

    def others(self) -> ShapesPictures:
        """As many scenes again: the next ones of the sequence."""
        return ShapesPictures(len(self.examples), self.seed, self.end)


class DatasetPictures:
    """The first pictures of a `datasets` dataset, scaled until the shorter side fits, and cropped in the middle.

    Args:
        num_captions (`int`): How many; all if there are fewer.
        dataset_name (`str`, *optional*): A dataset on the Hub.
        data_dir (`str`, *optional*): A folder of pictures with a `metadata.jsonl`, in place of `dataset_name`.
        split (`str`, *optional*): Which part of it; by default the only one there is.
        image_column, caption_column (`str`): Columns of the dataset. Where the caption is a list, the first is taken.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if there is no such dataset, split or column, or a caption is missing.
    """

    def __init__(
        self,
        num_captions: int,
        dataset_name: str | None = None,
        data_dir: str | None = None,
        split: str | None = None,
        image_column: str = "image",
        caption_column: str = "text",
    ) -> None:
        if data_dir is not None and not Path(data_dir).is_dir():
            raise ValueError(f"`data_dir` must be a folder, got {data_dir!r}.")
        rows = load_captioned_rows(dataset_name, data_dir, image_column, caption_column, split)
        rows = rows.select(range(min(num_captions, len(rows))))
        captions = rows[caption_column]
        captions = [caption if isinstance(caption, str) else next(iter(caption or ()), "") for caption in captions]
        missing = [index for index, caption in enumerate(captions) if not (caption or "").strip()]
        if missing:
            first = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"`caption_column` {caption_column!r} must hold a caption for every picture, got none in "
                f"{len(missing)} of {len(captions)} rows: {first}."
            )
        self.captions: list[str] = captions
        import datasets

        # As bytes, so that one that cannot be read does not stop everything.
        self.files = rows.cast_column(image_column, datasets.Image(decode=False))[image_column]

    def picture(self, index: int, size: int) -> Image.Image | None:
        """The picture of a caption; None, with a warning that names it, if it cannot be read."""
        file = self.files[index]
        try:
            picture = Image.open(io.BytesIO(file["bytes"]) if file["bytes"] is not None else file["path"])
            return crop_square(picture.convert("RGB"), size, None)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            logger.warning(f"{self.name(index)} cannot be read as a picture: {error}")
            return None

    def name(self, index: int) -> str:
        """The file of a picture, or its row."""
        return self.files[index]["path"] or f"row {index}"
