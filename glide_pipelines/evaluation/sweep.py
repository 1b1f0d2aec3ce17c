"""A sweep over guidance scales or samplers: draws each one's pictures, measures them, and goes on where it was stopped.

What is kept, in the folder of a sweep:

    guidance-3/000000.png      of each point, a picture for each caption; written aside and renamed
    guidance-3/settings.json   what these pictures depend on: a sweep of other settings is refused

Pictures that are there, and whole, are not drawn again. Figures are computed anew each time: that takes little beside
drawing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from diffusers import DiffusionPipeline
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from ..files import whole_file
from ..shapes.evaluation import WHOLE, Tally, generators
from .metrics import frechet_distance, inception_score, precision_recall
from .pictures import CaptionedPictures, ShapesPictures
from .report import claim_folder, fingerprint


CLASSIFIER_FREE, CLIP, BOTH = "classifier-free guidance", "CLIP guidance", "both guidances"


class Point(Protocol):
    """One point of a sweep."""

    @property
    def kind(self) -> str:
        """Which of the pipelines draws it."""

    @property
    def name(self) -> str:
        """For people and folders."""

    @property
    def settings(self) -> dict[str, Any]:
        """What tells its pictures from those of other points, as JSON can hold it."""

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline."""


@dataclass(frozen=True)
class Guidance:
    """A [`Point`] of a sweep over guidance scales.

    Args:
        kind (`str`): `CLASSIFIER_FREE`, `CLIP` or `BOTH`.
        scale (`float`): Of this guidance; of both, CLIP's.
        guidance_scale (`float`, defaults to 1.0): Of both, that of classifier-free guidance; 1 is off.
    """

    kind: str
    scale: float
    guidance_scale: float = 1.0

    @property
    def name(self) -> str:
        """For people and folders: `"guidance-3"`, `"clip-guidance-3"` or `"guidance-2-clip-guidance-3"`."""
        beside = f"guidance-{self.guidance_scale:g}-" if self.kind == BOTH else ""
        return f"{beside}{'' if self.kind == CLASSIFIER_FREE else 'clip-'}guidance-{self.scale:g}"

    @property
    def settings(self) -> dict[str, Any]:
        """The guidance, its scale, and the arguments of the pipeline."""
        return {"guidance": self.kind, "scale": self.scale, **self.call}

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline."""
        if self.kind == CLASSIFIER_FREE:
            return {"guidance_scale": self.scale}
        return {"guidance_scale": self.guidance_scale, "clip_guidance_scale": self.scale}


@dataclass(frozen=True)
class Sampling:
    """A [`Point`] of a sweep over samplers.

    Args:
        kind (`str`): The sampler.
        steps (`int`): Of the base stage.
        guidance_scale (`float`): Of classifier-free guidance.
        interval (`tuple[float, float]`, *optional*): The part of the steps that is guided, from the noisiest at 0 to
            the last at 1; all of them by default.
    """

    kind: str
    steps: int
    guidance_scale: float
    interval: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """For people and folders: `"ddim-20"` or `"ddim-20-guided-0.2-0.8"`."""
        guided = "" if self.interval is None else "-guided-{:g}-{:g}".format(*self.interval)
        return f"{self.kind}-{self.steps}{guided}"

    @property
    def settings(self) -> dict[str, Any]:
        """The fields."""
        return {
            "sampler": self.kind,
            "steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "interval": None if self.interval is None else list(self.interval),
        }

    @property
    def call(self) -> dict[str, Any]:
        """The arguments of the pipeline."""
        call: dict[str, Any] = {"num_inference_steps": self.steps}
        if self.interval is None:
            return {**call, "guidance_scale": self.guidance_scale}
        start, stop = self.interval
        return {**call, "guider": ClassifierFreeGuidance(self.guidance_scale, start=start, stop=stop)}


def join_processes(device: str | None = None) -> PartialState:
    """Join the processes that share the sweep. `ACCELERATE_USE_CPU` counts, as it does for an `Accelerator`:
    `PartialState` by itself does not look at it, and each process would draw everything.

    Args:
        device (`str`, *optional*): Where this process computes, if that is not accelerate's choice.

    Returns:
        `PartialState`: With the `device` that is this process's.
    """
    return PartialState(cpu=device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"))


def draw_pictures(
    pipe: DiffusionPipeline, captions: list[str], folder: Path, seed: int, batch_size: int, **call: Any
) -> None:
    """Draws what is not there yet, spread over the processes.

    Each picture has a generator of its own, and a batch is drawn whole by one process: neither the number of processes
    nor a stop in between changes a picture.

    Args:
        pipe (`DiffusionPipeline`): Called with captions.
        captions (`list[str]`): What to draw.
        folder (`Path`): Where the pictures go: `000000.png` is that of the first caption.
        seed (`int`): Of the first picture; each picture takes the next one.
        batch_size (`int`): Pictures drawn at a time.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for batch in _own_batches(len(captions), batch_size, folder.name):
        paths = [_path(folder, index) for index in batch]
        if all(_is_whole(path) for path in paths):
            continue
        prompts = [captions[index] for index in batch]
        pictures = pipe(prompts, generator=generators(seed + batch[0], len(batch)), **call).images
        for picture, path in zip(pictures, paths, strict=True):
            with whole_file(path) as aside:
                picture.save(aside)
    PartialState().wait_for_everyone()


class DrawnPictures:
    """Pictures that [`draw_pictures`] has drawn, beside their captions."""

    def __init__(self, folder: Path, captions: list[str]) -> None:
        self.folder = folder
        self.captions = captions

    def picture(self, index: int, size: int) -> Image.Image:
        """The picture of a caption, in the size that it was drawn in."""
        return Image.open(_path(self.folder, index)).convert("RGB")


@dataclass(frozen=True)
class Measured:
    """What the networks say of a set of pictures; those that could not be read are left out.

    Args:
        features (`torch.Tensor` of shape `[N, D]`): For the FID, precision and recall.
        log_probabilities (`torch.Tensor` of shape `[N, C]`, *optional*): For the Inception score.
        similarities (`torch.Tensor` of shape `[N]`, *optional*): To the captions, for the CLIP score.
        unreadable (`list[int]`): Which pictures were left out.
    """

    features: torch.Tensor
    log_probabilities: torch.Tensor | None
    similarities: torch.Tensor | None
    unreadable: list[int]


@torch.no_grad()
def measure(
    pictures: CaptionedPictures, size: int, network: nn.Module, clip: nn.Module | None, batch_size: int, title: str
) -> Measured:
    """Shows pictures to the networks, spread over the processes; every process gets all of the result.

    Args:
        pictures ([`CaptionedPictures`]): Real ones, or [`DrawnPictures`].
        size (`int`): Width and height of the pictures.
        network (`nn.Module`): Of [`load_feature_network`].
        clip (`nn.Module`, *optional*): Of [`load_clip`].
        batch_size (`int`): Pictures at a time.
        title (`str`): Of the progress bar.
    """
    device = next(network.parameters()).device
    rows: list[tuple[int, tuple[torch.Tensor | None, ...] | None]] = []
    for batch in _own_batches(len(pictures.captions), batch_size, title):
        opened = {index: pictures.picture(index, size) for index in batch}
        rows += [(index, None) for index, picture in opened.items() if picture is None]
        opened = {index: picture for index, picture in opened.items() if picture is not None}
        if not opened:
            continue
        pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in opened.values()]))
        pixels = pixels.permute(0, 3, 1, 2).to(device)
        features, log_probabilities = network(pixels)
        similarities = None if clip is None else clip(pixels, [pictures.captions[index] for index in opened])
        for place, index in enumerate(opened):
            answers = (features, log_probabilities, similarities)
            rows.append((index, tuple(None if answer is None else answer[place].cpu() for answer in answers)))
    rows = sorted(gather_object(rows), key=lambda row: row[0])
    answers = [answer for _, answer in rows if answer is not None]
    if not answers:
        raise ValueError("none of the pictures can be read.")
    columns = [None if column[0] is None else torch.stack(column) for column in zip(*answers, strict=True)]
    return Measured(*columns, unreadable=[index for index, answer in rows if answer is None])


def picture_size(pipe: DiffusionPipeline, caption: str, **call: Any) -> int:
    """Width and height of the square pictures that a pipeline draws: its `default_size`, which GLIDE's have, else those
    of one that it draws to find out.

    Args:
        pipe (`DiffusionPipeline`): Called with captions.
        caption (`str`): What to draw.
        call: Further arguments of the pipeline's call.

    Raises:
        ValueError: if it cannot draw from a caption and these arguments, or draws no square.
    """
    if hasattr(pipe, "default_size"):
        return pipe.default_size[0]
    try:
        width, height = pipe([caption], generator=generators(0, 1), **call).images[0].size
    except (AttributeError, TypeError, ValueError) as error:  # each pipeline has its own way to ask for more
        raise ValueError(f"{type(pipe).__name__} cannot draw from a caption alone: {error}") from error
    if width != height:
        raise ValueError(f"{type(pipe).__name__} must draw squares, but draws {width} x {height} pixels.")
    return width


def figures(real: Measured | None, measured: Measured, neighbours: int = 3) -> dict[str, float]:
    """The numbers of figure 6.

    Args:
        real ([`Measured`], *optional*): What to compare with.
        measured ([`Measured`]): The pictures to judge.
        neighbours (`int`, defaults to 3): For precision and recall.

    Returns:
        `dict`: `fid`, `precision` and `recall` if there is something to compare with, `inception_score` if the network
        is a classifier, `clip_score` if there is a CLIP.
    """
    result = {}
    if real is not None:
        result["fid"] = frechet_distance(real.features, measured.features)
        result["precision"], result["recall"] = precision_recall(real.features, measured.features, neighbours)
    if measured.log_probabilities is not None:
        result["inception_score"] = inception_score(measured.log_probabilities)
    if measured.similarities is not None:
        result["clip_score"] = measured.similarities.double().mean().item()
    return result


def run_sweep(
    pipes: Mapping[str, DiffusionPipeline],
    sweep: Sequence[Point],
    pictures: CaptionedPictures,
    folder: Path,
    settings: dict[str, Any],
    network: nn.Module,
    clip: nn.Module | None = None,
    seed: int = 0,
    batch_size: int = 32,
    neighbours: int = 3,
    size: int | None = None,
    **call: Any,
) -> dict[str, Any]:
    """Draws the captions at every point, and measures what was drawn.

    Args:
        pipes (`Mapping[str, DiffusionPipeline]`): By kind of the points; their pictures are square.
        sweep (`Sequence[Point]`): Of [`Guidance`], or of [`Sampling`].
        pictures ([`CaptionedPictures`]): What to draw, and to compare with. [`ShapesPictures`] are compared with other
            scenes, as many, so that what is found of the true pictures is what a perfect model would get; and drawings
            are judged.
        folder (`Path`): Where each point has a folder of pictures.
        settings (`dict`): What the pictures depend on beside captions, the points and the weights of the pipelines.
        network (`nn.Module`): Of [`load_feature_network`].
        clip (`nn.Module`, *optional*): Of [`load_clip`].
        seed (`int`, defaults to 0): Of the first picture; each picture takes the next one.
        batch_size (`int`, defaults to 32): Pictures at a time.
        neighbours (`int`, defaults to 3): For precision and recall.
        size (`int`, *optional*): Width and height of the pictures; by default the pipelines' `default_size`.
        call: Further arguments of the pipelines' calls, such as `num_inference_steps`.

    Returns:
        `dict`: `real`, the figures of the real pictures, with a `name`; `sweep`, a list of those of each point, with
            its `name` and settings too; `unreadable`, the numbers of real pictures that could not be read.

    Raises:
        ValueError: if there are too few pictures, or the folder cannot be written to or holds pictures of other
            settings.
    """
    if len(pictures.captions) <= neighbours:
        raise ValueError(
            f"`pictures` must be more than the {neighbours} `neighbours` of each, got {len(pictures.captions)}."
        )
    size = next(iter(pipes.values())).default_size[0] if size is None else size

    def show(shown: CaptionedPictures, title: str) -> Measured:
        return measure(shown, size, network, clip, batch_size, title)

    captions = hashlib.sha256("\0".join(pictures.captions).encode()).hexdigest()[:16]
    settings = {**settings, "captions": captions}  # those of a dataset may have been changed since
    weights = {kind: fingerprint(pipes[kind]) for kind in {point.kind for point in sweep}}
    for point in sweep:  # all of them, before hours are spent on the first
        claim_folder(folder / point.name, {**settings, "weights": weights[point.kind], **point.settings})
    truth: dict[str, Any] = {"name": "real pictures"}
    if isinstance(pictures, ShapesPictures):
        real = show(pictures.others(), "real pictures")
        truth |= figures(real, show(pictures, "true drawings"), neighbours) | _judged(pictures, pictures, size)
    else:
        real = show(pictures, "real pictures")
        truth |= figures(None, real)
    if len(real.features) <= neighbours:
        raise ValueError(
            f"`pictures` that can be read must be more than the {neighbours} `neighbours` of each, got "
            f"{len(real.features)}; {len(real.unreadable)} cannot be read."
        )
    rows = []
    for point in sweep:
        place = folder / point.name
        draw_pictures(pipes[point.kind], pictures.captions, place, seed, batch_size, **point.call, **call)
        drawn = DrawnPictures(place, pictures.captions)
        row = {"name": point.name, **point.settings, **figures(real, show(drawn, point.name), neighbours)}
        if isinstance(pictures, ShapesPictures):
            row |= _judged(drawn, pictures, size)
        rows.append(row)
    return {"real": truth, "sweep": rows, "unreadable": real.unreadable}


def _judged(shown: CaptionedPictures, pictures: ShapesPictures, size: int) -> dict[str, Any]:
    tally = Tally()
    for index, example in enumerate(pictures.examples):
        tally.add(shown.picture(index, size), example.caption)
    judged = tally.figures()
    return {"whole_caption": 100 * judged["accuracy"][WHOLE[0]]["share"], "judge": judged}


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:06}.png"


def _is_whole(path: Path) -> bool:
    """Whether a picture is there and can be read; what an earlier run left may have been damaged since."""
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _own_batches(count: int, batch_size: int, title: str) -> Iterator[range]:
    """This process's share of `count` items in batches, under a progress bar in the first process."""
    state = PartialState()
    starts = range(state.process_index * batch_size, count, state.num_processes * batch_size)
    for start in tqdm(starts, desc=title, unit="batch", leave=False, disable=not state.is_main_process):
        yield range(start, min(start + batch_size, count))
