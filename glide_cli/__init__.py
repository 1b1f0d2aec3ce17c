"""The `glide` command: its options and its exit codes.

It stands beside the package and not in it, because importing the package loads torch, which takes seconds: `glide
--help`, `--version` and a mistyped option answer at once. What the command then does is in `glide_pipelines.cli`.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn


# A class, and what it is to be set to beside the noise schedule of the model.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("glide_pipelines.GLIDEDDPMScheduler", {}),
    "ddim": ("glide_pipelines.GLIDEDDIMScheduler", {}),
    "dpm-solver++": ("diffusers.DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "sde-dpm-solver++": ("diffusers.DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("diffusers.UniPCMultistepScheduler", {}),
    "deis": ("diffusers.DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "euler": ("diffusers.EulerDiscreteScheduler", {}),
    "euler-ancestral": ("diffusers.EulerAncestralDiscreteScheduler", {}),
    "heun": ("diffusers.HeunDiscreteScheduler", {}),
    "pndm": ("diffusers.PNDMScheduler", {}),
}
# What --fast stands for, where the options do not say otherwise; docs/schedulers_and_guidance.md has the measurements.
FAST = {
    "steps": 10,
    "super_res_steps": 10,
    "super_res_scheduler": "sde-dpm-solver++",
}
RESPACING = re.compile(r"[1-9]\d*(,[1-9]\d*)*|ddim[1-9]\d*|fast27")

EXAMPLES = """\
examples:
  A picture from the small model that ships with the package:
    glide "a red circle above a blue square" -o picture.png

  A grid of nine, in 20 steps of a faster sampler, the same ones each time:
    glide "a green star and a red circle on a white background" -o grid.png --num-images 9 \\
        --scheduler dpm-solver++ --steps 20 --seed 7

  Repaint what is white in mask.png; the prompt says what the whole picture shows then:
    glide "a green star and a blue square" --image picture.png --mask mask.png -o edited.png

  OpenAI's GLIDE, converted to a folder (see docs/released_checkpoints.md):
    glide "an oil painting of a corgi" -o corgi.png --model glide-text2im --device cuda --dtype float16
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process by default.

    Returns:
        `int`: the exit code: 0, 2 after an error of the user's, 130 after Ctrl-C.
    """

    def run() -> None:
        args = build_parser().parse_args(argv)
        _check_task(args)

        from glide_pipelines.cli import draw

        draw(args)

    return exit_code("glide", run)


def exit_code(program: str, run: Callable[[], None], errors: tuple[type[Exception], ...] = ()) -> int:
    """Run a program; an error of the user's is one line on stderr, without a traceback.

    Args:
        program (`str`): Its name, for the line.
        run (`Callable[[], None]`): What it does.
        errors (`tuple[type[Exception], ...]`): Errors of the user's beside `argparse.ArgumentError`.

    Returns:
        `int`: 0, 2 after an error of the user's, 130 after Ctrl-C.
    """
    try:
        run()
    except (argparse.ArgumentError, *errors) as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _check_task(args: argparse.Namespace) -> None:
    """The editing options must make one task together."""
    for option in ("mask", "strength", "enlarge"):
        if getattr(args, option) and args.image is None:
            raise argparse.ArgumentError(None, f"--{option} needs --image")
    given = [f"--{option}" for option in ("mask", "strength", "enlarge") if getattr(args, option)]
    if len(given) > 1:
        raise argparse.ArgumentError(None, f"{' and '.join(given)} are different tasks: give one of them")
    if args.image is not None and args.no_upsample:
        raise argparse.ArgumentError(None, "--no-upsample is for a prompt alone: --image says how large the result is")
    if args.enlarge:
        for option in ("steps", "scheduler", "guidance_scale", "negative_prompt"):
            if getattr(args, "fast", False) and getattr(args, option) == FAST.get(option):
                setattr(args, option, None)
            elif getattr(args, option) is not None:
                name = option.replace("_", "-")
                raise argparse.ArgumentError(None, f"--{name} is for the base model, which --enlarge does not run")


class Parser(argparse.ArgumentParser):
    """Raises an `argparse.ArgumentError`, which `exit_code` prints as one line, where argparse would print the usage
    too. The description keeps its lines, and no option can be abbreviated."""

    def __init__(self, **options: Any) -> None:
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"formatter_class": raw, "allow_abbrev": False} | options)

    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, message)


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = Parser(
        prog="glide",
        usage="glide PROMPT [PROMPT ...] -o FILE [options]",
        description="Draw and edit pictures from text with GLIDE (arXiv 2112.10741).",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=100),
        allow_abbrev=False,
        add_help=False,
    )

    what = parser.add_argument_group("what to draw")
    what.add_argument("prompt", nargs="+", metavar="PROMPT", help="what the picture shows; each prompt gets its own")
    what.add_argument(
        "-o", "--output", type=picture_file, required=True, metavar="FILE", help="where to write it: .png, .jpg ..."
    )
    what.add_argument("--negative-prompt", metavar="TEXT", help="what to steer away from (default: nothing)")
    what.add_argument(
        "--num-images", type=positive_int, default=1, metavar="N", help="pictures per prompt (default: %(default)s)"
    )
    what.add_argument("--seed", type=seed, metavar="N", help="draw the same picture each time (default: a new one)")

    edit = parser.add_argument_group("editing a picture (the task follows from what is given)")
    edit.add_argument("--image", type=input_file, metavar="FILE", help="start from this picture as a sketch (SDEdit)")
    edit.add_argument(
        "--mask", type=input_file, metavar="FILE", help="repaint --image where this is white, and nowhere else"
    )
    edit.add_argument(
        "--strength",
        type=strength,
        metavar="X",
        help="how much of the sketch is redrawn, above 0 and up to 1 (default: 0.8)",
    )
    edit.add_argument("--enlarge", action="store_true", help="draw --image four times as large")

    how = parser.add_argument_group(
        "how to draw it",
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
    how.add_argument("--no-upsample", action="store_true", help="stop at the base model's small picture")

    add_model_options(parser.add_argument_group("which model, and where it runs"))

    other = parser.add_argument_group("other")
    other.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    package = "glide-pipelines"
    other.add_argument("--version", action="version", version=f"{package} {version(package)}", help="show the version")
    other.add_argument("-h", "--help", action="help", help="show this page")
    return parser


def add_sampling_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Steps and schedulers of both stages."""
    add = parser.add_argument
    fast = "ten steps in each stage, the upsampler's of sde-dpm-solver++"
    add("--fast", action=_Fast, nargs=0, default=argparse.SUPPRESS, help=f"{fast} (options below may change each)")
    add("--steps", type=steps, metavar="STEPS", help="steps of the base model (default: 100)")
    add("--super-res-steps", type=steps, metavar="STEPS", help="of the upsampler (default: fast27)")
    add("--scheduler", type=scheduler, metavar="NAME", help="sampler of the base model (default: the model's own)")
    add("--super-res-scheduler", type=scheduler, metavar="NAME", help="of the upsampler")


def add_model_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """What `glide_pipelines.cli.load_pipeline` loads, and where it runs."""
    add = parser.add_argument
    add(
        "--model",
        metavar="MODEL",
        help="a folder, or a model of the Hugging Face Hub (default: the small one that ships, which knows coloured "
        "shapes only)",
    )
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps (default: cuda if there is one)")
    add(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number format (default: %(default)s)",
    )


class _Fast(argparse.Action):
    """Gives the options of `FAST` that were not given; those that follow on the command line replace them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.fast = True
        for name, value in FAST.items():
            if getattr(namespace, name, None) is None:
                setattr(namespace, name, value)


# -- what an option's text may be: argparse types, which the scripts in examples/ use too ------------------------------


def checked(convert: Callable[[str], Any], accept: Callable[[Any], bool], allowed: str) -> Callable[[str], Any]:
    """An argparse type: what `convert` makes of the text if `accept` agrees, else an error that names the `allowed`."""

    def parse(text: str) -> Any:
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not accept(value):
            raise argparse.ArgumentTypeError(f"must be {allowed}, got {text!r}")
        return value

    return parse


positive_int = checked(int, lambda value: value >= 1, "a whole number of 1 or more")
seed = checked(int, lambda value: 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")
finite = checked(float, math.isfinite, "a finite number")
strength = checked(float, lambda value: 0 < value <= 1, "a number above 0 and up to 1")
share = checked(float, lambda value: 0 <= value <= 1, "a number from 0 to 1")
timestep = checked(int, lambda value: 0 <= value < 1000, "a whole number from 0 to 999")
steps = checked(
    lambda text: int(text) if text.isdecimal() else text,
    lambda value: RESPACING.fullmatch(str(value)) is not None,
    "a number of steps or a spacing such as fast27, ddim50 or 10,10,3,2,2",
)
scheduler = checked(str, SCHEDULERS.__contains__, f"one of {', '.join(SCHEDULERS)}")


def input_file(text: str) -> Path:
    """A file that is there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def output_file(text: str) -> Path:
    """A file that can be written, so that no work is lost at the end."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r}")
    # The folder, because the file is written aside and renamed.
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} cannot be written to")
    return path


def picture_file(text: str) -> Path:
    """An output file whose ending names a format that can hold a picture in colour."""
    from PIL import Image

    picture_format = Image.registered_extensions().get(Path(text).suffix.lower())
    try:
        # Pillow reads more formats than it writes, and writes some in black and white only: what it does tells.
        Image.new("RGB", (1, 1)).save(io.BytesIO(), picture_format)
    except (KeyError, OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must end in .png, .jpg, .webp or the like, got {text!r}") from error
    return output_file(text)
