"""Train GLIDE's models, in one process or, with `accelerate launch -m glide_cli train ...`, in several."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .errors import exit_code
from .options import Parser
from .train_noised_clip import add_noised_clip_options, noised_clip
from .train_options import check_arguments
from .train_stage import (
    add_distill_options,
    add_inpaint_options,
    add_text_to_image_options,
    distill,
    inpaint,
    text_to_image,
)
from .train_text_encoder import add_text_encoder_options, text_encoder


ERRORS = (ValueError, ImportError, OSError, FloatingPointError)


class Training(NamedTuple):
    """One of the trainings: its line in the help, its options, and what they start."""

    help: str
    add_options: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], None]


TRAININGS = {
    "text-to-image": Training(
        "Train GLIDE's base model or its upsampler, from scratch or from an existing pipeline",
        add_text_to_image_options,
        text_to_image,
    ),
    "inpaint": Training(
        "Fine-tune a text-to-image model, or continue with an inpainting one, to paint what a mask leaves out",
        add_inpaint_options,
        inpaint,
    ),
    "distill": Training(
        "Train a student of a base model or an upsampler that generates in a few steps, without guidance",
        add_distill_options,
        distill,
    ),
    "text-encoder": Training(
        "Pretrain a text encoder to predict the image from its caption, for a small base model that starts from it",
        add_text_encoder_options,
        text_encoder,
    ),
    "noised-clip": Training(
        "Train a CLIP on noised images, whose gradient can guide a diffusion model",
        add_noised_clip_options,
        noised_clip,
    ),
}


def add_arguments(parser: Parser) -> None:
    """A command for each training, with its own options."""
    commands = parser.add_subparsers(dest="training", required=True, metavar=f"{{{','.join(TRAININGS)}}}")
    for name, training in TRAININGS.items():
        training.add_options(commands.add_parser(name, help=training.help, description=f"{training.help}."))


def run(args: argparse.Namespace) -> None:
    """Train as the options say."""
    TRAININGS[args.training].run(args)


def main(training: str, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one training, for the scripts of examples/.

    Args:
        training (`str`): One of `TRAININGS`.
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.
        program (`str`, *optional*): The name for help and errors; by default that of the process's script.

    Returns:
        `int`: the exit code: 0, 2 after a mistake of the user's, 130 after Ctrl-C.
    """
    parser = Parser(prog=program, description=f"{TRAININGS[training].help}.")
    TRAININGS[training].add_options(parser)

    def run() -> None:
        args = parser.parse_args(argv)
        check_arguments(args)
        TRAININGS[training].run(args)

    return exit_code(parser.prog, run, ERRORS)
