"""Generate and edit images from text with GLIDE (arXiv 2112.10741)."""

from __future__ import annotations

import argparse
import math
import secrets
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .options import (
    FAST,
    SCHEDULERS,
    add_model_options,
    add_sampling_options,
    finite,
    image_file,
    input_file,
    positive_int,
    seed,
    strength,
)


if TYPE_CHECKING:  # importing it takes seconds
    from diffusers import DiffusionPipeline

EXAMPLES = """\
examples:
  An image from the small model that ships with the package:
    glide "a red circle above a blue square" -o image.png

  A grid of nine, in 20 steps of a faster sampler, the same ones each time:
    glide "a green star and a red circle on a white background" -o grid.png --num-images 9 \\
        --scheduler dpm-solver++ --steps 20 --seed 7

  Repaint what is white in mask.png; the prompt describes the whole image afterwards:
    glide "a green star and a blue square" --image image.png --mask mask.png -o edited.png

  OpenAI's GLIDE, converted to a folder (see docs/released_checkpoints.md):
    glide "an oil painting of a corgi" -o corgi.png --model glide-text2im --device cuda --dtype float16

other commands, each with its own --help:
{commands}
  A prompt that is one of these words: glide draw app -o image.png
"""
TASKS = ("mask", "strength", "enlarge")  # the options that choose an editing task


def parser_settings(commands: str) -> dict[str, Any]:
    """What the parser of this command is made with; `commands` is a list of the other ones, for its help."""
    return {
        "usage": "glide PROMPT [PROMPT ...] -o FILE [options]",
        "epilog": EXAMPLES.format(commands=commands),
        "formatter_class": lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
        "add_help": False,  # it stands in the last group
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `glide` and `glide draw`."""
    what = parser.add_argument_group("what to generate")
    what.add_argument("prompt", nargs="+", metavar="PROMPT", help="what the image shows; each prompt gets its own")
    what.add_argument(
        "-o", "--output", type=image_file, required=True, metavar="FILE", help="where to write it: .png, .jpg ..."
    )
    what.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from (default: nothing)")
    what.add_argument(
        "--num-images", type=positive_int, default=1, metavar="N", help="images per prompt (default: %(default)s)"
    )
    what.add_argument("--seed", type=seed, metavar="N", help="generate the same image each time (default: a new one)")

    edit = parser.add_argument_group("editing an image (the task follows from what is given)")
    edit.add_argument("--image", type=input_file, metavar="FILE", help="start from this image as a sketch (SDEdit)")
    edit.add_argument(
        "--mask", type=input_file, metavar="FILE", help="repaint --image where this is white, and nowhere else"
    )
    edit.add_argument(
        "--strength",
        type=strength,
        metavar="X",
        help="how much of the sketch is repainted, above 0 and up to 1 (default: 0.8)",
    )
    edit.add_argument("--enlarge", action="store_true", help="make --image four times as large")

    how = parser.add_argument_group(
        "how to sample",
        f"""STEPS is a number, or one of GLIDE's spacings: fast27, ddim50, 10,10,3,2,2.
NAME: {", ".join(SCHEDULERS)}.""",
    )
    add_sampling_options(how)
    how.add_argument(
        "--guidance-scale",
        type=finite,
        metavar="X",
        help="how closely to follow the prompt; 1 is no guidance, half the work of the base (default: what the model "
        "recommends, else 3, or 5 with --mask)",
    )
    how.add_argument("--no-upsample", action="store_true", help="stop at the base model's small image")

    add_model_options(parser.add_argument_group("which model, and where it runs"))

    other = parser.add_argument_group("other")
    other.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    package = "glide-pipelines"
    other.add_argument("--version", action="version", version=f"{package} {version(package)}", help="show the version")
    other.add_argument("-h", "--help", action="help", help="show this page")


def check_task(args: argparse.Namespace) -> None:
    """The editing options must make one task together.

    Raises:
        UserError: if they do not.
    """
    given = [f"--{option}" for option in TASKS if getattr(args, option)]
    if given and args.image is None:
        raise UserError(f"{given[0]} needs --image")
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are different tasks: give one of them")
    if args.image is not None and args.no_upsample:
        raise UserError("--no-upsample is for a prompt alone: --image says how large the result is")
    if args.enlarge:
        for option in ("steps", "scheduler", "guidance_scale", "negative_prompt"):
            if getattr(args, "fast", False) and getattr(args, option) == FAST.get(option):
                setattr(args, option, None)
            elif getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise UserError(f"--{name} is for the base model, which --enlarge does not run")


def run(args: argparse.Namespace) -> None:
    """Load the model, generate, and write the image or the grid of images.

    Raises:
        UserError: if the options, the model, the device or a file is at fault.
    """
    check_task(args)

    import torch

    from .loading import load_pipeline, model_values
    from .output import make_grid, save_image

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
    from glide_pipelines import (
        GLIDEImg2ImgPipeline,
        GLIDEInpaintPipeline,
        GLIDEPipeline,
        GLIDESuperResolutionPipeline,
    )

    if args.enlarge:
        return GLIDESuperResolutionPipeline, GLIDESuperResolutionPipeline
    if args.image is None:
        return GLIDEPipeline, GLIDEPipeline
    return (GLIDEImg2ImgPipeline if args.mask is None else GLIDEInpaintPipeline), GLIDEPipeline


def _call_values(args: argparse.Namespace) -> dict[str, Any]:
    """What the task's pipeline takes of the options that were given; the rest stays at its defaults."""
    from .loading import open_image, step_values

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
    import logging

    import huggingface_hub.utils

    from .loading import silence_libraries

    silence_libraries()
    if quiet:
        huggingface_hub.utils.disable_progress_bars()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("glide: warning: %(message)s"))
    logger = logging.getLogger("glide_pipelines")
    logger.handlers = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.WARNING)
