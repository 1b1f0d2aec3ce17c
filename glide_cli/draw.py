"""Generate and edit images from text with GLIDE (arXiv 2112.10741)."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from typing import Any

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
        help="how much of the sketch to repaint, above 0, up to 1 (default: 0.8)",
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


def check_arguments(args: argparse.Namespace) -> None:
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
    """Generate, and write the image or the grid of images."""
    from .run_draw import draw

    draw(args)
