"""Measure a model of the shapes world: how often each attribute is right, at several guidance scales.

    glide evaluate-shapes --output results.json

With --task inpaint or --task img2img: how often an object becomes another one, and what is kept of the rest.
With --task clip: how often a noised CLIP finds the caption of a noised image.

The captions are of scenes whose combinations of objects and background were never trained on. See docs/shapes.md,
docs/editing.md and docs/clip_guidance.md.
"""

from __future__ import annotations

import argparse
from typing import Any

from .errors import UserError
from .options import (
    add_model_options,
    add_sampling_options,
    checked,
    finite,
    output_file,
    positive_int,
    seed,
    strength,
    timestep,
)


ERRORS = (ValueError,)
TASK_OPTIONS: dict[str, dict[str, Any]] = {  # what belongs to one task, and its default there
    "num_captions": {"text-to-image": 512, "inpaint": 256, "img2img": 256, "clip": 256},
    "guidance_scale": {"text-to-image": [1.0, 2.0, 3.0, 5.0], "inpaint": None, "img2img": None},
    "num_resample": {"inpaint": 4},
    "sizes": {"inpaint": None, "img2img": None},
    "working_size": {"inpaint": "model", "img2img": "model"},
    "strength": {"img2img": [0.2, 0.4, 0.6, 0.8, 1.0]},
    "timesteps": {"clip": [0, 250, 500, 750, 999]},
}
SAMPLING_OPTIONS = ("fast", "resume", "base_only", "steps", "super_res_steps", "scheduler", "super_res_scheduler")


def _pair(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)


size = checked(
    _pair, lambda value: all(32 <= length <= 2048 for length in value), "32 to 2048 pixels, or such a HEIGHTxWIDTH"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `glide evaluate-shapes`."""
    add = parser.add_argument
    add("--output", type=output_file, required=True, metavar="FILE", help="JSON of the settings and figures")
    add("--resume", action="store_true", help="keep what OUTPUT already holds of the same settings")
    add("--task", choices=tuple(TASK_OPTIONS["num_captions"]), default="text-to-image", help="default: %(default)s")
    add("--num-captions", type=positive_int, metavar="N", help="default: 512; 256 to edit, or for a CLIP")
    scales = "default: 1 2 3 5; to edit one, by default what each checkpoint recommends"
    add("--guidance-scale", type=finite, nargs="+", metavar="X", help=scales)
    add("--strength", type=strength, nargs="+", metavar="X", help="of img2img (default: 0.2 0.4 0.6 0.8 1)")
    resample = "inpaint in implicit mode once more, taking each step so often (default: 4; 1 leaves it out)"
    add("--num-resample", type=positive_int, metavar="N", help=resample)
    sizes = "of the scenes to edit, such as 512 or, height first, 300x420 (default: the model's)"
    add("--sizes", type=size, nargs="+", metavar="SIZE", help=sizes)
    working_size = "the model sees a scene at its own size, or at that of the image (default: model)"
    add("--working-size", choices=("model", "image"), help=working_size)
    timesteps = "of the noise that a CLIP is shown (default: 0 250 500 750 999)"
    add("--timesteps", type=timestep, nargs="+", metavar="T", help=timesteps)
    add("--seed", type=seed, default=0, metavar="N", help="of captions and noise (default: %(default)s)")
    add("--batch-size", type=positive_int, default=32, metavar="N", help="images at a time (default: %(default)s)")
    add("--base-only", action="store_true", help="judge the base model's small images")
    add_sampling_options(parser)
    add_model_options(parser, dtype="float32")


def check_arguments(args: argparse.Namespace) -> None:
    """Fill in the defaults of the task; options of other tasks are refused."""
    for option, defaults in TASK_OPTIONS.items():
        if getattr(args, option) is None:
            setattr(args, option, defaults.get(args.task))
        elif args.task not in defaults:
            raise UserError(f"--{option.replace('_', '-')} is for --task {' or '.join(defaults)}")
    if args.task == "clip":
        for option in SAMPLING_OPTIONS:
            if getattr(args, option):
                raise UserError(f"--{option.replace('_', '-')} is not for --task clip, which generates nothing")
    elif args.task != "text-to-image" and args.guidance_scale is not None and len(args.guidance_scale) > 1:
        raise UserError(f"--guidance-scale: --task {args.task} takes one, got {len(args.guidance_scale)}")


def run(args: argparse.Namespace) -> None:
    """Measure what the task asks for, and print the table."""
    from .run_evaluate_shapes import measure

    print(measure(args))
