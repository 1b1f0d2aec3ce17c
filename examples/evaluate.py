"""Measure a model over guidance scales as the paper does: FID, Inception score, precision and recall, CLIP score.

    python examples/evaluate.py --output runs/evaluation --guidance-scale 1 2 3
    accelerate launch examples/evaluate.py --output runs/coco --model glide-text2im --data-dir coco/val

By default of the checkpoint that ships, against the shapes world. A stopped run goes on with the pictures that OUTPUT
holds already. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from accelerate import PartialState
from diffusers import DiffusionPipeline

import glide_cli
from glide_pipelines import CLIPGuidedPipeline, shapes_checkpoint
from glide_pipelines.cli import load_pipeline, silence_libraries, steps_arguments
from glide_pipelines.evaluation import (
    BOTH,
    CLASSIFIER_FREE,
    CLIP,
    DatasetPictures,
    Guidance,
    ShapesPictures,
    load_clip,
    load_feature_network,
    load_noised_clip,
    run_sweep,
    write_report,
)
from glide_pipelines.evaluation.report import package_versions, sampling_settings


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = glide_cli.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("what to measure").add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="pictures, table, JSON and plots")
    scales = {"type": glide_cli.finite, "nargs": "*", "metavar": "X"}
    add("--guidance-scale", **scales, default=[1.0, 2.0, 3.0], help="of classifier-free guidance (default: 1 2 3)")
    add("--clip-guidance-scale", **scales, default=[], help="of guidance by a CLIP (default: none)")
    add(
        "--clip-beside",
        type=glide_cli.finite,
        metavar="X",
        help="sweep CLIP's scales once more beside classifier-free guidance of this scale",
    )
    add("--clip-model", metavar="NAME", help="the CLIP that guides (default: the one of the shapes world that ships)")
    add("--base-only", action="store_true", help="measure the base model's small pictures")
    add("--seed", type=glide_cli.seed, default=0, metavar="N", help="of noise and scenes (default: %(default)s)")
    add("--batch-size", type=glide_cli.positive_int, default=32, metavar="N", help="pictures at a time (default: 32)")
    add = parser.add_argument_group("against which captioned pictures (default: the shapes world)").add_argument
    add("--data-dir", metavar="FOLDER", help="pictures with a metadata.jsonl")
    add("--dataset-name", metavar="NAME", help="a dataset on the Hub")
    add("--split", metavar="NAME", help="which part of it (default: the only one)")
    add("--image-column", default="image", metavar="NAME", help="default: %(default)s")
    add("--caption-column", default="text", metavar="NAME", help="default: %(default)s")
    add("--num-captions", type=glide_cli.positive_int, default=512, metavar="N", help="so many (default: %(default)s)")
    add = parser.add_argument_group("by what").add_argument
    add(
        "--features",
        metavar="NAME",
        help="network of the features: shapes, inception, or a vision model of transformers (default: inception, and "
        "shapes for the shapes world)",
    )
    add("--clip", metavar="NAME", help="CLIP of the CLIP score (default: no CLIP score)")
    add(
        "--neighbours",
        type=glide_cli.positive_int,
        default=3,
        metavar="K",
        help="for precision and recall (default: 3)",
    )
    glide_cli.add_sampling_options(parser.add_argument_group("how to draw"))
    glide_cli.add_model_options(parser.add_argument_group("which model, and where it runs"))
    args = parser.parse_args(argv)
    if args.num_captions <= args.neighbours:
        parser.error(f"--num-captions must be more than the {args.neighbours} --neighbours, got {args.num_captions}")
    if args.data_dir is not None and args.dataset_name is not None:
        parser.error("--data-dir and --dataset-name: give one of them")
    if not args.guidance_scale and not args.clip_guidance_scale:
        parser.error("--guidance-scale or --clip-guidance-scale needs a scale")
    if args.clip_beside is not None and not args.clip_guidance_scale:
        parser.error("--clip-beside needs --clip-guidance-scale")
    return args


def load_pictures(args: argparse.Namespace) -> ShapesPictures | DatasetPictures:
    if args.data_dir is None and args.dataset_name is None:
        return ShapesPictures(args.num_captions, args.seed)
    return DatasetPictures(
        args.num_captions, args.dataset_name, args.data_dir, args.split, args.image_column, args.caption_column
    )


def load_pipelines(args: argparse.Namespace) -> dict[str, DiffusionPipeline]:
    """The pipeline of each kind of guidance that is asked for."""
    guides = args.clip_model or str(shapes_checkpoint("noised-clip")) if args.clip_guidance_scale else None
    clip_model, clip_tokenizer = (None, None) if guides is None else load_noised_clip(guides)
    plain = load_pipeline(argparse.Namespace(**vars(args), no_upsample=args.base_only, quiet=True))
    pipes = {CLASSIFIER_FREE: plain}
    if clip_model is not None:
        clip_model = clip_model.to(plain.device, plain.dtype)
        pipes[CLIP] = CLIPGuidedPipeline.from_pipe(plain, clip_model=clip_model, clip_tokenizer=clip_tokenizer)
        pipes[BOTH] = pipes[CLIP]
        pipes[CLIP].set_progress_bar_config(disable=True)
    return pipes


def describe_settings(args: argparse.Namespace, pipe: DiffusionPipeline, count: int) -> dict[str, Any]:
    """What the pictures depend on, but for the weights and the guidance."""
    return {
        "pictures": args.data_dir or args.dataset_name or "shapes",
        "split": args.split,
        "num_captions": count,
        **sampling_settings(args, pipe),
    }


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Draw what is not there yet, and measure all of it."""
    state = PartialState(cpu=args.device == "cpu")
    args.device = args.device or str(state.device)
    with state.main_process_first():  # what is downloaded is downloaded once
        pictures = load_pictures(args)
        features = args.features or ("shapes" if isinstance(pictures, ShapesPictures) else "inception")
        network = load_feature_network(features).to(args.device)
        clip = None if args.clip is None else load_clip(args.clip).to(args.device)
        pipes = load_pipelines(args)
    settings = describe_settings(args, pipes[CLASSIFIER_FREE], len(pictures.captions))
    sweep = [Guidance(CLASSIFIER_FREE, scale) for scale in sorted(set(args.guidance_scale))]
    clip_scales = sorted(set(args.clip_guidance_scale))
    sweep += [Guidance(CLIP, scale) for scale in clip_scales]
    if args.clip_beside is not None:
        sweep += [Guidance(BOTH, scale, args.clip_beside) for scale in clip_scales]
    common = {"seed": args.seed, "batch_size": args.batch_size, "neighbours": args.neighbours}
    results = run_sweep(
        pipes, sweep, pictures, args.output / "pictures", settings, network, clip, **common, **steps_arguments(args)
    )
    results["unreadable"] = [pictures.name(index) for index in results["unreadable"]]
    measured_by = {"features": features, "clip": args.clip, "neighbours": args.neighbours}
    return {"settings": settings, "measured_by": measured_by, "versions": package_versions(), **results}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after an error of the user's."""
    try:
        args = parse_args(argv)
        silence_libraries()
        results = evaluate(args)
        if PartialState().is_main_process:
            print(write_report(results, args.output))
    except (argparse.ArgumentError, ValueError, ImportError) as error:
        print(f"evaluate.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
