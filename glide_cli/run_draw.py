"""What `glide draw` does once its options are read: load a pipeline, generate, write one file."""

from __future__ import annotations

import argparse
import logging
import math
import secrets
from typing import Any

import huggingface_hub.utils
import torch
from diffusers import DiffusionPipeline

from glide_pipelines import (
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)

from .errors import UserError
from .loading import load_pipeline, model_values, open_image, silence_libraries, step_values
from .output import make_grid, save_image


def draw(args: argparse.Namespace) -> None:
    """Load the model, generate, and write the image or the grid of images.

    Raises:
        UserError: if the options, the model, the device or a file is at fault.
    """
    _speak_plainly(args.quiet)
    # An upsampler that was saved alone opens only as what enlarges; all else opens as the text-to-image pipeline.
    task, loaded_as = _task(args)
    checkpoint = "text-to-image" if args.mask is None else "inpaint"
    pipe = task.from_pipe(
        load_pipeline(
            **model_values(args), checkpoint=checkpoint, pipeline_class=loaded_as, upsample=not args.no_upsample
        )
    )
    pipe.set_progress_bar_config(disable=args.quiet)
    num_images = len(args.prompt) * args.num_images
    # One seed per image, so that an image of a grid can be generated again alone.
    first_seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    try:
        images = pipe(
            args.prompt,
            num_images_per_prompt=args.num_images,
            generator=[torch.Generator().manual_seed(first_seed + index) for index in range(num_images)],
            **_call_values(args),
        ).images
    except ValueError as error:
        # The pipeline checks its arguments before any network runs, and all of them came from the user.
        raise UserError(str(error)) from error
    one_row_per_prompt = len(args.prompt) > 1 and args.num_images > 1
    grid = make_grid(images, args.num_images if one_row_per_prompt else math.ceil(math.sqrt(num_images)))
    save_image(grid, args.output)
    if not args.quiet:
        seeds = f"seed {first_seed}" if num_images == 1 else f"seeds {first_seed} to {first_seed + num_images - 1}"
        print(f"{args.output}: {grid.width} x {grid.height} pixels, {seeds}")


def _task(args: argparse.Namespace) -> tuple[type[DiffusionPipeline], type[DiffusionPipeline]]:
    """The pipeline of the task that the options make, and the one that its model is loaded as."""
    if args.enlarge:
        return GLIDESuperResolutionPipeline, GLIDESuperResolutionPipeline
    if args.image is None:
        return GLIDEPipeline, GLIDEPipeline
    return (GLIDEImg2ImgPipeline if args.mask is None else GLIDEInpaintPipeline), GLIDEPipeline


def _call_values(args: argparse.Namespace) -> dict[str, Any]:
    """What the task's pipeline takes of the options that were given; the rest stays at its defaults."""
    given = {
        "image": None if args.image is None else open_image(args.image),
        "mask_image": None if args.mask is None else open_image(args.mask),
        "strength": args.strength,
        "guidance_scale": args.guidance_scale,
        "negative_prompt": args.negative_prompt,
        **step_values(args.steps, args.super_res_steps),
    }
    return {name: value for name, value in given.items() if value is not None}


def _speak_plainly(quiet: bool) -> None:
    """This library's warnings as one line each, and nothing of other libraries."""
    silence_libraries()
    if quiet:
        huggingface_hub.utils.disable_progress_bars()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("glide: warning: %(message)s"))
    logger = logging.getLogger("glide_pipelines")
    logger.handlers = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.WARNING)
