"""What `glide evaluate-shapes` does once its options are read."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

import torch
from diffusers import DiffusionPipeline

from glide_pipelines import (
    GLIDEDDPMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDESuperResolutionPipeline,
    shapes_checkpoint,
)
from glide_pipelines.evaluation import load_noised_clip, package_versions, sampling_settings
from glide_pipelines.evaluation.settings import differences, weights_digest
from glide_pipelines.files import write_json
from glide_pipelines.shapes import ShapesWorld
from glide_pipelines.shapes.edit_evaluation import edit_table, judge_edits, judge_true_edits
from glide_pipelines.shapes.edits import sample_edits
from glide_pipelines.shapes.evaluation import guidance_table, judge_pipeline, judge_renders, upsampler_difference
from glide_pipelines.shapes.retrieval import caption_retrieval, retrieval_table

from .errors import UserError
from .loading import find_device, find_model, make_fast, model_values, open_pipeline, sampling_values, step_values


MAX_UPSAMPLED = 128  # images for the upsampler alone: they differ little, and each takes as long as any other


def measure(args: argparse.Namespace) -> str:
    """Measure what the task asks for, write the results, and return the table."""
    return {"text-to-image": evaluate, "clip": evaluate_clip}.get(args.task, evaluate_edits)(args)


def load(args: argparse.Namespace, task: type[DiffusionPipeline] | None = None, **values: Any) -> DiffusionPipeline:
    """The pipeline of a task, text to image by default, as the `glide` command would load it."""
    pipe = open_pipeline(**model_values(args) | values, upsample=not args.base_only)
    if task is not None:
        pipe = task.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
    make_fast(args, pipe)
    return pipe


def describe_settings(args: argparse.Namespace, pipe: DiffusionPipeline) -> dict[str, Any]:
    """Everything that the figures depend on besides the weights and what the columns of the table name."""
    return {
        "task": args.task,
        "num_captions": args.num_captions,
        **sampling_settings(pipe, **sampling_values(args)),
    }


def earlier_results(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """What `--resume` keeps: the results in the output file, which must be of the same settings."""
    if not args.resume or not args.output.exists():
        return {"settings": settings, "versions": package_versions()}
    try:
        results = json.loads(args.output.read_text(encoding="utf-8"))
        others = differences(results["settings"], settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--resume: {args.output} holds no results of this command") from error
    if others:
        raise UserError(f"--resume: {args.output} was made with {others}")
    return results


def evaluate(args: argparse.Namespace) -> str:
    """Measure text to image, what is asked for and not yet known; write the results after each part."""
    pipe = load(args)
    settings = describe_settings(args, pipe) | {"weights": weights_digest(pipe)}
    results = {"guidance": []} | earlier_results(args, settings)
    world = ShapesWorld(args.seed, held_out=True)
    examples = [world.example(index) for index in range(args.num_captions)]
    common = {"seed": args.seed, "batch_size": args.batch_size}

    if "renders" not in results:
        results["renders"] = judge_renders(examples, pipe.default_size[0])
    known = {figures["guidance_scale"] for figures in results["guidance"]}
    for scale in sorted(set(args.guidance_scale) - known):
        print(f"guidance {scale:g}", file=sys.stderr)
        steps = step_values(args.steps, args.super_res_steps)
        figures = judge_pipeline(pipe, examples, guidance_scale=scale, **common, **steps)
        results["guidance"].append({"guidance_scale": scale, **figures})
        results["guidance"].sort(key=lambda figures: figures["guidance_scale"])
        write_json(results, args.output)
    if pipe.super_res_unet is not None and "upsampler" not in results:
        print("the upsampler alone", file=sys.stderr)
        upsampler = GLIDESuperResolutionPipeline.from_pipe(pipe)
        upsampler.set_progress_bar_config(disable=True)
        steps = step_values(super_res_steps=args.super_res_steps)
        results["upsampler"] = upsampler_difference(upsampler, examples[:MAX_UPSAMPLED], **common, **steps)
    write_json(results, args.output)
    return guidance_table(results)


def editors(args: argparse.Namespace) -> dict[str, tuple[DiffusionPipeline, dict[str, Any]]]:
    """A title for each column of the editing tasks' table, with the pipeline and what it is called with."""
    if args.task == "img2img":
        pipe = load(args, GLIDEImg2ImgPipeline)
        return {f"strength {strength:g}": (pipe, {"strength": strength}) for strength in args.strength}
    models = [args.model] if args.model is not None else [None, str(shapes_checkpoint("inpaint"))]
    columns: dict[str, tuple[DiffusionPipeline, dict[str, Any]]] = {}
    for model in models:
        pipe = load(args, GLIDEInpaintPipeline, model=model)
        columns[pipe.mode] = pipe, {}
        if pipe.mode == "implicit" and args.num_resample > 1:
            columns[f"implicit, num_resample {args.num_resample}"] = pipe, {"num_resample": args.num_resample}
    return columns


def evaluate_edits(args: argparse.Namespace) -> str:
    """Measure an editing task, what is asked for and not yet known; write the results after each column."""
    columns = editors(args)
    pipe = next(iter(columns.values()))[0]
    scale = None if args.guidance_scale is None else args.guidance_scale[0]
    # None: that of each checkpoint
    settings = describe_settings(args, pipe) | {"guidance_scale": scale, "working_size": args.working_size}
    settings["weights"] = sorted({weights_digest(pipe) for pipe, _ in columns.values()})
    results = {"columns": {}} | earlier_results(args, settings)
    edits = sample_edits(args.num_captions, args.seed)
    if "renders" not in results:
        results["renders"] = judge_true_edits(edits, pipe.default_size[0])
    call = {"seed": args.seed, "batch_size": args.batch_size, **step_values(args.steps, args.super_res_steps)}
    call["working_size"] = args.working_size
    sized = [
        (title if size is None else f"{title}, {size[0]} x {size[1]}", size, *column)
        for title, column in columns.items()
        for size in args.sizes or [None]
    ]
    for title, size, pipe, options in sized:
        if title not in results["columns"]:
            print(title, file=sys.stderr)
            options = options | {"guidance_scale": pipe.default_guidance_scale if scale is None else scale}
            masked = args.task == "inpaint"
            figures: dict[str, Any] = judge_edits(pipe, edits, masked=masked, size=size, **call, **options)
            figures["guidance_scale"] = options["guidance_scale"]
            results["columns"] = dict(sorted({**results["columns"], title: figures}.items(), key=_natural_order))
            write_json(results, args.output)
    return edit_table({"true images": results["renders"], **results["columns"]})


def _natural_order(column: tuple[str, Any]) -> list[str | int]:
    """By the words of the title, and the numbers in it by their values."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", column[0])]


def evaluate_clip(args: argparse.Namespace) -> str:
    """Measure a noised CLIP, under the noise of the base model that ships."""
    clip_model, clip_tokenizer = load_noised_clip(find_model(args.model, "noised-clip"))
    clip_model.to(device=find_device(args.device), dtype=getattr(torch, args.dtype))
    scheduler = GLIDEDDPMScheduler.from_pretrained(shapes_checkpoint(), subfolder="scheduler")
    common = {"num_captions": args.num_captions, "seed": args.seed, "batch_size": args.batch_size}
    rates = caption_retrieval(clip_model, clip_tokenizer, scheduler, args.timesteps, **common)
    settings = {"task": args.task, "model": args.model or "noised-clip", "dtype": args.dtype, **common}
    results = {"settings": settings, "versions": package_versions(), "timesteps": rates}
    write_json(results, args.output)
    return retrieval_table(rates)
