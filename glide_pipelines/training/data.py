"""Training examples: every random choice about an example is a function of the seed and the example's number."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from ..images import images_to_tensor, load_images, round_pixels
from ..models import tokenize_prompts
from ..shapes import ShapesWorld, describe_fully, render
from ..shapes.scene import NUM_OBJECTS_SHARES
from .timesteps import TimestepWeighting


if TYPE_CHECKING:
    import datasets

Source = Callable[[int, np.random.Generator], tuple[Image.Image, str]]


class ShapesSource:
    """Pictures and captions of the shapes world, without end.

    Args:
        resolution (`int`): Width and height of the pictures.
        seed (`int`): Which sequence of scenes.
        proportion_full_captions (`float`, defaults to 0): So many captions leave nothing unsaid ([`describe_fully`]).
        num_objects_shares (`Sequence[float]`, *optional*): Of scenes of one, two and three objects, as in
            [`ShapesWorld`]; by default the world's own.

    Raises:
        ValueError: if `proportion_full_captions` or `num_objects_shares` is out of its range.
    """

    def __init__(
        self,
        resolution: int,
        seed: int,
        proportion_full_captions: float = 0.0,
        num_objects_shares: Sequence[float] | None = None,
    ) -> None:
        if not 0 <= proportion_full_captions <= 1:
            raise ValueError(f"`proportion_full_captions` must lie between 0 and 1, got {proportion_full_captions}.")
        self.resolution = resolution
        self.world = ShapesWorld(seed, num_objects_shares=num_objects_shares or NUM_OBJECTS_SHARES)
        self.proportion_full_captions = proportion_full_captions

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
        scene, caption = self.world.example(index)
        # Nothing is drawn where there is no choice, so that what is drawn after it stays the same.
        if self.proportion_full_captions and rng.random() < self.proportion_full_captions:
            caption = describe_fully(scene)
        return render(scene, self.resolution), str(caption)


class DatasetSource:
    """Pictures and captions of a `datasets` dataset, in another order in each epoch.

    Pictures are read as the pipelines read theirs (upright, transparent pixels white), scaled until their shorter side
    fits and then cropped, never squashed.

    Args:
        dataset_name (`str`, *optional*): A dataset on the Hub.
        train_data_dir (`str`, *optional*): A folder of pictures with a `metadata.jsonl`, in place of `dataset_name`.
        resolution (`int`): Width and height of what is returned.
        seed (`int`): Decides the order.
        image_column, caption_column (`str`): Columns of the dataset. Where the caption is a list, one is drawn.
        center_crop (`bool`): Crop the middle; otherwise anywhere.
        random_flip (`bool`): Mirror half of the pictures. Captions that say left or right become wrong.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if a column or a caption is missing, or the dataset is empty.
    """

    def __init__(
        self,
        dataset_name: str | None,
        train_data_dir: str | None,
        resolution: int,
        seed: int,
        image_column: str = "image",
        caption_column: str = "text",
        center_crop: bool = False,
        random_flip: bool = False,
    ) -> None:
        if train_data_dir is not None and not Path(train_data_dir).is_dir():
            raise ValueError(f"`train_data_dir` must be a folder, got {train_data_dir!r}.")
        self.rows = load_captioned_rows(dataset_name, train_data_dir, image_column, caption_column, split="train")
        check_captions(self.rows[caption_column][:], caption_column)
        self.resolution, self.seed = resolution, seed
        self.image_column, self.caption_column = image_column, caption_column
        self.center_crop, self.random_flip = center_crop, random_flip
        self._order: tuple[int, np.ndarray] | None = None

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
        epoch, place = divmod(index, len(self.rows))
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, _generator(self.seed, epoch, 1).permutation(len(self.rows))
        number = int(self._order[1][place])
        row = self.rows[number]
        [picture] = load_images(f"{self.image_column}[{number}]", row[self.image_column])
        picture = crop_square(picture, self.resolution, None if self.center_crop else rng)
        if self.random_flip and rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        captions = captions_of(row[self.caption_column])
        # Nothing is drawn where there is no choice, so that what is drawn after it stays the same.
        return picture, captions[int(rng.integers(len(captions))) if len(captions) > 1 else 0]


def load_captioned_rows(
    dataset_name: str | None, data_dir: str | None, image_column: str, caption_column: str, split: str | None = None
) -> datasets.Dataset:
    """The rows of a captioned `datasets` dataset.

    Args:
        dataset_name (`str`, *optional*): A dataset on the Hub.
        data_dir (`str`, *optional*): A folder of pictures with a `metadata.jsonl`, in place of `dataset_name`.
        image_column, caption_column (`str`): Columns that it must have.
        split (`str`, *optional*): Which part of it; by default the only one there is.

    Returns:
        `datasets.Dataset`: one row or more.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if there is no such split or column, or no row.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "A dataset of pictures needs the extra `train` (in a clone: `pip install -e '.[train]'`)."
        ) from error

    rows = load_dataset("imagefolder" if dataset_name is None else dataset_name, data_dir=data_dir, split=split)
    if split is None:  # all of them, by name
        if len(rows) > 1:
            raise ValueError(f"`split` must be one of {', '.join(rows)}, got None.")
        rows = next(iter(rows.values()))
    for name, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in rows.column_names:
            raise ValueError(f"`{name}` must be one of {', '.join(rows.column_names)}, got {column!r}.")
    if len(rows) == 0:
        raise ValueError("The dataset is empty.")
    return rows


def captions_of(value: object) -> list[str]:
    """The captions that a row holds: one, those of a list, or none."""
    values = value if isinstance(value, list) else [value]
    return [caption for caption in values if isinstance(caption, str)]


def check_captions(values: Sequence[object], caption_column: str) -> None:
    """Refuse a dataset in which rows have no caption: a null, an empty list, or no text.

    Args:
        values (`Sequence`): Of the column, one for each row.
        caption_column (`str`): Its name.

    Raises:
        ValueError: naming the column and the first such rows.
    """
    missing = [index for index, value in enumerate(values) if not captions_of(value)]
    if missing:
        raise ValueError(
            f"`caption_column` {caption_column!r} must hold a caption for every picture, got none in "
            f"{len(missing)} of {len(values)} rows: {first_few(missing)}."
        )


def first_few(items: Sequence[Any]) -> str:
    """At most five of them, for an error message."""
    return ", ".join(map(str, items[:5])) + (", ..." if len(items) > 5 else "")


def crop_square(picture: Image.Image, size: int, rng: np.random.Generator | None) -> Image.Image:
    """Scale a picture until its shorter side is `size`, and cut a square out of it: anywhere, or without `rng` from
    the middle."""
    scale = size / min(picture.size)
    width, height = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    left, top = (free // 2 if rng is None else int(rng.integers(free + 1)) for free in (width - size, height - size))
    return picture.crop((left, top, left + size, top + size))


@dataclass(frozen=True)
class LowResolution:
    """What an upsampler is trained on: a crop of the picture, and the same crop of the reduced picture.

    The released upsampler's corruption of the small picture, if any, is not known. Ours is slight blur and noise, drawn
    anew for each example, so that the upsampler copes with a base model's pictures, which are no perfect reductions.

    Args:
        resolution (`int`): Width and height of the whole large picture.
        low_resolution (`int`): Width and height of the whole small picture.
        crop_size (`int`, *optional*): Width and height of the crop of the large picture; by default all of it.
        low_res_blur (`float`): Largest radius of a Gaussian blur of the small picture, in its pixels.
        low_res_noise (`float`): Largest deviation of Gaussian noise in the small picture, which spans [-1, 1].

    Raises:
        ValueError: if a value is out of its range.
    """

    resolution: int
    low_resolution: int
    crop_size: int | None = None
    low_res_blur: float = 0.0
    low_res_noise: float = 0.0

    def __post_init__(self) -> None:
        if self.low_resolution < 1 or self.resolution % self.low_resolution:
            raise ValueError(
                f"`low_resolution` must divide the resolution, {self.resolution}, got {self.low_resolution}."
            )
        factor = self.resolution // self.low_resolution
        if self.crop_size is not None and not (0 < self.crop_size <= self.resolution and self.crop_size % factor == 0):
            raise ValueError(
                f"`crop_size` must be a multiple of {factor} and at most {self.resolution}, got {self.crop_size}."
            )
        for name in ("low_res_blur", "low_res_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, torch.Tensor]:
        """The crop of the large picture, and that of the small one as `[3, h, w]`, of 8 bit."""
        factor = self.resolution // self.low_resolution
        small = picture.reduce(factor)
        crop = (self.crop_size or self.resolution) // factor
        left, top = (int(rng.integers(self.low_resolution - crop + 1)) for _ in range(2))
        if self.low_res_blur:
            # Before the cut, so that the crop's edge is not the edge of the world.
            small = small.filter(ImageFilter.GaussianBlur(rng.uniform(0, self.low_res_blur)))
        low_res = images_to_tensor([small.crop((left, top, left + crop, top + crop))])[0]
        if self.low_res_noise:
            deviation = rng.uniform(0, self.low_res_noise)
            low_res = low_res + deviation * _normal(rng, tuple(low_res.shape))
            low_res = round_pixels(low_res.clamp(-1, 1))
        box = tuple(factor * side for side in (left, top, left + crop, top + crop))
        return picture.crop(box), low_res


def _generator(seed: int, *key: int) -> np.random.Generator:
    """A stream of its own for each key, also where the source has the same seed: NumPy pads `(seed, index)` with zeros,
    which makes it the stream of a scene of `ShapesWorld`, and noise from that would tell what the picture shows."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


class TextToImageDataset(Dataset):
    """What a training step needs of each example, by the example's number in the run, without end.

    Args:
        source (`Callable[[int, np.random.Generator], tuple[Image.Image, str]]`): Pictures and captions by number.
        tokenizer (`PreTrainedTokenizerBase`): Of the text encoder; its `model_max_length` is the text context.
        weighting ([`TimestepWeighting`]): Draws the timesteps.
        seed (`int`): Of everything drawn here.
        proportion_empty_prompts (`float`): So many captions are replaced by the empty one, for classifier-free
            guidance (20 % in the paper).
        low_resolution ([`LowResolution`], *optional*): For upsamplers.
        noise_offset (`float`): Deviation of a constant that is added to the noise of each channel. An upsampler then
            cannot read the mean colour off x_t, and learns to take it from the small picture.
        draw_mask (`Callable[[np.random.Generator, int, int], torch.Tensor]`, *optional*): For inpainting models: draws
            a mask `[1, H, W]`, 1 = repaint, of a given height and width.

    Raises:
        ValueError: if `proportion_empty_prompts` or `noise_offset` is out of its range.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        weighting: TimestepWeighting,
        seed: int,
        proportion_empty_prompts: float = 0.2,
        low_resolution: LowResolution | None = None,
        noise_offset: float = 0.0,
        draw_mask: Callable[[np.random.Generator, int, int], torch.Tensor] | None = None,
    ) -> None:
        if not 0 <= proportion_empty_prompts <= 1:
            raise ValueError(f"`proportion_empty_prompts` must lie between 0 and 1, got {proportion_empty_prompts}.")
        if noise_offset < 0:
            raise ValueError(f"`noise_offset` must be at least 0, got {noise_offset}.")
        self.source = source
        self.tokenizer = tokenizer
        self.weighting = weighting
        self.seed = seed
        self.proportion_empty_prompts = proportion_empty_prompts
        self.low_resolution = low_resolution
        self.noise_offset = noise_offset
        self.draw_mask = draw_mask

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`pixel_values` and `noise` `[3, H, W]`, `timesteps` `[]`, `input_ids` and `attention_mask` `[L]`; for
        upsamplers `low_res` `[3, h, w]`, for inpainting models `image` `[3, H, W]` and `mask` `[1, H, W]`."""
        rng = _generator(self.seed, index)
        picture, caption = self.source(index, rng)
        if rng.random() < self.proportion_empty_prompts:
            caption = ""
        tokens = tokenize_prompts(self.tokenizer, [caption])
        example = {name: tokens[name][0] for name in ("input_ids", "attention_mask")}
        if self.low_resolution is not None:
            picture, example["low_res"] = self.low_resolution(picture, rng)
        example["pixel_values"] = images_to_tensor([picture])[0]
        example["noise"] = _normal(rng, tuple(example["pixel_values"].shape))
        if self.noise_offset:
            example["noise"] += self.noise_offset * _normal(rng, (3, 1, 1))
        example["timesteps"] = torch.tensor(self.weighting.draw(index, self.seed))
        if self.draw_mask is not None:
            example["image"] = example["pixel_values"]
            example["mask"] = self.draw_mask(rng, *example["image"].shape[1:])
        return example


class _MicroBatches:
    """Numbers of the examples of each micro batch of one process, step after step."""

    def __init__(self, first: int, steps: int, batch_size: int, accumulation: int, rank: int, world: int) -> None:
        self.first, self.steps, self.batch_size = first, steps, batch_size
        self.accumulation, self.rank, self.world = accumulation, rank, world

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        own = self.batch_size * self.accumulation
        for step in range(self.steps):
            start = self.first + (step * self.world + self.rank) * own
            for micro in range(self.accumulation):
                begin = start + micro * self.batch_size
                yield list(range(begin, begin + self.batch_size))


def make_loader(
    dataset: Dataset,
    first: int,
    steps: int,
    batch_size: int,
    accumulation: int,
    rank: int,
    world: int,
    num_workers: int,
) -> DataLoader:
    """One process's share of `steps` steps that begin at example number `first`.

    A step takes `world * accumulation * batch_size` neighbouring examples, so that the number of processes does not
    change what a step is made of.
    """
    return DataLoader(
        dataset,
        batch_sampler=_MicroBatches(first, steps, batch_size, accumulation, rank, world),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        # Its own: a loader draws from the generator when it starts, and dropout draws from the global one.
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_leave_stopping_to_the_trainer,
    )


def _leave_stopping_to_the_trainer(worker: int) -> None:
    """Ctrl-C and `timeout` reach the whole group of processes: a worker that they ended would take the run with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
