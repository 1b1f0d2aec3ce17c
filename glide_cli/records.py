"""What an image remembers of how it was generated: the options of `glide draw`, and what those that were not given
stand for. `glide_pipelines.metadata` writes it into files and reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from PIL import Image

from glide_pipelines import __version__
from glide_pipelines.metadata import fingerprint

from .draw import RECORDED


def make_record(
    given: Mapping[str, Any], pipe: DiffusionPipeline, images: Mapping[str, Image.Image | None], clip_model: Any = None
) -> dict[str, Any]:
    """What all images of a run share.

    Args:
        given (`Mapping[str, Any]`): Options of `draw.RECORDED`; None stands for the default, as does what is missing.
        pipe (`DiffusionPipeline`): What generates.
        images (`Mapping[str, PIL.Image.Image | None]`): `image` and `mask`, where the task takes them.
        clip_model (*optional*): The noised CLIP that guides.

    Returns:
        `dict`: values that JSON knows, without those that nobody gave.
    """
    options = {name: given.get(name) for name in RECORDED}
    components = {**pipe.components, "clip": clip_model}
    record: dict[str, Any] = {
        "version": __version__,
        # The seeds are those of each file: see `about_images`.
        **{name: str(value) if isinstance(value, Path) else value for name, value in options.items() if name != "seed"},
        "model": options["model"] or "shapes",
        "guidance_scale": guidance_scale(options, pipe),
        "fingerprints": {
            "model": fingerprint(components.values()),
            **{name: image_fingerprint(image) for name, image in images.items() if image is not None},
        },
    }
    for number, stage in enumerate(pipe.stages.values()):
        steps = pipe.default_steps(stage.name, steered=number == 0 and clip_model is not None)
        record[f"{stage.prefix}steps"] = options[f"{stage.prefix}steps"] or steps
        record[f"{stage.prefix}scheduler_class"] = type(stage.scheduler).__name__
    return {name: value for name, value in record.items() if value is not None}


def about_images(prompts: list[str], seeds: list[int], size: tuple[int, int]) -> dict[str, Any]:
    """What the record of one file has besides: the prompts, a seed for each image, and an image's width and height."""
    return {
        "prompt": prompts,
        "num_images": len(seeds) // len(prompts),
        "seed": seeds[0],
        "seeds": seeds,
        "size": size,
    }


def guidance_scale(options: Mapping[str, Any], pipe: DiffusionPipeline) -> float | None:
    """What was given, else the default of the task; enlarging is not guided."""
    default = None if options.get("enlarge") else pipe.default_guidance_scale
    return default if options.get("guidance_scale") is None else options["guidance_scale"]


def image_fingerprint(image: Image.Image) -> str:
    """A short name for an image's pixels: ten hexadecimal digits."""
    return hashlib.sha256(f"{image.mode}{image.size}".encode() + image.tobytes()).hexdigest()[:10]
