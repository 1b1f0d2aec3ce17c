"""What `glide evaluate` does once its options are read."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from torch import nn

import glide_pipelines
from glide_pipelines import CLIPGuidedPipeline
from glide_pipelines.evaluation import (
    BOTH,
    CLASSIFIER_FREE,
    CLIP,
    DatasetImages,
    Guidance,
    check_call,
    image_size,
    join_processes,
    load_clip,
    load_feature_network,
    load_noised_clip,
    package_versions,
    plot_guidance,
    run_sweep,
    sampling_settings,
    write_report,
)
from glide_pipelines.shapes.features import ShapesNetwork
from glide_pipelines.shapes.images import ShapesImages
from glide_pipelines.shapes.tally import judged_table

from .errors import UserError
from .loading import (
    WORLDS,
    find_device,
    make_fast,
    model_values,
    open_pipeline,
    sampling_values,
    shipped,
    silence_libraries,
    step_values,
)


# Options that only GLIDE's pipelines understand.
GLIDE_OPTIONS = ("fast", "base_only", "scheduler", "super_res_scheduler", "super_res_steps", "clip_guidance_scale")


def evaluate(args: argparse.Namespace) -> None:
    """Generate what is not there yet, measure all of it, and write and print the report."""
    silence_libraries()
    state = join_processes(args.device)
    args.device = args.device or str(state.device)
    with state.main_process_first():  # what is downloaded is downloaded once
        images = load_images(args)
        pipes = load_pipelines(args)  # before the networks: it refuses a device that is not there
        features = args.features or ("shapes" if isinstance(images, ShapesImages) else "inception")
        network = load_network(features).to(args.device)
        clip = None if args.clip is None else load_clip(clip_source(args.clip)).to(args.device)
    if args.steps is None and CLIP in pipes:
        most = pipes[CLIP].default_steps("base")
        if most != pipes[CLASSIFIER_FREE].default_steps("base"):  # as many for each kind of guidance
            args.steps = most
    sweep = list(guidance_points(args))
    steps = step_values(args.steps, args.super_res_steps)
    size = image_size(pipes[sweep[0].kind], images.captions[0], **sweep[0].call, **steps)
    check_calls(args, pipes, sweep, images.captions[0], steps)
    settings = {
        "pictures": args.data_dir or args.dataset_name or "shapes",  # under the name that older folders have it by
        "split": args.split,
        "num_captions": len(images.captions),
        **sampling_settings(pipes[CLASSIFIER_FREE], **sampling_values(args)),
        "size": size,
    }
    results = run_sweep(
        pipes,
        sweep,
        images,
        args.output / "pictures",
        settings,
        network,
        clip,
        seed=args.seed,
        batch_size=args.batch_size,
        neighbours=args.neighbours,
        size=size,
        **steps,
    )
    if isinstance(images, DatasetImages):
        results["unreadable"] = [images.name(index) for index in results["unreadable"]]
    measured_by = {"features": features, "clip": args.clip, "neighbours": args.neighbours}
    results = {"settings": settings, "measured_by": measured_by, "versions": package_versions(), **results}
    if state.is_main_process:
        print(write_report(results, args.output, plot_guidance, judged_table=judged_table))


def load_images(args: argparse.Namespace) -> ShapesImages | DatasetImages:
    """What the model is measured against."""
    if args.data_dir is None and args.dataset_name is None:
        return ShapesImages(args.num_captions, args.seed)
    return DatasetImages(
        args.num_captions,
        args.dataset_name,
        args.data_dir,
        args.split,
        args.image_column,
        args.caption_column,
        args.label_column,
        args.seed if args.shuffle else None,
    )


def guidance_points(args: argparse.Namespace) -> list[Guidance]:
    """The guidances to sweep over, by kind and scale."""
    clip_scales = sorted(set(args.clip_guidance_scale))
    points = [Guidance(CLASSIFIER_FREE, scale) for scale in sorted(set(args.guidance_scale))]
    points += [Guidance(CLIP, scale) for scale in clip_scales]
    if args.clip_beside is not None:
        points += [Guidance(BOTH, scale, args.clip_beside) for scale in clip_scales]
    return points


def load_pipelines(args: argparse.Namespace) -> dict[str, DiffusionPipeline]:
    """The pipeline of each kind of guidance that is asked for."""
    plain = load_model(args)
    pipes = {CLASSIFIER_FREE: plain}
    if args.clip_guidance_scale:
        args.clip_model = args.clip_model or (args.model if args.model in WORLDS else "shapes")
        clip_model, clip_tokenizer = load_noised_clip(clip_source(args.clip_model))
        clip_model.to(device=plain.device, dtype=plain.dtype)
        guided = CLIPGuidedPipeline.from_pipe(plain, clip_model=clip_model, clip_tokenizer=clip_tokenizer)
        guided.set_progress_bar_config(disable=True)
        pipes[CLIP] = pipes[BOTH] = guided
    return pipes


def load_model(args: argparse.Namespace) -> DiffusionPipeline:
    """The model to measure: one of GLIDE as the `glide` command loads it, any other as the pipeline it was saved as."""
    kind = saved_class(args.model)
    if kind is None or kind in glide_pipelines.__all__:
        pipe = open_pipeline(**model_values(args), upsample=not args.base_only)
        make_fast(args, pipe, clip_guided=bool(args.clip_guidance_scale))
        return pipe
    given = [name for name in GLIDE_OPTIONS if getattr(args, name)]
    if isinstance(args.steps, str):
        given.append(f"steps {args.steps}")
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{options}: for pipelines of GLIDE only, and {args.model} is a {kind}")
    device = find_device(args.device)
    try:
        pipe = DiffusionPipeline.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    except (AttributeError, KeyError, TypeError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model {args.model}: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def saved_class(model: str | None) -> str | None:
    """The class of pipeline that a folder or a Hub repository names, or None: `open_pipeline` says what is wrong."""
    if model is None or not (os.path.isdir(model) or model.count("/") == 1):
        return None
    try:
        return DiffusionPipeline.load_config(model).get("_class_name")
    except (OSError, ValueError):
        return None


def check_calls(
    args: argparse.Namespace,
    pipes: dict[str, DiffusionPipeline],
    sweep: list[Guidance],
    caption: str,
    steps: dict[str, Any],
) -> None:
    """Run each of GLIDE's pipelines up to its first step, so that a model that does not fit is known beforehand."""
    for kind, pipe in pipes.items():
        point = next((point for point in sweep if point.kind == kind), None)
        if point is None or not hasattr(pipe, "default_size"):
            continue
        try:
            check_call(pipe, caption, **point.call, **steps)
        except ValueError as error:
            if kind == CLASSIFIER_FREE:
                raise UserError(f"--model {args.model} cannot generate from a caption: {error}") from error
            raise UserError(f"--clip-model {args.clip_model}: {error}") from error


def load_network(name: str) -> nn.Module:
    """A network of features: that of a world that ships, all else as [`load_feature_network`] takes it."""
    return ShapesNetwork() if name == "shapes" else load_feature_network(shipped(name, "features") or name)


def clip_source(name: str) -> str:
    """Where a CLIP lies: that of a world that ships, all else a folder or a Hub id."""
    return shipped(name, "noised-clip") or name
