"""Generate and edit images from text with GLIDE (arXiv 2112.10741)."""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from typing import Any

from .errors import UserError
from .options import (
    FAST,
    SCHEDULERS,
    STDOUT,
    add_model_options,
    add_sampling_options,
    animation_file,
    count,
    finite,
    images_file,
    input_file,
    is_pattern,
    positive_int,
    prompts_file,
    seed,
    sentence,
    share,
    strength,
)


EXAMPLES = """\
examples:
  An image from one of the two small models that ship with the package, whichever knows the words:
    glide "a red circle above a blue square" -o image.png
    glide "a slice of pizza" -o pizza.png

  The same image again, and one in fewer steps (an image remembers how it was generated):
    glide --like image.png -o again.png
    glide --like image.png --steps 20 -o quicker.png

  A grid of nine, in ten steps of each stage; and nine files in a folder:
    glide "a green star to the left of a red circle" -o grid.png --num-images 9 --fast
    glide "a green star to the left of a red circle" -o stars/ --num-images 9 --fast --seed 7

  Repaint what is white in mask.png; the prompt describes the whole image afterwards:
    glide "a green star above a blue square" --image image.png --mask mask.png -o edited.png

  OpenAI's GLIDE, converted to a folder (see docs/released_checkpoints.md):
    glide "an oil painting of a corgi" -o corgi.png --model glide-text2im --device cuda --dtype float16

other commands, each with its own --help:
{commands}
  A prompt that is one of these words: glide draw app -o image.png
"""
TASKS = ("mask", "strength", "enlarge")  # the options that choose an editing task
NEEDS = {"padding_mask_crop": "mask", "num_resample": "mask", **dict.fromkeys(TASKS, "image")}
OF_THE_BASE_MODEL = (
    "steps",
    "scheduler",
    "guidance_scale",
    "guidance_interval",
    "negative_prompt",
    "clip_guidance_scale",
    "clip_model",
    "lora",
)
# What --like takes from an image's record.
RECORDED = (
    "prompt",
    "num_images",
    "seed",
    "width",
    "height",
    "image",
    "strength",
    "mask",
    "padding_mask_crop",
    "num_resample",
    "enlarge",
    "super_res_steps",
    "super_res_scheduler",
    "no_upsample",
    "model",
    "dtype",
    *OF_THE_BASE_MODEL,
)


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
    add = what.add_argument
    add("prompt", nargs="*", type=sentence, metavar="PROMPT", help="what the image shows; each prompt gets its own")
    add("--prompts", type=prompts_file, metavar="FILE", help="prompts, one a line; - is stdin")
    add("--negative-prompt", type=sentence, metavar="TEXT", help="what to steer away from (default: nothing)")
    add("--num-images", type=positive_int, metavar="N", help="images per prompt (default: 1)")
    add("--seed", type=seed, metavar="N", help="of the first image; the others count on (default: a new one)")
    add("--width", type=positive_int, metavar="PIXELS", help="of the image (default: what the model was trained on,")
    add("--height", type=positive_int, metavar="PIXELS", help="or the size of --image)")
    add(
        "--like",
        type=input_file,
        metavar="IMAGE",
        help="generate an image of glide's again; options beside it change what they name",
    )

    where = parser.add_argument_group("where to write it")
    add = where.add_argument
    add(
        "-o",
        "--output",
        type=images_file,
        metavar="FILE",
        help="a file (.png, .jpg, .webp ...), in which several images are a grid; a folder, or a pattern such as "
        "'out/{index:03}-{seed}.png' or '{prompt}.png', for separate files; - for a PNG file to stdout",
    )
    add("--animate", type=animation_file, metavar="FILE", help=".gif or .webp: the model's estimate after each step")
    add("--no-metadata", action="store_true", help="do not write into the file how it was generated")

    edit = parser.add_argument_group("editing an image (the task follows from what is given)")
    add = edit.add_argument
    add("--image", type=input_file, metavar="FILE", help="start from this image as a sketch (SDEdit)")
    add("--mask", type=input_file, metavar="FILE", help="repaint --image where this is white, and nowhere else")
    add(
        "--strength",
        type=strength,
        metavar="X",
        help="how much of the sketch to repaint, above 0, up to 1 (default: 0.8)",
    )
    add("--enlarge", action="store_const", const=True, help="make --image four times as large")
    add(
        "--padding-mask-crop",
        type=count,
        metavar="PIXELS",
        help="with --mask: work on the part around the hole, with so many pixels of surroundings at least",
    )
    add(
        "--num-resample",
        type=positive_int,
        metavar="N",
        help="with --mask and a text-to-image model: take each step so many times (RePaint; default: 1)",
    )

    how = parser.add_argument_group(
        "how to sample",
        f"""STEPS is a number, or one of GLIDE's spacings: fast27, ddim50, 10,10,3,2,2.
NAME: {", ".join(SCHEDULERS)}.""",
    )
    add_sampling_options(how)
    add = how.add_argument
    add(
        "--guidance-scale",
        type=finite,
        metavar="X",
        help="how closely to follow the prompt; 1 is no guidance, half the work of the base (default: what the model "
        "recommends, else 3, or 5 with --mask)",
    )
    add(
        "--guidance-interval",
        type=share,
        nargs=2,
        metavar=("START", "END"),
        help="guide in this part of the steps only, from 0 to 1 (default: in all)",
    )
    add(
        "--clip-guidance-scale",
        type=finite,
        metavar="X",
        help="guide by a noised CLIP too (default: not, or 3 with --clip-model); --guidance-scale 1 leaves it alone",
    )
    add("--clip-model", metavar="MODEL", help="the noised CLIP (default: that of --model)")
    add("--no-upsample", action="store_const", const=True, help="stop at the base model's small image")

    model = parser.add_argument_group("which model, and where it runs")
    add_model_options(model, default="shapes or emoji, two small ones that ship, whichever knows the words")
    model.add_argument(
        "--lora",
        action="append",
        metavar="PATH[:SCALE]",
        help="a LoRA of either model (default scale: 1); several add up",
    )

    other = parser.add_argument_group("other")
    other.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    package = "glide-pipelines"
    other.add_argument("--version", action="version", version=f"{package} {version(package)}", help="show the version")
    other.add_argument("-h", "--help", action="help", help="show this page")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together."""
    required = {"PROMPT (or --prompts, or --like)": args.prompt or args.prompts or args.like, "-o FILE": args.output}
    if missing := [name for name, value in required.items() if not value]:
        raise UserError(f"give {' and '.join(missing)}; glide --help shows how")
    if args.like is not None:
        return  # the rest is checked together with what the image remembers
    args.prompt += args.prompts or []
    for option, needed in NEEDS.items():
        if getattr(args, option) is not None and getattr(args, needed) is None:
            raise UserError(f"{_option(option)} needs --{needed}")
    tasks = [f"--{option}" for option in TASKS if getattr(args, option)]
    if len(tasks) > 1:
        raise UserError(f"{' and '.join(tasks)} are different tasks: give one of them")
    if args.image is not None and args.no_upsample:
        raise UserError("--no-upsample is for a prompt alone: --image says how large the result is")
    if args.enlarge:
        for option in OF_THE_BASE_MODEL:
            if getattr(args, option) is not None:
                raise UserError(f"{_option(option)} is for the base model, which --enlarge does not run")
        if args.width or args.height:
            raise UserError("--width and --height are for the other tasks: --enlarge makes --image four times as large")
    if args.guidance_interval is not None and args.guidance_interval[0] >= args.guidance_interval[1]:
        raise UserError("--guidance-interval: START must be below END")
    if args.animate is not None and is_pattern(args.output):
        raise UserError("--animate is for one file of images: -o names separate ones")
    if args.output == STDOUT and sys.stdout.isatty():
        raise UserError("--output: - writes the bytes of a PNG file, and stdout is a terminal")


def complete_from_record(args: argparse.Namespace, record: dict[str, Any]) -> None:
    """Complete the options of --like with what an image remembers, but for those that --fast decides."""
    from . import command_parser

    if args.prompts:
        args.prompt, args.prompts = [*args.prompt, *args.prompts], None
    taken = [name for name in RECORDED if not (args.fast and name in FAST)]
    missing = [name for name in taken if getattr(args, name) in (None, []) and record.get(name) is not None]
    try:
        recorded = command_parser("draw").parse_args(_words({name: record[name] for name in missing}))
    except (UserError, TypeError) as error:
        raise UserError(f"--like {args.like}: {error}") from error
    for name in missing:
        # "100" is a spacing, and 100 a number of steps; as options they look the same.
        is_spacing = name.endswith("steps") and isinstance(record[name], str)
        setattr(args, name, record[name] if is_spacing else getattr(recorded, name))
    like, args.like = args.like, None
    check_arguments(args)
    args.like = like


def _words(record: dict[str, Any]) -> list[str]:
    """What a record says, as on a command line, where everything is checked."""
    words = []
    for name, value in record.items():
        if value is True:
            words.append(_option(name))
        elif name == "guidance_interval":
            words += [_option(name), *map(str, value)]
        elif name != "prompt":
            words += [f"{_option(name)}={each}" for each in (value if isinstance(value, list) else [value])]
    return [*words, "--", *record.get("prompt", [])]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def run(args: argparse.Namespace) -> None:
    """Generate, and write the image, the grid of images, or separate files."""
    from .run_draw import draw

    draw(args)
