"""A sweep over guidance scales or samplers: generates each point's images and measures them.

What is kept, in the folder of a sweep:

    guidance-3/000000.png      of each point, an image for each caption; written aside and renamed
    guidance-3/settings.json   what these images depend on: a sweep of other settings is refused

Images that are there, and whole, are not generated again. Figures are computed anew each time: that takes little beside
generating.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from torch import nn

from .generation import GeneratedImages, generate_images, image_size, own_batches
from .images import CaptionedImages, JudgedImages
from .metrics import frechet_distance, inception_score, precision_recall
from .points import Point
from .settings import check_and_write_settings, weights_digest


@dataclass(frozen=True)
class Measured:
    """What the networks say of a set of images, without those that could not be read.

    Args:
        features (`torch.Tensor` of shape `[N, D]`): For the FID, precision and recall.
        log_probabilities (`torch.Tensor` of shape `[N, C]`, *optional*): For the Inception score.
        similarities (`torch.Tensor` of shape `[N]`, *optional*): To the captions, for the CLIP score.
        unreadable (`list[int]`): Which images were left out.
    """

    features: torch.Tensor
    log_probabilities: torch.Tensor | None
    similarities: torch.Tensor | None
    unreadable: list[int]


@torch.no_grad()
def measure(
    images: CaptionedImages, size: int, network: nn.Module, clip: nn.Module | None, batch_size: int, title: str
) -> Measured:
    """Show images to the networks, spread over the processes; every process gets all of the result.

    Args:
        images ([`CaptionedImages`]): Real ones, or [`GeneratedImages`].
        size (`int`): Width and height of the images.
        network (`nn.Module`): Of [`load_feature_network`].
        clip (`nn.Module`, *optional*): Of [`load_clip`].
        batch_size (`int`): Images at a time.
        title (`str`): Of the progress bar.

    Raises:
        ValueError: if none of the images can be read.
    """
    device = next(network.parameters()).device
    rows: list[tuple[int, tuple[Any, ...] | None]] = []
    for batch in own_batches(len(images.captions), batch_size, title):
        opened = {index: images.image(index, size) for index in batch}
        rows += [(index, None) for index, image in opened.items() if image is None]
        readable = {index: np.asarray(image) for index, image in opened.items() if image is not None}
        if not readable:
            continue
        pixels = torch.from_numpy(np.stack(list(readable.values()))).permute(0, 3, 1, 2).to(device)
        features, log_probabilities = network(pixels)
        similarities = None if clip is None else clip(pixels, [images.captions[index] for index in readable])
        answers = (features, log_probabilities, similarities)
        for place, index in enumerate(readable):
            rows.append((index, tuple(None if answer is None else answer[place].cpu() for answer in answers)))
    rows = sorted(gather_object(rows), key=lambda row: row[0])
    known = [answer for _, answer in rows if answer is not None]
    if not known:
        raise ValueError("none of the images can be read.")
    features, log_probabilities, similarities = (
        None if column[0] is None else torch.stack(column) for column in zip(*known, strict=True)
    )
    unreadable = [index for index, answer in rows if answer is None]
    return Measured(cast(torch.Tensor, features), log_probabilities, similarities, unreadable)


def figures(
    real: Measured | None, measured: Measured, neighbours: int = 3, labels: torch.Tensor | None = None
) -> dict[str, float]:
    """The numbers of figure 6 of the paper, and how often a classifier finds the right class.

    Args:
        real ([`Measured`], *optional*): What to compare with.
        measured ([`Measured`]): The images to measure.
        neighbours (`int`, defaults to 3): For precision and recall.
        labels (`torch.Tensor` of shape `[M]`, *optional*): The class of each of the `M` images, those that cannot be
            read included.

    Returns:
        `dict`: `fid`, `precision` and `recall` if there is something to compare with, `inception_score` if the network
        is a classifier, `clip_score` if there is a CLIP, `top1` and `top5`, in per cent, if there are labels.
    """
    result = {}
    if real is not None:
        result["fid"] = frechet_distance(real.features, measured.features)
        result["precision"], result["recall"] = precision_recall(real.features, measured.features, neighbours)
    if measured.log_probabilities is not None:
        result["inception_score"] = inception_score(measured.log_probabilities)
    if measured.similarities is not None:
        result["clip_score"] = measured.similarities.double().mean().item()
    if measured.log_probabilities is not None and labels is not None:
        keep = torch.ones(len(labels), dtype=torch.bool)
        keep[measured.unreadable] = False
        own = measured.log_probabilities.gather(1, labels[keep, None])
        before = (measured.log_probabilities > own).sum(dim=1)  # classes that are likelier than the right one
        result |= {f"top{k}": 100 * (before < k).double().mean().item() for k in (1, 5)}
    return result


def class_numbers(images: CaptionedImages, network: nn.Module) -> torch.Tensor | None:
    """The classes that images are labelled with, as a classifier numbers them; None where they have no labels.

    Raises:
        ValueError: if the network is no classifier, or does not know a label.
    """
    labels = getattr(images, "labels", None)
    if labels is None:
        return None
    names = getattr(network, "class_names", None)
    if names is None:
        raise ValueError("`label_column` needs `features` that are an image classifier.")
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [label for label in labels if label not in numbers]
    if unknown:
        raise ValueError(f"`label_column` holds {unknown[0]!r}, which is no class of `features`.")
    return torch.tensor([numbers[label] for label in labels])


def run_sweep(
    pipes: Mapping[str, DiffusionPipeline],
    sweep: Sequence[Point],
    images: CaptionedImages,
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
    """Generate images of the captions at every point, and measure them.

    Args:
        pipes (`Mapping[str, DiffusionPipeline]`): By kind of the points; their images are square.
        sweep (`Sequence[Point]`): Of [`Guidance`], or of [`Sampling`].
        images ([`CaptionedImages`]): What to generate, and to compare with. [`JudgedImages`] are compared with their
            `others`, so that the figures of the true images are what a perfect model would get; and generated images
            are judged. Of those with `labels`, the network says how many are of the right class.
        folder (`Path`): Where each point has a folder of images.
        settings (`dict`): What the images depend on besides captions, the points and the weights of the pipelines.
        network (`nn.Module`): Of [`load_feature_network`].
        clip (`nn.Module`, *optional*): Of [`load_clip`].
        seed (`int`, defaults to 0): Of the first image; each image takes the next one.
        batch_size (`int`, defaults to 32): Images at a time.
        neighbours (`int`, defaults to 3): For precision and recall.
        size (`int`, *optional*): Width and height of the images; by default the pipelines' `default_size`.
        call: Further arguments of the pipelines' calls, such as `num_inference_steps`.

    Returns:
        `dict`: `real`, the figures of the real images, with a `name`; `sweep`, a list of those of each point, with its
            `name` and settings too; `unreadable`, the numbers of real images that could not be read.

    Raises:
        ValueError: if there are too few images, or the folder cannot be written to or holds images of other settings.
    """
    if len(images.captions) <= neighbours:
        raise ValueError(
            f"`images` must be more than the {neighbours} `neighbours` of each, got {len(images.captions)}."
        )
    side = image_size(next(iter(pipes.values())), images.captions[0], **call) if size is None else size

    def show(shown: CaptionedImages, title: str) -> Measured:
        return measure(shown, side, network, clip, batch_size, title)

    def judged(shown: CaptionedImages) -> dict[str, Any]:
        if not isinstance(images, JudgedImages):
            return {}
        opened = (shown.image(index, side) for index in range(len(images.captions)))
        return images.judge([image for image in opened if image is not None])

    labels = class_numbers(images, network)
    captions = hashlib.sha256("\0".join(images.captions).encode()).hexdigest()[:16]
    settings = {**settings, "captions": captions}  # those of a dataset may have been changed since
    weights = {kind: weights_digest(pipes[kind]) for kind in {point.kind for point in sweep}}
    for point in sweep:  # all of them, before hours are spent on the first
        check_and_write_settings(folder / point.name, {**settings, "weights": weights[point.kind], **point.settings})
    truth: dict[str, Any] = {"name": "real images"}
    if isinstance(images, JudgedImages):
        real = show(images.others(), "real images")
        truth |= figures(real, show(images, "true images"), neighbours) | judged(images)
    else:
        real = show(images, "real images")
        truth |= figures(None, real, labels=labels)
    if len(real.features) <= neighbours:
        raise ValueError(
            f"`images` that can be read must be more than the {neighbours} `neighbours` of each, got "
            f"{len(real.features)}; {len(real.unreadable)} cannot be read."
        )
    rows = []
    for point in sweep:
        place = folder / point.name
        generate_images(pipes[point.kind], images.captions, place, seed, batch_size, **point.call, **call)
        generated = GeneratedImages(place, images.captions)
        measured = figures(real, show(generated, point.name), neighbours, labels)
        rows.append({"name": point.name, **point.settings, **measured, **judged(generated)})
    return {"real": truth, "sweep": rows, "unreadable": real.unreadable}
