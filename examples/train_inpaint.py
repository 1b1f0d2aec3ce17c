"""Fine-tune a text-to-image model, or go on with an inpainting one, to paint what a mask leaves out of a picture.

    accelerate launch examples/train_inpaint.py --output_dir runs/inpaint --max_train_steps 3000

See docs/training.md.
"""

from __future__ import annotations

import argparse

import glide_cli
from glide_pipelines import GLIDEDDPMScheduler, GLIDEInpaintPipeline, shapes_checkpoint
from glide_pipelines.training import widen_for_inpainting
from glide_pipelines.training.arguments import (
    add_data_arguments,
    add_run_arguments,
    add_stage_arguments,
    check_arguments,
    run_script,
)
from glide_pipelines.training.stages import Components, load_stage, train_stage


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = glide_cli.Parser(description=__doc__)
    parser.add_argument(
        "--pretrained_model_name_or_path",
        default=str(shapes_checkpoint()),
        help="text-to-image or inpainting pipeline to start from: a folder or a Hub id; by default the one that ships",
    )
    add_data_arguments(parser)
    add_stage_arguments(parser)
    add_run_arguments(parser)
    return check_arguments(parser.parse_args(argv))


def build_components(args: argparse.Namespace) -> Components:
    """The stage to train and, in `others`, the other one, both able to inpaint: a text-to-image model is widened."""
    components = load_stage(GLIDEInpaintPipeline, args.pretrained_model_name_or_path, args.stage)
    for parts in (components, components["others"]):
        for name, part in parts.items():
            if name.endswith("unet") and not part.is_inpainter:
                parts[name] = widen_for_inpainting(part)
            elif name.endswith("scheduler"):
                # Both released inpainting models are sampled ancestrally.
                parts[name] = GLIDEDDPMScheduler.from_config(part.config)
    return components


def main(argv: list[str] | None = None) -> None:
    train_stage(parse_args(argv), GLIDEInpaintPipeline, build_components, inpainting=True)


if __name__ == "__main__":
    run_script(main)
