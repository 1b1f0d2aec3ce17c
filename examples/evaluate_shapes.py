"""Measure a model of the shapes world: how often each attribute is right, at several guidance scales.

    python examples/evaluate_shapes.py --output results.json

The captions' combinations of objects and background were never trained on. See docs/shapes.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import glide_cli
from glide_pipelines import GLIDEPipeline, __version__
from glide_pipelines.cli import load_pipeline
from glide_pipelines.pipelines.pipeline_utils import DEFAULT_SUPER_RES_TIMESTEPS, DEFAULT_TIMESTEPS
from glide_pipelines.shapes import ShapesWorld
from glide_pipelines.shapes.evaluation import judge_pipeline, judge_renders, table, upsampler_difference


MAX_UPSAMPLED = 128  # pictures for the upsampler alone: they differ little, and each takes as long as any other
PACKAGES = ("torch", "diffusers", "transformers", "numpy", "pillow")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = glide_cli.Parser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output", type=glide_cli.output_file, required=True, help="JSON of the settings and figures")
    add("--resume", action="store_true", help="keep what OUTPUT already holds of the same settings")
    add("--num-captions", type=glide_cli.positive_int, default=512, help="default: %(default)s")
    scales = [1.0, 2.0, 3.0, 5.0]
    add("--guidance-scale", type=glide_cli.finite, nargs="+", default=scales, metavar="X", help="default: 1 2 3 5")
    add("--seed", type=glide_cli.seed, default=0, help="of captions and noise (default: %(default)s)")
    add("--batch-size", type=glide_cli.positive_int, default=32, help="pictures drawn at a time (default: %(default)s)")
    add("--base-only", action="store_true", help="judge the base model's small pictures")
    glide_cli.add_sampling_options(parser)
    glide_cli.add_model_options(parser)
    return parser.parse_args(argv)


def load(args: argparse.Namespace) -> GLIDEPipeline:
    """The pipeline as the `glide` command would load it."""
    return load_pipeline(argparse.Namespace(**vars(args), no_upsample=args.base_only, quiet=True))


def describe_settings(args: argparse.Namespace, pipe: GLIDEPipeline) -> dict[str, Any]:
    """Everything that the figures depend on, but for the guidance scales."""
    upsampled = pipe.super_res_unet is not None
    return {
        "model": args.model or "shapes_checkpoint()",
        "num_captions": args.num_captions,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "size": pipe.default_size[0],
        "steps": args.steps or DEFAULT_TIMESTEPS,
        "scheduler": type(pipe.scheduler).__name__,
        "super_res_steps": (args.super_res_steps or DEFAULT_SUPER_RES_TIMESTEPS) if upsampled else None,
        "super_res_scheduler": type(pipe.super_res_scheduler).__name__ if upsampled else None,
        "device": pipe.device.type,
        "dtype": args.dtype,
    }


def earlier_results(args: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """What `--resume` keeps: the results in the output file, which must be of the same settings."""
    if not args.resume or not args.output.exists():
        versions = {"glide-pipelines": __version__, **{package: version(package) for package in PACKAGES}}
        return {"settings": settings, "versions": versions, "guidance": []}
    try:
        results = json.loads(args.output.read_text(encoding="utf-8"))
        others = [
            f"{name} {results['settings'].get(name)!r} and not {value!r}"
            for name, value in settings.items()
            if results["settings"].get(name) != value
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise argparse.ArgumentError(None, f"--resume: {args.output} holds no results of this script") from error
    if others:
        raise argparse.ArgumentError(None, f"--resume: {args.output} was made with {', '.join(others)}")
    return results


def save(results: dict[str, Any], path: Path) -> None:
    """Write the results aside and rename them: the file is whole, or as it was before."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    aside.replace(path)


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what is asked for and not yet known, writing the results after each part."""
    pipe = load(args)
    results = earlier_results(args, describe_settings(args, pipe))
    world = ShapesWorld(args.seed, held_out=True)
    examples = [world.example(index) for index in range(args.num_captions)]
    steps = {}
    for prefix, asked in (("", args.steps), ("super_res_", args.super_res_steps)):
        if asked is not None:
            steps[prefix + ("timesteps" if isinstance(asked, str) else "num_inference_steps")] = asked
    common = {"seed": args.seed, "batch_size": args.batch_size}

    if "renders" not in results:
        results["renders"] = judge_renders(examples, pipe.default_size[0])
    known = {figures["guidance_scale"] for figures in results["guidance"]}
    for scale in sorted(set(args.guidance_scale) - known):
        print(f"guidance {scale:g}", file=sys.stderr)
        figures = judge_pipeline(pipe, examples, guidance_scale=scale, **common, **steps)
        results["guidance"].append({"guidance_scale": scale, **figures})
        results["guidance"].sort(key=lambda figures: figures["guidance_scale"])
        save(results, args.output)
    if pipe.super_res_unet is not None and "upsampler" not in results:
        print("the upsampler alone", file=sys.stderr)
        steps = {name: value for name, value in steps.items() if name.startswith("super_res_")}
        results["upsampler"] = upsampler_difference(pipe, examples[:MAX_UPSAMPLED], **common, **steps)
    save(results, args.output)
    return results


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 after an error of the user's."""
    try:
        print(table(evaluate(parse_args(argv))))
    except (argparse.ArgumentError, ValueError) as error:
        print(f"evaluate_shapes.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
