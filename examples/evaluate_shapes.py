"""Measure a model of the shapes world: how often each attribute is right, at several guidance scales.

    python examples/evaluate_shapes.py --output results.json

With --task inpaint or --task img2img: how often an object becomes another one, and what is kept of the rest.
With --task clip: how often a noised CLIP finds the caption of a noised picture.

The captions are of scenes whose combinations of objects and background were never trained on. See docs/shapes.md,
docs/editing.md and docs/clip_guidance.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import torch

import glide_cli
from glide_pipelines import (
    GLIDEDDPMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
    shapes_checkpoint,
)
from glide_pipelines.cli import find_device, load_pipeline, steps_arguments
from glide_pipelines.evaluation.features import load_noised_clip
from glide_pipelines.evaluation.report import differences, fingerprint, package_versions, sampling_settings
from glide_pipelines.files import write_json
from glide_pipelines.pipelines.pipeline_utils import GLIDEPipelineBase
from glide_pipelines.shapes import ShapesWorld
from glide_pipelines.shapes.edit_evaluation import edit_table, judge_edits, judge_true_edits
from glide_pipelines.shapes.edits import sample_edits
from glide_pipelines.shapes.evaluation import guidance_table, judge_pipeline, judge_renders, upsampler_difference
from glide_pipelines.shapes.retrieval import caption_retrieval, retrieval_table


MAX_UPSAMPLED = 128  # pictures for the upsampler alone: they differ little, and each takes as long as any other
TASK_OPTIONS = {  # what belongs to one task, and its default there
    "num_captions": {"text-to-image": 512, "inpaint": 256, "img2img": 256, "clip": 256},
    "guidance_scale": {"text-to-image": [1.0, 2.0, 3.0, 5.0], "inpaint": None, "img2img": None},
    "num_resample": {"inpaint": 4},
    "strength": {"img2img": [0.2, 0.4, 0.6, 0.8, 1.0]},
    "timesteps": {"clip": [0, 250, 500, 750, 999]},
}
DRAWING_OPTIONS = ("fast", "resume", "base_only", "steps", "super_res_steps", "scheduler", "super_res_scheduler")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = glide_cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--output", type=glide_cli.output_file, required=True, help="JSON of the settings and figures")
    add("--resume", action="store_true", help="keep what OUTPUT already holds of the same settings")
    add("--task", choices=tuple(TASK_OPTIONS["num_captions"]), default="text-to-image", help="default: %(default)s")
    add("--num-captions", type=glide_cli.positive_int, help="default: 512; 256 to edit, or for a CLIP")
    scales = "default: 1 2 3 5; to edit one, by default what each checkpoint recommends"
    add("--guidance-scale", type=glide_cli.finite, nargs="+", metavar="X", help=scales)
    add("--strength", type=glide_cli.strength, nargs="+", metavar="X", help="of img2img (default: 0.2 0.4 0.6 0.8 1)")
    resample = "inpaint in implicit mode once more, taking each step so often (default: 4; 1 leaves it out)"
    add("--num-resample", type=glide_cli.positive_int, help=resample)
    timesteps = "of the noise that a CLIP is shown (default: 0 250 500 750 999)"
    add("--timesteps", type=glide_cli.timestep, nargs="+", metavar="T", help=timesteps)
    add("--seed", type=glide_cli.seed, default=0, help="of captions and noise (default: %(default)s)")
    add("--batch-size", type=glide_cli.positive_int, default=32, help="pictures drawn at a time (default: %(default)s)")
    add("--base-only", action="store_true", help="judge the base model's small pictures")
    glide_cli.add_sampling_options(parser)
    glide_cli.add_model_options(parser)
    args = parser.parse_args(argv)
    for option, defaults in TASK_OPTIONS.items():
        if getattr(args, option) is None:
            setattr(args, option, defaults.get(args.task))
        elif args.task not in defaults:
            parser.error(f"--{option.replace('_', '-')} is for --task {' or '.join(defaults)}")
    if args.task == "clip":
        for option in DRAWING_OPTIONS:
            if getattr(args, option, False):
                parser.error(f"--{option.replace('_', '-')} is not for --task clip, which draws nothing")
    elif args.task != "text-to-image" and args.guidance_scale is not None and len(args.guidance_scale) > 1:
        parser.error(f"--guidance-scale: --task {args.task} takes one, got {len(args.guidance_scale)}")
    return args


def load(args: argparse.Namespace, task: type[GLIDEPipelineBase] = GLIDEPipeline) -> GLIDEPipelineBase:
    """The pipeline of a task as the `glide` command would load it."""
    pipe = load_pipeline(argparse.Namespace(**vars(args), no_upsample=args.base_only, quiet=True))
    if task is not GLIDEPipeline:
        pipe = task.from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
    return pipe


def describe_settings(args: argparse.Namespace, pipe: GLIDEPipeline) -> dict[str, Any]:
    """Everything that the figures depend on, but for what the columns of the table name."""
    return {"task": args.task, "num_captions": args.num_captions, **sampling_settings(args, pipe)}


def earlier_results(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """What `--resume` keeps: the results in the output file, which must be of the same settings."""
    if not args.resume or not args.output.exists():
        return {"settings": settings, "versions": package_versions()}
    try:
        results = json.loads(args.output.read_text(encoding="utf-8"))
        others = differences(results["settings"], settings)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise argparse.ArgumentError(None, f"--resume: {args.output} holds no results of this script") from error
    if others:
        raise argparse.ArgumentError(None, f"--resume: {args.output} was made with {others}")
    return results


def evaluate(args: argparse.Namespace) -> str:
    """Measure text to image, what is asked for and not yet known; write the results after each part."""
    pipe = load(args)
    settings = describe_settings(args, pipe) | {"weights": fingerprint(pipe)}
    results = {"guidance": []} | earlier_results(args, settings)
    world = ShapesWorld(args.seed, held_out=True)
    examples = [world.example(index) for index in range(args.num_captions)]
    common = {"seed": args.seed, "batch_size": args.batch_size}

    if "renders" not in results:
        results["renders"] = judge_renders(examples, pipe.default_size[0])
    known = {figures["guidance_scale"] for figures in results["guidance"]}
    for scale in sorted(set(args.guidance_scale) - known):
        print(f"guidance {scale:g}", file=sys.stderr)
        figures = judge_pipeline(pipe, examples, guidance_scale=scale, **common, **steps_arguments(args))
        results["guidance"].append({"guidance_scale": scale, **figures})
        results["guidance"].sort(key=lambda figures: figures["guidance_scale"])
        write_json(results, args.output)
    if pipe.super_res_unet is not None and "upsampler" not in results:
        print("the upsampler alone", file=sys.stderr)
        enlarger = GLIDESuperResolutionPipeline.from_pipe(pipe)
        enlarger.set_progress_bar_config(disable=True)
        call = {name: value for name, value in steps_arguments(args).items() if name.startswith("super_res_")}
        results["upsampler"] = upsampler_difference(enlarger, examples[:MAX_UPSAMPLED], **common, **call)
    write_json(results, args.output)
    return guidance_table(results)


def editors(args: argparse.Namespace) -> dict[str, tuple[GLIDEPipelineBase, dict[str, Any]]]:
    """A title for each column of the editing tasks' table, to the pipeline and what it is called with."""
    if args.task == "img2img":
        pipe = load(args, GLIDEImg2ImgPipeline)
        return {f"strength {strength:g}": (pipe, {"strength": strength}) for strength in args.strength}
    models = [args.model] if args.model is not None else [None, str(shapes_checkpoint("inpaint"))]
    columns = {}
    for model in models:
        pipe = load(argparse.Namespace(**vars(args) | {"model": model}), GLIDEInpaintPipeline)
        columns[pipe.mode] = pipe, {}
        if pipe.mode == "implicit" and args.num_resample > 1:
            columns[f"implicit, num_resample {args.num_resample}"] = pipe, {"num_resample": args.num_resample}
    return columns


def evaluate_edits(args: argparse.Namespace) -> str:
    """Measure an editing task, what is asked for and not yet known; write the results after each column."""
    columns = editors(args)
    pipe = next(iter(columns.values()))[0]
    scale = None if args.guidance_scale is None else args.guidance_scale[0]
    settings = describe_settings(args, pipe) | {"guidance_scale": scale}  # None: of each checkpoint
    settings["weights"] = sorted({fingerprint(pipe) for pipe, _ in columns.values()})
    results = {"columns": {}} | earlier_results(args, settings)
    edits = sample_edits(args.num_captions, args.seed)
    if "renders" not in results:
        results["renders"] = judge_true_edits(edits, pipe.default_size[0])
    call = {"seed": args.seed, "batch_size": args.batch_size, **steps_arguments(args)}
    for title, (pipe, options) in columns.items():
        if title not in results["columns"]:
            print(title, file=sys.stderr)
            options = options | {"guidance_scale": pipe.default_guidance_scale if scale is None else scale}
            figures = judge_edits(pipe, edits, masked=args.task == "inpaint", **call, **options)
            figures["guidance_scale"] = options["guidance_scale"]
            results["columns"] = dict(sorted({**results["columns"], title: figures}.items()))
            write_json(results, args.output)
    return edit_table({"true pictures": results["renders"], **results["columns"]})


def evaluate_clip(args: argparse.Namespace) -> str:
    """Measure a noised CLIP, under the noise of the base model that ships."""
    model = str(args.model or shapes_checkpoint("noised-clip"))
    clip_model, clip_tokenizer = load_noised_clip(model)
    clip_model = clip_model.to(find_device(args.device), getattr(torch, args.dtype))
    scheduler = GLIDEDDPMScheduler.from_pretrained(shapes_checkpoint(), subfolder="scheduler")
    common = {"num_captions": args.num_captions, "seed": args.seed, "batch_size": args.batch_size}
    rates = caption_retrieval(clip_model, clip_tokenizer, scheduler, args.timesteps, **common)
    settings = {"task": args.task, "model": args.model or "noised-clip", "dtype": args.dtype, **common}
    results = {"settings": settings, "versions": package_versions(), "timesteps": rates}
    write_json(results, args.output)
    return retrieval_table(rates)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code, as `glide_cli.exit_code` does."""

    def run() -> None:
        args = parse_args(argv)
        measure = {"text-to-image": evaluate, "clip": evaluate_clip}.get(args.task, evaluate_edits)
        print(measure(args))

    return glide_cli.exit_code("evaluate_shapes.py", run, (ValueError,))


if __name__ == "__main__":
    sys.exit(main())
