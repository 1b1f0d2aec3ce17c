"""Train a CLIP on noised pictures, whose gradient can guide a diffusion model.

    accelerate launch examples/train_noised_clip.py --output_dir runs/clip --max_train_steps 2000 --train_batch_size 128

See docs/training.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate.utils import set_seed
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import glide_cli
from glide_pipelines import GLIDEDDPMScheduler, NoisedCLIPConfig, NoisedCLIPModel, shapes_checkpoint
from glide_pipelines.training import TextToImageDataset, TimestepWeighting, train
from glide_pipelines.training.arguments import (
    DTYPES,
    add_data_arguments,
    add_noisy_share,
    add_run_arguments,
    check_arguments,
    finish,
    make_accelerator,
    make_source,
    read_sizes,
    run_script,
    training_config,
)
from glide_pipelines.training.checkpoints import written_aside
from glide_pipelines.training.contrastive import noised_clip_loss


MODEL_CONFIG = Path(__file__).parent / "model_configs" / "shapes_noised_clip.json"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = glide_cli.Parser(description=__doc__)
    add = parser.add_argument_group("model").add_argument
    add("--pretrained_model_name_or_path", help="noised CLIP to go on from: a folder or a Hub id")
    add("--model_config", default=str(MODEL_CONFIG), help="JSON with the sizes of a new model (default: %(default)s)")
    add(
        "--guided_model",
        default=str(shapes_checkpoint()),
        help="pipeline that is to be guided, whose noise schedule and (for a new model) tokenizer are taken: a folder "
        "or a Hub id; by default the one that ships",
    )
    add("--tokenizer_name", help="tokenizer of a new model: a folder or a Hub id; by default the guided model's")
    add("--model_dir", help="where the trained model goes; by default OUTPUT_DIR/model")
    add_noisy_share(add)
    full = "of the shapes world: captions that leave nothing unsaid (default: %(default)s)"
    add("--proportion_full_captions", type=float, default=0.0, help=full)
    add_data_arguments(parser)
    add_run_arguments(parser)
    return check_arguments(parser.parse_args(argv))


def build_model(args: argparse.Namespace) -> tuple[NoisedCLIPModel, PreTrainedTokenizerBase]:
    """The model, new or from a folder, and its tokenizer."""
    if args.pretrained_model_name_or_path is not None:
        model = NoisedCLIPModel.from_pretrained(args.pretrained_model_name_or_path)
        tokenizer = AutoTokenizer.from_pretrained(args.pretrained_model_name_or_path)
    else:
        sizes = read_sizes(args.model_config, "text_config", "vision_config")
        if args.tokenizer_name is not None:
            tokenizer = AutoTokenizer.from_pretrained(args.tokenizer_name)
        else:
            tokenizer = AutoTokenizer.from_pretrained(args.guided_model, subfolder="tokenizer")
        sizes["text_config"]["vocab_size"] = len(tokenizer)
        model = NoisedCLIPModel(NoisedCLIPConfig(**sizes))
    tokenizer.model_max_length = model.config.text_config.max_position_embeddings
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # GPT-2's own has none
    return model, tokenizer


def save(args: argparse.Namespace, model: NoisedCLIPModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    folder = Path(args.model_dir or Path(args.output_dir) / "model")
    with written_aside(folder) as partial:
        nn.Module.to(model, DTYPES[args.save_dtype]).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, accelerator = training_config(args), make_accelerator(args)
    set_seed(args.seed)
    with accelerator.main_process_first():
        model, tokenizer = build_model(args)
        scheduler = GLIDEDDPMScheduler.from_pretrained(args.guided_model, subfolder="scheduler")
        num_timesteps = scheduler.config.num_train_timesteps
        if num_timesteps != model.config.vision_config.num_train_timesteps:
            raise ValueError(
                f"`guided_model` has {num_timesteps} timesteps, the noised CLIP "
                f"{model.config.vision_config.num_train_timesteps}."
            )
        resolution = model.config.vision_config.image_size
        if args.resolution not in (None, resolution):
            raise ValueError(f"`resolution` must be that of the model, {resolution}, got {args.resolution}.")
        # Every caption is kept: an empty one tells nothing apart.
        weighting = TimestepWeighting(num_timesteps, args.noisy_share)
        dataset = TextToImageDataset(make_source(args, resolution), tokenizer, weighting, args.seed, 0.0)
    if args.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    set_seed(args.seed, device_specific=True)
    done = train(accelerator, config, model, dataset, noised_clip_loss(accelerator, scheduler), num_timesteps)
    finish(args, accelerator, done, lambda: save(args, model, tokenizer))


if __name__ == "__main__":
    run_script(main)
