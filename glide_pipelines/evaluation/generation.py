"""Generates an image for each caption, over several processes, and goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm.auto import tqdm

from ..files import atomic_file


_Item = TypeVar("_Item")


def generators(first_seed: int, count: int) -> list[torch.Generator]:
    """A generator for each of `count` images, seeded with consecutive numbers."""
    return [torch.Generator().manual_seed(first_seed + index) for index in range(count)]


def join_processes(device: str | None = None) -> PartialState:
    """Join the processes that share the work. `ACCELERATE_USE_CPU` counts, as it does for an `Accelerator`:
    `PartialState` by itself does not look at it, and each process would generate everything.

    Args:
        device (`str`, *optional*): Where this process computes, if that is not accelerate's choice.

    Returns:
        `PartialState`: With the `device` of this process.
    """
    return PartialState(cpu=device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"))


def own_batches(count: int, batch_size: int, title: str) -> Iterator[range]:
    """This process's share of `count` items in batches, under a progress bar in the main process."""
    state = PartialState()
    starts = range(state.process_index * batch_size, count, state.num_processes * batch_size)
    for start in tqdm(starts, desc=title, unit="batch", leave=False, disable=not state.is_main_process):
        yield range(start, min(start + batch_size, count))


def in_batches(items: Sequence[_Item], batch_size: int) -> Iterator[tuple[int, Sequence[_Item]]]:
    """All items in batches, each with the index of its first, under a progress bar that counts items."""
    with tqdm(total=len(items), unit="image", leave=False) as bar:
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            yield start, batch
            bar.update(len(batch))


def generate_images(
    pipe: DiffusionPipeline, captions: list[str], folder: Path, seed: int, batch_size: int, **call: Any
) -> None:
    """Generate the images that are not there yet, spread over the processes.

    Each image has a generator of its own, and a batch is generated whole by one process: neither the number of
    processes nor a stop in between changes an image.

    Args:
        pipe (`DiffusionPipeline`): Called with captions.
        captions (`list[str]`): What to generate.
        folder (`Path`): Where the images go: `000000.png` is that of the first caption.
        seed (`int`): Of the first image; each image takes the next one.
        batch_size (`int`): Images at a time.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for batch in own_batches(len(captions), batch_size, folder.name):
        paths = [_path(folder, index) for index in batch]
        if all(_is_whole(path) for path in paths):
            continue
        prompts = [captions[index] for index in batch]
        images = pipe(prompts, generator=generators(seed + batch[0], len(batch)), **call).images
        for image, path in zip(images, paths, strict=True):
            with atomic_file(path) as temporary:
                image.save(temporary)
    PartialState().wait_for_everyone()


class GeneratedImages:
    """[`CaptionedImages`] that [`generate_images`] has written."""

    def __init__(self, folder: Path, captions: list[str]) -> None:
        self.folder = folder
        self.captions = captions

    def image(self, index: int, size: int) -> Image.Image:
        """The image of a caption, in the size in which it was generated."""
        return Image.open(_path(self.folder, index)).convert("RGB")


class SampledImages:
    """[`CaptionedImages`] that are generated when they are asked for, a batch at a time, as [`generate_images`] does;
    only the last batch is kept.

    Args:
        pipe (`DiffusionPipeline`): Called with captions.
        captions (`list[str]`): What to generate.
        seed (`int`): Of the first image; each image takes the next one.
        batch_size (`int`): Images at a time; images are best asked for in batches of this size.
        call: Further arguments of the pipeline's call.
    """

    def __init__(self, pipe: DiffusionPipeline, captions: list[str], seed: int, batch_size: int, **call: Any) -> None:
        self.pipe, self.captions, self.seed, self.batch_size, self.call = pipe, captions, seed, batch_size, call
        self._batch: dict[int, Image.Image] = {}

    def image(self, index: int, size: int) -> Image.Image:
        """The image of a caption, in the size in which it is generated."""
        if index not in self._batch:
            prompts = self.captions[index : index + self.batch_size]
            images = self.pipe(prompts, generator=generators(self.seed + index, len(prompts)), **self.call).images
            self._batch = dict(enumerate(images, index))
        return self._batch[index].convert("RGB")


def image_size(pipe: DiffusionPipeline, caption: str, **call: Any) -> int:
    """Width and height of the square images that a pipeline generates: its `default_size`, which GLIDE's pipelines
    have, else those of one image that it generates to find out.

    Args:
        pipe (`DiffusionPipeline`): Called with captions.
        caption (`str`): What to generate.
        call: Further arguments of the pipeline's call.

    Raises:
        ValueError: if it needs more than a caption and these arguments, or its images are not square.
    """
    if hasattr(pipe, "default_size"):
        return pipe.default_size[0]
    try:
        width, height = pipe([caption], generator=generators(0, 1), **call).images[0].size
    except (AttributeError, TypeError, ValueError) as error:  # each pipeline has its own way to ask for more
        raise ValueError(f"{type(pipe).__name__} cannot generate from a caption alone: {error}") from error
    if width != height:
        raise ValueError(f"{type(pipe).__name__} must generate squares, but makes {width} x {height} pixels.")
    return width


class _Stop(Exception):
    """Ends a call after its first step."""


def check_call(pipe: DiffusionPipeline, caption: str, **call: Any) -> None:
    """Run a pipeline up to its first step, so that what it refuses is known before hours are spent.

    Args:
        pipe (`DiffusionPipeline`): Called with captions; it takes a `callback_on_step_end`.
        caption (`str`): What to generate.
        call: Further arguments of the pipeline's call.

    Raises:
        ValueError: as the pipeline does.
    """

    def stop(*step: Any) -> dict[str, torch.Tensor]:
        raise _Stop

    with suppress(_Stop):
        pipe([caption], generator=generators(0, 1), callback_on_step_end=stop, **call)


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:06}.png"


def _is_whole(path: Path) -> bool:
    """Whether an image is there and can be read; what an earlier run left may have been damaged since."""
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # decoders raise what they like
        return False
    return True
