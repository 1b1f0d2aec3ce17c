"""Convert OpenAI's released checkpoints to a folder that diffusers opens, and back.

    glide convert --checkpoint-path base --super-res-checkpoint-path upsample --dump-path glide-text2im
    glide convert --model-path glide-text2im --dump-path released

See docs/released_checkpoints.md. Every option may be written with underscores too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from .errors import UserError, exit_code
from .options import Parser


Arguments = argparse.ArgumentParser | argparse._ArgumentGroup | argparse._MutuallyExclusiveGroup

_CHECKPOINT = "the base model: a file in the layout of OpenAI's base.pt, or base or base-inpaint, which is downloaded"
_MODEL = "a folder that a GLIDE pipeline was saved to"


def parser_settings(commands: str) -> dict[str, Any]:
    """Only what is given is passed on: the defaults are the library's."""
    return {"argument_default": argparse.SUPPRESS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `glide convert`, for both directions."""
    what = parser.add_mutually_exclusive_group(required=True)
    _add(what, "checkpoint_path", metavar="FILE", help=_CHECKPOINT)
    _add(what, "model_path", metavar="FOLDER", help=f"convert back: {_MODEL}")
    _add_common(parser)
    _add_to_diffusers(parser.add_argument_group("from OpenAI's layout to a folder"))


def run(args: argparse.Namespace) -> None:
    """Convert in the direction that the options ask for, and print what was written."""
    from glide_pipelines.conversion import ConversionError, convert_diffusers_to_glide, convert_glide_to_diffusers

    given = vars(args)
    if "model_path" in given and (other := sorted(given.keys() - {"model_path", "dump_path", "variant"})):
        raise UserError(f"--{other[0].replace('_', '-')} is not for converting back (--model-path)")
    try:
        if "model_path" in given:
            written = convert_diffusers_to_glide(**given)
        else:
            written = [convert_glide_to_diffusers(**given)]
    except ConversionError as error:
        raise UserError(str(error)) from error
    except OSError as error:  # the cache of downloads, or the folder's own name, cannot be written
        where = f": {error.filename}" if error.filename else ""
        raise UserError(f"{error.strerror or error}{where}") from error
    for path in written:
        print(f"Wrote {path}")


def to_diffusers(argv: Sequence[str] | None = None) -> int:
    """The script `convert_glide_to_diffusers.py`: one direction of `glide convert`. Returns the exit code."""
    parser = _script_parser(
        "convert_glide_to_diffusers.py",
        "Convert OpenAI's GLIDE checkpoints to a folder that diffusers opens.",
        "--checkpoint_path base --super_res_checkpoint_path upsample --dump_path glide",
    )
    _add(parser, "checkpoint_path", required=True, metavar="FILE", help=_CHECKPOINT)
    _add_common(parser)
    _add_to_diffusers(parser)
    return exit_code(parser.prog, lambda: run(parser.parse_args(argv)))


def to_glide(argv: Sequence[str] | None = None) -> int:
    """The script `convert_diffusers_to_glide.py`: the other direction. Returns the exit code."""
    parser = _script_parser(
        "convert_diffusers_to_glide.py",
        "Convert a GLIDE pipeline's folder back to files that OpenAI's code loads.",
        "--model_path glide --dump_path released",
    )
    _add(parser, "model_path", required=True, metavar="FOLDER", help=_MODEL)
    _add_common(parser)
    return exit_code(parser.prog, lambda: run(parser.parse_args(argv)))


def _script_parser(name: str, description: str, example: str) -> Parser:
    epilog = f"example: {name} {example}"
    return Parser(prog=name, description=description, epilog=epilog, argument_default=argparse.SUPPRESS)


def _add(parser: Arguments, name: str, **options: Any) -> None:
    """An option with hyphens, and with the underscores of diffusers' scripts."""
    if options.get("type") is int:
        options["metavar"] = "N"
    parser.add_argument(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), dest=name, **options)


def _add_common(parser: Arguments) -> None:
    _add(parser, "dump_path", required=True, metavar="FOLDER", help="where to write: a new or an empty folder")
    _add(parser, "variant", metavar="NAME", help="part of the weight files' names in the folder, for example fp16")


def _add_to_diffusers(parser: Arguments) -> None:
    add = partial(_add, parser)
    add(
        "super_res_checkpoint_path",
        metavar="FILE",
        help="the upsampler: a file in the layout of upsample.pt, or upsample or upsample-inpaint (default: none)",
    )
    add(
        "tokenizer",
        metavar="FOLDER",
        help="a folder with vocab.json and merges.txt, or a repository on the Hugging Face Hub "
        "(default: openai-community/gpt2)",
    )
    add(
        "attention_head_dim",
        type=int,
        help="channels per attention head of the UNets; no file shows it, and a wrong number makes wrong images "
        "without an error. 64 is right for OpenAI's models and all that are fine-tuned from them (default: 64)",
    )
    add(
        "text_num_attention_heads",
        type=int,
        help="heads of the text encoders; no file shows it either (default: heads of 64 channels, as released)",
    )
    add("image_size", type=int, help="height and width of the base image, in pixels (default: 64)")
    add("super_res_image_size", type=int, help="height and width of the upsampled image (default: 256)")
    for tower in ("text", "image"):
        add(
            f"clip_{tower}_checkpoint_path",
            metavar="FILE",
            help=f"the {tower} tower of the noised CLIP: a file in the layout of clip_{tower}_enc.pt, or "
            f"clip-{tower}-enc, which is downloaded; with both towers the folder is one for CLIPGuidedPipeline",
        )
    add(
        "clip_tokenizer",
        metavar="FOLDER",
        help="a folder with CLIP's vocab.json and merges.txt, or a repository on the Hugging Face Hub "
        "(default: openai/clip-vit-base-patch32)",
    )
    add("clip_attention_head_dim", type=int, help="channels per attention head of the noised CLIP (default: 64)")
    add(
        "dtype",
        choices=("float32", "float16", "bfloat16"),
        help="number format of the written weights (default: float32)",
    )
    no_model = "convert weights that are NaN or infinite, too, into a folder that no pipeline opens"
    add("allow_non_finite", action="store_true", help=no_model)
    add("push_to_hub", metavar="REPO_ID", help="also upload the folder to this repository")
