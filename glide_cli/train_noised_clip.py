"""Training a noised CLIP."""

from __future__ import annotations

import argparse
from typing import Any

from .options import Parser
from .train_finish import finish, save_model
from .train_options import (
    A_MODEL,
    MODEL_CONFIGS,
    add_data_options,
    add_run_options,
    add_timestep_options,
    load_tokenizer,
    model_or_shapes,
    read_sizes,
    start,
    timestep_weighting,
)


def add_noised_clip_options(parser: Parser) -> None:
    """The options of `noised-clip`."""
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help="noised CLIP to continue from: a folder or a Hub id")
    add(
        "--model_config",
        default=str(MODEL_CONFIGS / "shapes_noised_clip.json"),
        help="JSON with the sizes of a new model (default: %(default)s)",
    )
    add(
        "--guided_model",
        help="pipeline that is to be guided, whose noise schedule and (for a new model) tokenizer are taken: "
        f"{A_MODEL}; for the shapes world by default its own",
    )
    add("--tokenizer_name", help="tokenizer of a new model: a folder or a Hub id; by default the guided model's")
    add("--model_dir", help="where the trained model goes; by default OUTPUT_DIR/model")
    add_timestep_options(add)
    add_data_options(parser)
    add_run_options(parser)


def noised_clip(args: argparse.Namespace) -> None:
    """Train a CLIP on noised images, whose gradient can guide a diffusion model."""
    from transformers import AutoTokenizer

    from glide_pipelines import GLIDEDDPMScheduler, GLIDEUNet2DConditionModel, NoisedCLIPModel
    from glide_pipelines.sampling import height_and_width
    from glide_pipelines.training import TextToImageDataset, new_noised_clip, noised_clip_loss, prepare_tokenizer, train

    guided_model = model_or_shapes(args, "guided_model", "the pipeline that is to be guided")
    accelerator, data, config = start(args)
    with accelerator.main_process_first():
        if args.pretrained_model_name_or_path is not None:
            model = NoisedCLIPModel.from_pretrained(args.pretrained_model_name_or_path)
            tokenizer = AutoTokenizer.from_pretrained(args.pretrained_model_name_or_path)
        else:
            sizes = read_sizes(args.model_config, "text_config", "vision_config")
            if args.tokenizer_name is None:
                tokenizer = AutoTokenizer.from_pretrained(guided_model, subfolder="tokenizer")
            else:
                tokenizer = load_tokenizer(args.tokenizer_name)
            model = new_noised_clip(tokenizer, sizes)
        text: Any = model.config.text_config
        vision: Any = model.config.vision_config
        prepare_tokenizer(tokenizer, text.max_position_embeddings)
        scheduler = GLIDEDDPMScheduler.from_pretrained(guided_model, subfolder="scheduler")
        num_timesteps = scheduler.config.num_train_timesteps
        if num_timesteps != vision.num_train_timesteps:
            raise ValueError(
                f"`guided_model` has {num_timesteps} timesteps, the noised CLIP {vision.num_train_timesteps}."
            )
        side, _ = height_and_width(GLIDEUNet2DConditionModel.load_config(guided_model, subfolder="unet")["sample_size"])
        if side != vision.image_size:
            clip = args.pretrained_model_name_or_path or args.model_config
            raise ValueError(
                f"{clip} is of a CLIP of {vision.image_size} pixels, but `guided_model` makes images of {side}: name "
                "its sizes by `model_config`."
            )
        if args.resolution not in (None, vision.image_size):
            raise ValueError(f"`resolution` must be that of the model, {vision.image_size}, got {args.resolution}.")
        # Every caption is kept: an empty one tells no two images apart.
        weighting = timestep_weighting(args, num_timesteps)
        source = data.source(vision.image_size)
        dataset = TextToImageDataset(source, tokenizer, weighting, args.seed, proportion_empty_prompts=0.0)
        data.report_cut_captions(accelerator, tokenizer)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    done = train(accelerator, config, model, dataset, noised_clip_loss(accelerator, scheduler), num_timesteps)

    finish(args, accelerator, done, lambda: save_model(args, model, tokenizer), data, "NoisedCLIPModel")
