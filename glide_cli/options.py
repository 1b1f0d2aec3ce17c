"""Options that several commands share, and the types of their values. Nothing here loads torch."""

from __future__ import annotations

import argparse
import codecs
import difflib
import io
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
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
# What --fast stands for, in a stage that takes more steps by itself (measured in docs/schedulers_and_guidance.md).
FAST: dict[str, Any] = {"steps": 10, "super_res_steps": 10, "super_res_scheduler": "sde-dpm-solver++"}
DTYPES = ("float32", "bfloat16", "float16")
# How separate files are named in a folder.
NAME_IN_FOLDER = "{index:03}-{seed}.png"
FIELDS = {"index": 0, "seed": 0, "prompt": "prompt"}  # of a pattern, with values to try it with
STDOUT = Path("-")
MAX_NAME_BYTES = 240  # most file systems hold 255, and a temporary name is a little longer
RESPACING = re.compile(r"[1-9]\d*(,[1-9]\d*)*|ddim[1-9]\d*|fast27")


class Parser(argparse.ArgumentParser):
    """Reports a mistake as a [`UserError`], which [`exit_code`] prints as one line, without argparse's usage. The
    description keeps its lines, and no option can be abbreviated."""

    def __init__(self, **options: Any) -> None:
        defaults: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**defaults | options)

    def parse_known_args(  # type: ignore[override]  # argparse's overloads differ in the namespace alone
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the arguments. An option that does not exist is an error that comes before what it leaves missing."""
        words = sys.argv[1:] if args is None else list(args)
        options = () if self._subparsers else self._option_string_actions
        for word in itertools.takewhile(lambda word: options and word != "--", words):
            name = word.partition("=")[0]
            # argparse takes words with a space for values.
            if re.match(r"--\w", name) and " " not in word and name not in options:
                raise UserError(f"there is no option {name}{did_you_mean(name, options)}")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise a [`UserError`]."""
        raise UserError(message)


def did_you_mean(word: str, words: Iterable[str], before: str = "") -> str:
    """The end of an error's text, with the word that is most like a mistyped one, and what stands `before` it; empty
    where none is."""
    return "".join(f"; did you mean {before}{match}?" for match in difflib.get_close_matches(word, list(words), n=1))


def add_sampling_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Steps and schedulers of both stages."""
    add = parser.add_argument
    fast = "ten steps in each stage whose own are more, with sde-dpm-solver++ in the upsampler"
    add("--fast", action="store_true", help=f"{fast} (options below may change each)")
    add("--steps", type=steps, metavar="STEPS", help="steps of the base model (default: the model's own, else 100)")
    add("--super-res-steps", type=steps, metavar="STEPS", help="of the upsampler (default: its own, else fast27)")
    add("--scheduler", type=scheduler, metavar="NAME", help="sampler of the base model (default: the model's own)")
    add("--super-res-scheduler", type=scheduler, metavar="NAME", help="of the upsampler")


def add_model_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    dtype: str | None = None,
    default: str = "shapes, a small one, which knows coloured shapes only",
) -> None:
    """The model and where it runs, as [`loading.open_pipeline`] takes them; `dtype` is the default number format."""
    add = parser.add_argument
    add(
        "--model",
        metavar="MODEL",
        help=f"a folder, a model of the Hugging Face Hub, or the name of one that ships (default: {default})",
    )
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps (default: cuda or mps where it works, else cpu)")
    add(
        "--dtype",
        choices=DTYPES,
        default=dtype,
        help=f"number format (default: {dtype or 'bfloat16 where the device is fast in it, else float32'})",
    )
    graphs = "on cuda, launch each kernel by itself (default: CUDA graphs, which are faster from the second step on)"
    add("--no-cuda-graphs", action="store_false", dest="cuda_graphs", help=graphs)


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
count = checked(int, lambda value: value >= 0, "a whole number of 0 or more")
timestep = checked(int, lambda value: 0 <= value < 1000, "a whole number from 0 to 999")
steps = checked(
    lambda text: int(text) if text.isdecimal() else text,
    lambda value: RESPACING.fullmatch(str(value)) is not None,
    "a number of steps or a spacing such as fast27, ddim50 or 10,10,3,2,2",
)


def scheduler(text: str) -> str:
    """A name of `SCHEDULERS`."""
    if text not in SCHEDULERS:
        allowed = f"must be one of {', '.join(SCHEDULERS)}, got {text!r}"
        raise argparse.ArgumentTypeError(allowed + did_you_mean(text, SCHEDULERS))
    return text


def sentence(text: str) -> str:
    """What was written in the encoding of the system."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise argparse.ArgumentTypeError(f"must be text in UTF-8, got {os.fsencode(text)!r}") from error
    return text


def prompts_file(text: str) -> list[str]:
    """The lines of a file, or of stdin for `-`, that are not blank."""
    if text == "-" and sys.stdin is None:  # as the shell's <&- leaves it
        raise argparse.ArgumentTypeError("cannot read '-': stdin is closed")
    try:
        data = sys.stdin.buffer.read() if text == "-" else Path(text).read_bytes()
        # `>` of Windows PowerShell writes UTF-16, with a mark.
        encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        prompts = [line.strip() for line in data.decode(encoding).splitlines() if line.strip()]
    except OSError as error:
        raise argparse.ArgumentTypeError(f"cannot read {text!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} must be text in UTF-8: {error}") from error
    if not prompts:
        raise argparse.ArgumentTypeError(f"there is no prompt in {text!r}")
    return prompts


def input_file(text: str) -> Path:
    """A file that exists."""
    if not os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def output_file(text: str) -> Path:
    """A file that can be written, so that no work is lost at the end."""
    path = Path(text)
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        raise argparse.ArgumentTypeError(f"the name {path.name[:20] + '...'!r} is too long")
    if os.path.isdir(path):
        raise argparse.ArgumentTypeError(f"{text!r} is a folder")
    if is_special(path):
        place = path
    else:
        # The folder, because the file is written beside its place and renamed. A link stays one.
        place = Path(os.path.realpath(path)).parent if os.path.islink(path) else path.parent
        if not os.path.isdir(place):
            raise argparse.ArgumentTypeError(f"there is no folder {str(place)!r}")
    if not os.access(place, os.W_OK):
        what = "" if place == path else "the folder "
        raise argparse.ArgumentTypeError(f"{what}{str(place)!r} cannot be written to")
    return path


def is_special(path: Path) -> bool:
    """Whether a path is neither a file nor a folder, but a pipe or a device, which is written to as it is."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def image_format(path: Path) -> str | None:
    """Pillow's name of the format that a file's ending names; PNG for stdout, pipes and devices without one."""
    from PIL import Image

    default = "PNG" if path == STDOUT or is_special(path) else None
    return Image.registered_extensions().get(path.suffix.lower(), default)


def image_file(text: str) -> Path:
    """An output file whose ending names a format that can hold an image in colour."""
    _check_ending(text)
    return output_file(text)


def images_file(text: str) -> Path:
    """A file for all images, `-` for stdout, or a pattern that names a file for each, which a folder stands for."""
    if Path(text) == STDOUT:
        return STDOUT
    if text.endswith(("/", os.sep)) or os.path.isdir(text):
        text = os.path.join(text.replace("{", "{{").replace("}", "}}"), NAME_IN_FOLDER)
    elif re.search(r"%\d*d", text):
        raise argparse.ArgumentTypeError(f"write {{index}} for the number of an image, got {text!r}")
    if not is_pattern(text):
        return image_file(text)
    try:
        name = text.format(**FIELDS)
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        fields = ", ".join(f"{{{field}}}" for field in FIELDS)
        raise argparse.ArgumentTypeError(f"a pattern is made of {fields}, got {text!r}") from error
    _check_ending(name)
    # Folders are made as they are needed, in the first one that exists.
    folder = next(parent for parent in Path(name).absolute().parents if os.path.lexists(parent))
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise argparse.ArgumentTypeError(f"the folder {str(folder)!r} cannot be written to")
    return Path(text)


def is_pattern(path: str | Path) -> bool:
    """Whether an output names separate files."""
    return "{" in str(path) or "}" in str(path)


def animation_file(text: str) -> Path:
    """An output file whose ending names a format that holds an animation."""
    if Path(text).suffix.lower() not in (".gif", ".webp"):
        raise argparse.ArgumentTypeError(f"must end in .gif or .webp, got {text!r}")
    return output_file(text)


def _check_ending(text: str) -> None:
    """The ending must name a format that can hold an image in colour."""
    from PIL import Image

    try:
        # Pillow reads more formats than it writes, and writes some in black and white only, so this is tried.
        Image.new("RGB", (1, 1)).save(io.BytesIO(), image_format(Path(text)))
    except (KeyError, OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must end in .png, .jpg, .webp or the like, got {text!r}") from error
