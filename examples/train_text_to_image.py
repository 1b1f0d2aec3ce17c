"""Train GLIDE's base model or its upsampler, from scratch or from an existing pipeline.

    accelerate launch examples/train_text_to_image.py --output_dir runs/base --max_train_steps 8000

See docs/training.md.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

import torch
from diffusers.utils import make_image_grid
from torch import nn
from transformers import GPT2Tokenizer

import glide_cli
from glide_pipelines import (
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDEPipeline,
    GLIDETextConfig,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
)
from glide_pipelines.shapes import train_tokenizer
from glide_pipelines.training.arguments import (
    add_data_arguments,
    add_run_arguments,
    add_stage_arguments,
    check_arguments,
    read_sizes,
    run_script,
)
from glide_pipelines.training.stages import Components, load_stage, pipeline_parts, train_stage


MODEL_CONFIGS = Path(__file__).parent / "model_configs"
# As in the released notebooks: ancestral steps for the base, DDIM for the upsampler. Training sees no difference.
SCHEDULERS = {"base": GLIDEDDPMScheduler, "super_res": GLIDEDDIMScheduler}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = glide_cli.Parser(description=__doc__)
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help="pipeline to go on from: a folder or a Hub id")
    add("--model_config", help="JSON with the sizes of a new model; by default that of the shapes checkpoint")
    add("--tokenizer_name", help="tokenizer of a new model: a folder or a Hub id; by default that of the shapes world")
    add("--text_encoder_name_or_path", help="text encoder to start from, such as train_shapes_text_encoder.py's")
    add_data_arguments(parser)
    add_stage_arguments(parser)
    add_run_arguments(parser)
    add = parser.add_argument_group("validation").add_argument
    add("--validation_prompts", nargs="+", help="draw these with every checkpoint, into OUTPUT_DIR/validation")
    return check_arguments(parser.parse_args(argv))


def new_tokenizer(folder: Path, model_max_length: int) -> GPT2Tokenizer:
    """The tokenizer of the shapes world, trained into the folder unless it is there already."""
    if not (folder / "tokenizer_config.json").exists():  # else another process, or this run before
        train_tokenizer(folder, model_max_length=model_max_length)
    return GPT2Tokenizer.from_pretrained(folder)


def new_text_encoder(tokenizer: GPT2Tokenizer, sizes: dict[str, int]) -> GLIDETextEncoder:
    """An untrained text encoder of these sizes for the tokenizer's vocabulary."""
    end = tokenizer.eos_token_id
    return GLIDETextEncoder(GLIDETextConfig(vocab_size=len(tokenizer), pad_token_id=end, eos_token_id=end, **sizes))


def build_components(args: argparse.Namespace) -> Components:
    """The tokenizer and the stage's text encoder, UNet and scheduler, new or from a pipeline; from a pipeline also
    `others`, what it holds of the other stage."""
    if args.pretrained_model_name_or_path is not None:
        components = load_stage(GLIDEPipeline, args.pretrained_model_name_or_path, args.stage)
    else:
        components = _new_components(args)
    if args.text_encoder_name_or_path is not None:
        text_encoder = GLIDETextEncoder.from_pretrained(args.text_encoder_name_or_path, dtype=torch.float32)
        expected, given = components["text_encoder"].config, text_encoder.config
        for size in ("vocab_size", "hidden_size", "max_position_embeddings"):
            if getattr(given, size) != getattr(expected, size):
                raise ValueError(
                    f"`text_encoder_name_or_path`: {size} must be {getattr(expected, size)} for this model, "
                    f"got {getattr(given, size)}."
                )
        components["text_encoder"] = text_encoder
    return components


def _new_components(args: argparse.Namespace) -> Components:
    path = args.model_config or MODEL_CONFIGS / f"shapes_{args.stage}.json"
    sizes = read_sizes(path, "text_encoder", "unet", "scheduler")
    context = sizes["text_encoder"]["max_position_embeddings"]
    if args.tokenizer_name is None:
        tokenizer = new_tokenizer(Path(args.output_dir) / "tokenizer", context)
    else:
        tokenizer = GPT2Tokenizer.from_pretrained(args.tokenizer_name)
    tokenizer.model_max_length = context
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # GPT-2's own has none; GLIDE pads with the end
    text_encoder = new_text_encoder(tokenizer, sizes["text_encoder"])
    try:
        unet_config = GLIDEUNet2DConditionModel.glide_config(
            text_hidden_size=text_encoder.config.hidden_size, **sizes["unet"]
        )
    except TypeError as error:  # a size of another name
        raise ValueError(f"`model_config` {path}: {error}") from error
    unet = GLIDEUNet2DConditionModel(**unet_config)
    unet.zero_output_layers()
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "unet": unet,
        "scheduler": SCHEDULERS[args.stage](**sizes["scheduler"]),
        "others": {},
        "low_res_consistency": False,
        "default_guidance_scale": None,
    }


def draw_validation_pictures(args: argparse.Namespace, components: Components, step: int) -> None:
    """A row of pictures, the same noise each time."""
    parts = pipeline_parts(components, args.stage) | components["others"]
    consistency = args.low_res_consistency or components["low_res_consistency"]
    scale = components["default_guidance_scale"]
    pipe = GLIDEPipeline(**parts, low_res_consistency=consistency, default_guidance_scale=scale)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(components["unet"].device)
    images = pipe(args.validation_prompts, generator=torch.Generator().manual_seed(args.seed)).images
    for part in components["others"].values():
        if isinstance(part, nn.Module):
            part.cpu()  # where it was: training goes on without it
    path = Path(args.output_dir) / "validation" / f"step-{step:06}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(images, rows=1, cols=len(images)).save(path)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    validate = functools.partial(draw_validation_pictures, args) if args.validation_prompts else None
    train_stage(args, GLIDEPipeline, build_components, validate=validate)


if __name__ == "__main__":
    run_script(main)
