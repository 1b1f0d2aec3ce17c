"""What the `glide` command does once its options are read: load a pipeline, draw, write one file."""

from __future__ import annotations

import argparse
import importlib
import logging
import math
import os
import secrets
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.utils
import torch
import transformers.utils.logging
from diffusers import SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import SafetensorError

import glide_cli

from . import (
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
    shapes_checkpoint,
)
from .files import whole_file
from .pipelines.pipeline_utils import GLIDEPipelineBase


def draw(args: argparse.Namespace) -> None:
    """Load the model, draw, and write the picture or the grid of pictures.

    Args:
        args (`argparse.Namespace`): The options, as `glide_cli.build_parser` reads them.

    Raises:
        argparse.ArgumentError: if the model, an option's value, the device or the output file is at fault.
    """
    _speak_plainly(args.quiet)
    pipe = _task(args).from_pipe(load_pipeline(args))
    pipe.set_progress_bar_config(disable=args.quiet)
    num_images = len(args.prompt) * args.num_images
    # One seed per picture, so that a picture of a grid can be drawn again alone.
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    try:
        images = pipe(
            args.prompt,
            num_images_per_prompt=args.num_images,
            generator=[torch.Generator().manual_seed(seed + index) for index in range(num_images)],
            **_task_arguments(args),
        ).images
    except ValueError as error:
        # The pipeline checks its arguments before any network runs, and all of them came from the user.
        raise argparse.ArgumentError(None, str(error)) from error
    one_row_per_prompt = len(args.prompt) > 1 and args.num_images > 1
    picture = make_grid(images, args.num_images if one_row_per_prompt else math.ceil(math.sqrt(num_images)))
    save_whole(picture, args.output)
    if not args.quiet:
        seeds = f"seed {seed}" if num_images == 1 else f"seeds {seed} to {seed + num_images - 1}"
        print(f"{args.output}: {picture.width} x {picture.height} pixels, {seeds}")


def _task(args: argparse.Namespace) -> type[GLIDEPipelineBase]:
    """The pipeline of the task that the options make."""
    if args.image is None:
        return GLIDEPipeline
    if args.enlarge:
        return GLIDESuperResolutionPipeline
    return GLIDEImg2ImgPipeline if args.mask is None else GLIDEInpaintPipeline


def _task_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What the task's pipeline takes of the options that were given; the rest is left at its defaults."""
    given = {
        "image": None if args.image is None else _open_picture(args.image),
        "mask_image": None if args.mask is None else _open_picture(args.mask),
        "strength": args.strength,
        "guidance_scale": args.guidance_scale,
        "negative_prompt": args.negative_prompt,
        **steps_arguments(args),
    }
    return {name: value for name, value in given.items() if value is not None}


def _open_picture(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise argparse.ArgumentError(None, f"{path} cannot be read as a picture: {error}") from error
    return picture


def load_pipeline(args: argparse.Namespace) -> GLIDEPipelineBase:
    """The pipeline that the options ask for, on its device.

    Raises:
        argparse.ArgumentError: if there is no such model or device.
    """
    device = find_device(args.device)
    if args.model is not None:
        model = args.model
    else:
        model = str(shapes_checkpoint("text-to-image" if getattr(args, "mask", None) is None else "inpaint"))
    # "owner/name" may be on the Hub; anything else can only be a folder.
    if os.path.isfile(model):
        raise argparse.ArgumentError(None, f"--model {model}: a file; give its folder")
    if not os.path.isdir(model) and (model.count("/") != 1 or model.startswith((".", "~", "/"))):
        raise argparse.ArgumentError(None, f"--model {model}: no such folder")
    left_out = ("super_res_unet", "super_res_text_encoder", "super_res_scheduler") if args.no_upsample else ()
    pipeline_class = GLIDESuperResolutionPipeline if getattr(args, "enlarge", False) else GLIDEPipeline
    try:
        pipe = pipeline_class.from_pretrained(model, dtype=getattr(torch, args.dtype), **dict.fromkeys(left_out))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise argparse.ArgumentError(None, f"--model {model}: {error}") from error
    for component, name in (("scheduler", args.scheduler), ("super_res_scheduler", args.super_res_scheduler)):
        current = getattr(pipe, component)
        if name is not None and current is not None:
            pipe.register_modules(**{component: other_scheduler(current, name)})
    pipe.set_progress_bar_config(disable=args.quiet)
    return pipe.to(device)


def other_scheduler(current: SchedulerMixin, name: str) -> SchedulerMixin:
    """Another scheduler, one of `glide_cli.SCHEDULERS`, with the noise schedule of the current one."""
    path, settings = glide_cli.SCHEDULERS[name]
    library, class_name = path.split(".")
    return getattr(importlib.import_module(library), class_name).from_config(current.config, **settings)


def make_grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side on white, `columns` in a row; one picture alone is returned as it is."""
    if len(images) == 1:
        return images[0]
    width, height = images[0].size
    gap = max(width // 32, 1)
    rows = math.ceil(len(images) / columns)
    grid = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        grid.paste(image, (column * (width + gap), row * (height + gap)))
    return grid


def save_whole(picture: Image.Image, path: Path) -> None:
    """Write the picture: the file is whole, or as it was before.

    Raises:
        argparse.ArgumentError: if it cannot be written.
    """
    try:
        with whole_file(path) as aside:
            picture.save(aside, quality=95)
    except OSError as error:
        raise argparse.ArgumentError(None, f"cannot write {path}: {error.strerror or error}") from error


def steps_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """The steps of both stages, as a pipeline takes them: a number, which every scheduler knows, or a spacing."""
    arguments = {}
    for prefix, steps in (("", args.steps), ("super_res_", args.super_res_steps)):
        if steps is not None:
            arguments[prefix + ("timesteps" if isinstance(steps, str) else "num_inference_steps")] = steps
    return arguments


def find_device(name: str | None) -> torch.device:
    """The device that `--device` names, or the best there is.

    Raises:
        argparse.ArgumentError: if this machine cannot compute there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        # The first sentence says what is wrong, the rest is for those who build torch.
        reason = str(error).splitlines()[0].split(". ")[0]
        raise argparse.ArgumentError(None, f"--device {name}: {reason}") from error
    if device.type == "meta":
        raise argparse.ArgumentError(None, f"--device {name}: this device computes shapes only, it draws nothing")
    return device


def silence_libraries() -> None:
    """No bars but those of sampling and downloads; no notes of other libraries."""
    for library in (transformers.utils.logging, diffusers_logging):
        library.disable_progress_bar()
        library.set_verbosity_error()
    warnings.simplefilter("ignore")


def _speak_plainly(quiet: bool) -> None:
    """Our warnings as one line each, and nothing of other libraries."""
    silence_libraries()
    if quiet:
        huggingface_hub.utils.disable_progress_bars()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("glide: warning: %(message)s"))
    logger = logging.getLogger("glide_pipelines")
    logger.handlers = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.WARNING)
