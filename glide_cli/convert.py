"""Convert OpenAI's released checkpoints to a folder that diffusers opens, and back.

    glide convert --checkpoint-path base --super-res-checkpoint-path upsample --dump-path glide-text2im
    glide convert --model-path glide-text2im --dump-path released

See docs/released_checkpoints.md. Every option may be written with underscores too.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from .errors import UserError
from .options import DTYPES


Arguments = argparse.ArgumentParser | argparse._ArgumentGroup | argparse._MutuallyExclusiveGroup


def parser_settings(commands: str) -> dict[str, Any]:
    """Only what is given is passed on: the defaults are the library's."""
    return {"argument_default": argparse.SUPPRESS}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `glide convert`, for both directions."""
    add = partial(_add, parser.add_mutually_exclusive_group(required=True))
    add(
        "checkpoint_path",
        metavar="FILE",
        help="the base model: a file in the layout of OpenAI's base.pt, or base or base-inpaint, which is downloaded",
    )
    add("model_path", metavar="FOLDER", help="convert back: a folder that a GLIDE pipeline was saved to")
    add = partial(_add, parser)
    add("dump_path", required=True, metavar="FOLDER", help="where to write: a new or an empty folder")
    add("variant", metavar="NAME", help="part of the weight files' names in the folder, for example fp16")
    add = partial(_add, parser.add_argument_group("from OpenAI's layout to a folder"))
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
        choices=DTYPES,
        help="number format of the written weights (default: float32)",
    )
    no_model = "convert weights that are NaN or infinite, too, into a folder that no pipeline opens"
    add("allow_non_finite", action="store_true", help=no_model)
    add("push_to_hub", metavar="REPO_ID", help="also upload the folder to this repository")


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


def _add(parser: Arguments, name: str, **options: Any) -> None:
    """An option with hyphens, and with the underscores of diffusers' scripts."""
    if options.get("type") is int:
        options["metavar"] = "N"
    parser.add_argument(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), dest=name, **options)
