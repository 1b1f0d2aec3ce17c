"""Measure a model over guidance scales as the paper does: FID, Inception score, precision and recall, CLIP score.

    glide evaluate --output runs/evaluation --guidance-scale 1 2 3
    accelerate launch -m glide_cli evaluate --output runs/coco --model glide-text2im --data-dir coco/val

By default it measures the checkpoint that ships, against the shapes world. Other models of diffusers that generate from
a caption are measured too. A stopped run goes on with the images that OUTPUT holds already. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .errors import UserError
from .options import add_model_options, add_sampling_options, finite, positive_int, seed


ERRORS = (ValueError, ImportError)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `glide evaluate`."""
    add = parser.add_argument_group("what to measure").add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="images, table, JSON and plots")
    scales: dict[str, Any] = {"type": finite, "nargs": "*", "metavar": "X"}
    add("--guidance-scale", **scales, default=[1.0, 2.0, 3.0], help="of classifier-free guidance (default: 1 2 3)")
    add("--clip-guidance-scale", **scales, default=[], help="of guidance by a CLIP (default: none)")
    add(
        "--clip-beside",
        type=finite,
        metavar="X",
        help="sweep CLIP's scales once more together with classifier-free guidance of this scale",
    )
    add(
        "--clip-model",
        metavar="NAME",
        help="the CLIP that guides (default: of a model that ships its own, else shapes)",
    )
    add(
        "--base-only",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="measure the base model's small images (default: %(default)s)",
    )
    add("--seed", type=seed, default=0, metavar="N", help="of noise and scenes (default: %(default)s)")
    add("--batch-size", type=positive_int, default=32, metavar="N", help="images at a time (default: %(default)s)")
    add = parser.add_argument_group("against which captioned images (default: the shapes world)").add_argument
    add("--data-dir", metavar="FOLDER", help="images with a metadata.jsonl")
    add("--dataset-name", metavar="NAME", help="a dataset on the Hub")
    add("--split", metavar="NAME", help="which part of it (default: the only one)")
    add("--image-column", default="image", metavar="NAME", help="default: %(default)s")
    add("--caption-column", default="text", metavar="NAME", help="default: %(default)s")
    add(
        "--label-column",
        metavar="NAME",
        help="also measure how often --features, an image classifier, finds the class that this column names",
    )
    add("--num-captions", type=positive_int, default=512, metavar="N", help="so many (default: %(default)s)")
    add("--shuffle", action="store_true", help="a random choice of them, by --seed, in place of the first")
    add = parser.add_argument_group("by what").add_argument
    add(
        "--features",
        metavar="NAME",
        help="network of the features: that of a world that ships, such as shapes; inception; or a vision model of "
        "transformers (default: inception, and shapes for the shapes world)",
    )
    add("--clip", metavar="NAME", help="CLIP of the CLIP score: shapes, or a CLIP (default: none)")
    add("--neighbours", type=positive_int, default=3, metavar="K", help="for precision and recall (default: 3)")
    add_sampling_options(parser.add_argument_group("how to sample"))
    add_model_options(parser.add_argument_group("which model, and where it runs"), dtype="float32")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together."""
    if args.num_captions <= args.neighbours:
        raise UserError(f"--num-captions must be more than the {args.neighbours} --neighbours, got {args.num_captions}")
    if args.data_dir is not None and args.dataset_name is not None:
        raise UserError("--data-dir and --dataset-name: give one of them")
    if args.label_column is not None and args.features in (None, "shapes", "inception"):
        raise UserError("--label-column needs --features that is an image classifier: emoji, or one of transformers")
    if args.label_column is not None and args.data_dir is None and args.dataset_name is None:
        raise UserError("--label-column needs --data-dir or --dataset-name")
    if not args.guidance_scale and not args.clip_guidance_scale:
        raise UserError("--guidance-scale or --clip-guidance-scale needs a scale")
    if args.clip_beside is not None and not args.clip_guidance_scale:
        raise UserError("--clip-beside needs --clip-guidance-scale")


def run(args: argparse.Namespace) -> None:
    """Measure, and write and print the report."""
    from .run_evaluate import evaluate

    evaluate(args)
