"""Options that several commands share, and the types of their values. Nothing here loads torch."""

from __future__ import annotations

import argparse
import io
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from .errors import UserError


# A scheduler's name to its class and the settings that it takes besides the model's noise schedule.
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
# The options that --fast stands for; docs/schedulers_and_guidance.md has the measurements.
FAST: dict[str, Any] = {
    "steps": 10,
    "super_res_steps": 10,
    "super_res_scheduler": "sde-dpm-solver++",
}
RESPACING = re.compile(r"[1-9]\d*(,[1-9]\d*)*|ddim[1-9]\d*|fast27")


class Parser(argparse.ArgumentParser):
    """Reports a mistake as a [`UserError`], which [`exit_code`] prints as one line, without argparse's usage. The
    description keeps its lines, and no option can be abbreviated."""

    def __init__(self, **options: Any) -> None:
        defaults: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**defaults | options)

    def error(self, message: str) -> NoReturn:
        """Raise a [`UserError`]."""
        raise UserError(message)


def add_sampling_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Steps and schedulers of both stages."""
    add = parser.add_argument
    fast = "ten steps in each stage, with sde-dpm-solver++ in the upsampler"
    add("--fast", action=_Fast, nargs=0, default=argparse.SUPPRESS, help=f"{fast} (options below may change each)")
    add("--steps", type=steps, metavar="STEPS", help="steps of the base model (default: 100)")
    add("--super-res-steps", type=steps, metavar="STEPS", help="of the upsampler (default: fast27)")
    add("--scheduler", type=scheduler, metavar="NAME", help="sampler of the base model (default: the model's own)")
    add("--super-res-scheduler", type=scheduler, metavar="NAME", help="of the upsampler")


def add_model_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """The model and where it runs, as [`loading.load_pipeline`] takes them."""
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
    """Sets the options of `FAST` that were not given; those that follow on the command line replace them."""

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


# -- types: what the text of an option may be --------------------------------------------------------------------------


def checked(convert: Callable[[str], Any], accept: Callable[[Any], bool], allowed: str) -> Callable[[str], Any]:
    """A type for argparse: `convert` makes a value of the text, and `accept` decides on it. The error names what is
    `allowed`."""

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
port = checked(int, lambda value: 0 < value < 2**16, "a whole number from 1 to 65535")
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
    """A file that exists."""
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
    # The folder, because the file is written beside its place and renamed.
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder {str(path.parent)!r} cannot be written to")
    return path


def image_file(text: str) -> Path:
    """An output file whose ending names a format that can hold an image in colour."""
    from PIL import Image

    image_format = Image.registered_extensions().get(Path(text).suffix.lower())
    try:
        # Pillow reads more formats than it writes, and writes some in black and white only, so this is tried.
        Image.new("RGB", (1, 1)).save(io.BytesIO(), image_format)
    except (KeyError, OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must end in .png, .jpg, .webp or the like, got {text!r}") from error
    return output_file(text)
