"""Captioned pictures to measure a model against."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Protocol

from PIL import Image

from ..images import load_images
from ..shapes import Example, ShapesWorld, render
from ..training.data import captions_of, check_captions, crop_square, first_few, load_captioned_rows


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
        """The drawing of a scene."""
        return render(self.examples[index].scene, size)

    def others(self) -> ShapesPictures:
        """As many scenes again: the next ones of the sequence."""
        return ShapesPictures(len(self.examples), self.seed, self.end)


class DatasetPictures:
    """The first pictures of a `datasets` dataset, scaled until the shorter side fits, and cropped in the middle.

    Args:
        num_captions (`int`): How many; all if there are fewer.
        dataset_name (`str`, *optional*): A dataset on the Hub.
        data_dir (`str`, *optional*): A folder of pictures with a `metadata.jsonl` that lists all of them, in place of
            `dataset_name`.
        split (`str`, *optional*): Which part of it; by default the only one there is.
        image_column, caption_column (`str`): Columns of the dataset. Where the caption is a list, the first that is not
            blank is taken.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if there is no such dataset, split or column, it cannot be read, or a caption is missing.
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
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                "A dataset of pictures needs the extra `eval` (in a clone: `pip install -e '.[eval]'`)."
            ) from error
        try:
            rows = load_captioned_rows(dataset_name, data_dir, image_column, caption_column, split)
        except (OSError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            what = f"`data_dir` {data_dir!r}" if dataset_name is None else f"`dataset_name` {dataset_name!r}"
            # A DatasetGenerationError says of itself only that it occurred.
            reason = error.__cause__ if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
            raise ValueError(f"{what} cannot be read: {reason}") from error
        if data_dir is not None:
            _check_all_are_listed(data_dir)
        rows = rows.select(range(min(num_captions, len(rows))))
        # A blank one, which training takes for the empty prompt, is nothing to measure a picture against.
        captions = [next(filter(str.strip, captions_of(value)), None) for value in rows[caption_column]]
        check_captions(captions, caption_column)
        self.captions: list[str] = captions
        # As bytes, so that one that cannot be read does not stop everything.
        self.files = rows.cast_column(image_column, datasets.Image(decode=False))[image_column]

    def picture(self, index: int, size: int) -> Image.Image | None:
        """The picture of a caption; None, with a warning that names it, if it cannot be read."""
        file = self.files[index]
        try:
            picture = Image.open(io.BytesIO(file["bytes"]) if file["bytes"] is not None else file["path"])
            return crop_square(load_images("image_column", picture)[0], size, None)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            logger.warning(f"{self.name(index)} cannot be read as a picture: {error}")
            return None

    def name(self, index: int) -> str:
        """The file of a picture, or its row."""
        return self.files[index]["path"] or f"row {index}"


def _check_all_are_listed(data_dir: str) -> None:
    """`datasets` passes over the pictures that no metadata lists, and says nothing."""
    import datasets
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    builder = datasets.load_dataset_builder("imagefolder", data_dir=data_dir)
    files = {Path(file) for part in builder.config.data_files.values() for file in part}
    pictures = {file for file in files if file.suffix.lower() in ImageFolder.EXTENSIONS}
    listed = set()
    for rows in builder.as_dataset().values():
        for column in [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]:
            paths = rows.cast_column(column, datasets.Image(decode=False))[column]
            listed |= {Path(picture["path"]) for picture in paths if picture and picture["path"]}
    missing = sorted(str(picture.relative_to(Path(data_dir).resolve())) for picture in pictures - listed)
    if missing:
        raise ValueError(
            f"`data_dir` {data_dir!r} must hold a caption for every picture, got none for {len(missing)} of "
            f"{len(pictures)}: {first_few(missing)} (no metadata.jsonl lists them)."
        )
