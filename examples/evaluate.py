"""Measure a model over guidance scales as the paper does: FID, Inception score, precision and recall, CLIP score.

    python examples/evaluate.py --output runs/evaluation --guidance-scale 1 2 3
    accelerate launch examples/evaluate.py --output runs/coco --model glide-text2im --data-dir coco/val

By default of the checkpoint that ships, against the shapes world; other models of diffusers that draw from a caption
are measured too. A stopped run goes on with the pictures that OUTPUT holds already. See docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

import glide_cli
import glide_pipelines
from glide_pipelines import CLIPGuidedPipeline
from glide_pipelines.cli import find_device, load_pipeline, silence_libraries, steps_arguments
from glide_pipelines.evaluation import (
    BOTH,
    CLASSIFIER_FREE,
    CLIP,
    DatasetPictures,
    Guidance,
    ShapesPictures,
    join_processes,
    load_clip,
    load_feature_network,
    load_noised_clip,
    picture_size,
    plot_guidance,
    run_sweep,
    write_report,
)
from glide_pipelines.evaluation.report import package_versions, sampling_settings


# Options that only GLIDE's pipelines understand.
GLIDE_OPTIONS = ("base_only", "scheduler", "super_res_scheduler", "super_res_steps", "clip_guidance_scale")


def parse_args(argv: list[str] | None, description: str | None, **choices: Any) -> argparse.Namespace:
    """The options. `choices` are the defaults of a script that makes other ones than this."""
    defaults = {"guidance_scale": [1.0, 2.0, 3.0], "clip_guidance_scale": []} | choices
    scales = ("guidance_scale", "clip_guidance_scale")
    shown = {name: " ".join(f"{scale:g}" for scale in defaults[name]) or "none" for name in scales}
    parser = glide_cli.Parser(description=description)
    add = parser.add_argument_group("what to measure").add_argument
    add("--output", type=Path, required=True, metavar="FOLDER", help="pictures, table, JSON and plots")
    many = {"type": glide_cli.finite, "nargs": "*", "metavar": "X"}
    add("--guidance-scale", **many, help=f"of classifier-free guidance (default: {shown['guidance_scale']})")
    add("--clip-guidance-scale", **many, help=f"of guidance by a CLIP (default: {shown['clip_guidance_scale']})")
    add(
        "--clip-beside",
        type=glide_cli.finite,
        metavar="X",
        help="sweep CLIP's scales once more beside classifier-free guidance of this scale"
        f" (default: {defaults.get('clip_beside', 'none')})",
    )
    add("--clip-model", metavar="NAME", help="the CLIP that guides (default: shapes, the one that ships)")
    add(
        "--base-only",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="measure the base model's small pictures (default: %(default)s)",
    )
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
    add(
        "--clip",
        metavar="NAME",
        help=f"CLIP of the CLIP score: shapes, or a CLIP (default: {defaults.get('clip', 'none')})",
    )
    add(
        "--neighbours",
        type=glide_cli.positive_int,
        default=3,
        metavar="K",
        help="for precision and recall (default: 3)",
    )
    glide_cli.add_sampling_options(parser.add_argument_group("how to draw"))
    glide_cli.add_model_options(parser.add_argument_group("which model, and where it runs"))
    parser.set_defaults(**defaults)
    args = parser.parse_args(argv)
    if args.num_captions <= args.neighbours:
        parser.error(f"--num-captions must be more than the {args.neighbours} --neighbours, got {args.num_captions}")
    if args.data_dir is not None and args.dataset_name is not None:
        parser.error("--data-dir and --dataset-name: give one of them")
    if not args.guidance_scale and not args.clip_guidance_scale:
        parser.error("--guidance-scale or --clip-guidance-scale needs a scale")
    if args.clip_beside != defaults.get("clip_beside") and not args.clip_guidance_scale:
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
    plain = load_model(args)
    pipes = {CLASSIFIER_FREE: plain}
    if args.clip_guidance_scale:
        name = args.clip_model or "shapes"
        clip_model, clip_tokenizer = load_noised_clip(name)
        clip_model = clip_model.to(plain.device, plain.dtype)
        guided = CLIPGuidedPipeline.from_pipe(plain, clip_model=clip_model, clip_tokenizer=clip_tokenizer)
        guided.set_progress_bar_config(disable=True)
        try:  # as its call does, but before other scales are drawn
            guided._check_clip()
            guided._check_size(*guided.default_size)
        except ValueError as error:
            raise argparse.ArgumentError(None, f"--clip-model {name}: {error}") from error
        pipes[CLIP] = pipes[BOTH] = guided
    return pipes


def load_model(args: argparse.Namespace) -> DiffusionPipeline:
    """The model to measure: one of GLIDE as the `glide` command loads it, any other as the pipeline it was saved as.

    Raises:
        argparse.ArgumentError: if there is no such model, it needs more than a caption, or an option is not for it.
    """
    kind = saved_class(args.model)
    if kind is None or kind in glide_pipelines.__all__:
        pipe = load_pipeline(argparse.Namespace(**vars(args), no_upsample=args.base_only, quiet=True))
        try:
            pipe._check_channels(unet=(3,), super_res_unet=(6,))
        except ValueError as error:
            raise argparse.ArgumentError(None, f"--model {args.model} cannot draw from a caption: {error}") from error
        return pipe
    given = [name for name in GLIDE_OPTIONS if getattr(args, name)]
    if isinstance(args.steps, str):
        given.append(f"steps {args.steps}")
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise argparse.ArgumentError(None, f"{options}: for pipelines of GLIDE only, and {args.model} is a {kind}")
    device = find_device(args.device)
    try:
        pipe = DiffusionPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    except (AttributeError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise argparse.ArgumentError(None, f"--model {args.model}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def saved_class(model: str | None) -> str | None:
    """The class of pipeline that a folder or a Hub repository names, or None: `load_pipeline` says what is wrong."""
    if model is None or not (os.path.isdir(model) or model.count("/") == 1):
        return None
    try:
        return DiffusionPipeline.load_config(model).get("_class_name")
    except (OSError, ValueError):
        return None


def describe_settings(args: argparse.Namespace, pipe: DiffusionPipeline, count: int, size: int) -> dict[str, Any]:
    """What the pictures depend on, but for the weights and the guidance."""
    return {
        "pictures": args.data_dir or args.dataset_name or "shapes",
        "split": args.split,
        "num_captions": count,
        **sampling_settings(args, pipe),
        "size": size,
    }


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Draw what is not there yet, and measure all of it."""
    state = join_processes(args.device)
    args.device = args.device or str(state.device)
    with state.main_process_first():  # what is downloaded is downloaded once
        pictures = load_pictures(args)
        pipes = load_pipelines(args)  # first of the networks: it refuses a device that is not there
        features = args.features or ("shapes" if isinstance(pictures, ShapesPictures) else "inception")
        network = load_feature_network(features).to(args.device)
        clip = None if args.clip is None else load_clip(args.clip).to(args.device)
    sweep = [Guidance(CLASSIFIER_FREE, scale) for scale in sorted(set(args.guidance_scale))]
    clip_scales = sorted(set(args.clip_guidance_scale))
    sweep += [Guidance(CLIP, scale) for scale in clip_scales]
    if args.clip_beside is not None:
        sweep += [Guidance(BOTH, scale, args.clip_beside) for scale in clip_scales]
    steps = steps_arguments(args)
    size = picture_size(pipes[sweep[0].kind], pictures.captions[0], **sweep[0].call, **steps)
    settings = describe_settings(args, pipes[CLASSIFIER_FREE], len(pictures.captions), size)
    common = {"seed": args.seed, "batch_size": args.batch_size, "neighbours": args.neighbours, "size": size}
    results = run_sweep(pipes, sweep, pictures, args.output / "pictures", settings, network, clip, **common, **steps)
    results["unreadable"] = [pictures.name(index) for index in results["unreadable"]]
    measured_by = {"features": features, "clip": args.clip, "neighbours": args.neighbours}
    return {"settings": settings, "measured_by": measured_by, "versions": package_versions(), **results}


def main(
    argv: list[str] | None = None, program: str = "evaluate.py", description: str | None = __doc__, **choices: Any
) -> int:
    """Evaluate as the options say, for this program or for another that has made some `choices`: other defaults.

    Returns:
        `int`: The exit code, as `glide_cli.exit_code` does.
    """

    def run() -> None:
        args = parse_args(argv, description, **choices)
        silence_libraries()
        results = evaluate(args)
        if PartialState().is_main_process:
            print(write_report(results, args.output, plot_guidance))

    return glide_cli.exit_code(program, run, (ValueError, ImportError))


if __name__ == "__main__":
    sys.exit(main())
