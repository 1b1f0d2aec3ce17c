"""Train GLIDE's base model or its upsampler, from scratch or from an existing pipeline.

    accelerate launch examples/train_text_to_image.py --output_dir runs/base --max_train_steps 8000

See docs/training.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from transformers import GPT2Tokenizer

from glide_pipelines import (
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDETextConfig,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
)
from glide_pipelines.pipelines import GLIDEPipeline
from glide_pipelines.shapes import train_tokenizer
from glide_pipelines.training import (
    DatasetSource,
    LearningRate,
    LowResolution,
    ShapesSource,
    TextConditionedUNet,
    TextToImageDataset,
    TimestepWeighting,
    TrainingConfig,
    text_to_image_loss,
    train,
)


MODEL_CONFIGS = Path(__file__).parent / "model_configs"
PREFIXES = {"base": "", "super_res": "super_res_"}  # of the names of the pipeline's components
OTHER = {"base": "super_res", "super_res": "base"}
STAGE_PARTS = ("text_encoder", "unet", "scheduler")
# As in the released notebooks: ancestral steps for the base, DDIM for the upsampler. Training sees no difference.
SCHEDULERS = {"base": GLIDEDDPMScheduler, "super_res": GLIDEDDIMScheduler}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--stage", choices=("base", "super_res"), default="base", help="which of the two models to train")
    add("--pretrained_model_name_or_path", help="pipeline to go on from: a folder or a Hub id")
    add("--model_config", help="JSON with the sizes of a new model; by default that of the shapes checkpoint")
    add("--tokenizer_name", help="tokenizer of a new model: a folder or a Hub id; by default that of the shapes world")
    add("--dataset_name", help='"shapes" (the default), or a dataset on the Hub')
    add("--train_data_dir", help="folder of pictures with a metadata.jsonl")
    add("--image_column", default="image", help="column of the pictures (default: %(default)s)")
    add("--caption_column", default="text", help="column of the captions (default: %(default)s)")
    add("--resolution", type=int, help="width and height of the pictures; by default the model's")
    add("--center_crop", action="store_true", help="crop the middle; otherwise anywhere")
    add("--random_flip", action="store_true", help="mirror half of the pictures (wrong where captions say left)")
    add("--crop_size", type=int, help="super_res: train on crops of this size")
    add("--low_resolution", type=int, help="super_res: size of the small picture; by default a quarter")
    add("--low_res_blur", type=float, default=0.0, help="super_res: largest blur radius of the small picture")
    add("--low_res_noise", type=float, default=0.0, help="super_res: largest noise deviation in the small picture")
    add("--low_res_consistency", action="store_true", help="super_res: sampling keeps the small picture's colours")
    add("--proportion_empty_prompts", type=float, default=0.2, help="captions left out (default: %(default)s)")
    add("--noise_offset", type=float, default=0.0, help="deviation of a constant added to each channel's noise")
    add("--noisy_share", type=float, default=0.0, help="timesteps drawn from the noisier half beside the uniform ones")
    add("--snr_weight_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="weight by clamp(1/SNR, LOW, HIGH)")

    add("--output_dir", required=True, help="folder of the run: log and checkpoints")
    add("--pipeline_dir", help="where the trained pipeline goes; by default OUTPUT_DIR/pipeline")
    add("--save_dtype", choices=DTYPES, default="fp32", help="of the trained pipeline (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--max_train_steps", type=int, required=True, help="steps in all, those before a resumption included")
    add("--train_batch_size", type=int, default=16, help="per process (default: %(default)s)")
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--gradient_checkpointing", action="store_true", help="recompute in the backward pass, to save memory")
    add("--learning_rate", type=float, default=1e-4)
    add("--lr_scheduler", default="constant", help="constant, linear or cosine decay (default: %(default)s)")
    add("--lr_warmup_steps", type=int, default=0)
    add("--lr_decay_steps", type=int, help="length of the decay at the end; by default all after the warm-up")
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adam_weight_decay", type=float, default=0.01)
    add("--adam_epsilon", type=float, default=1e-8)
    add("--max_grad_norm", type=float, default=1.0)
    add("--ema_decay", type=float, default=0.9999, help="0 keeps no average (default: %(default)s)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="by default what accelerate is configured for")
    add("--checkpointing_steps", type=int, help="a checkpoint every so many steps")
    add("--checkpointing_minutes", type=float, help="a checkpoint every so many minutes")
    add("--checkpoints_total_limit", type=int, help="keep so many checkpoints")
    add("--resume_from_checkpoint", help='"latest", or a checkpoint')
    add("--logging_steps", type=int, default=50)
    add("--dataloader_num_workers", type=int, default=0)
    args = parser.parse_args(argv)
    if args.dataset_name is not None and args.train_data_dir is not None:
        raise ValueError("Pass only one of `dataset_name` and `train_data_dir`.")
    for name in ("crop_size", "low_resolution", "low_res_blur", "low_res_noise", "low_res_consistency"):
        if args.stage == "base" and getattr(args, name):
            raise ValueError(f"`{name}` is for the stage super_res.")
    if args.dataset_name is None and args.train_data_dir is None:
        args.dataset_name = "shapes"
    return args


def build_components(args: argparse.Namespace) -> dict[str, object]:
    """The tokenizer and the stage's text encoder, UNet and scheduler, new or from a pipeline; from a pipeline also
    `others`, what it holds of the other stage."""
    if args.pretrained_model_name_or_path is not None:
        pipeline = GLIDEPipeline.from_pretrained(args.pretrained_model_name_or_path, dtype=torch.float32)
        names = {stage: [prefix + name for name in STAGE_PARTS] for stage, prefix in PREFIXES.items()}
        found = {stage: [getattr(pipeline, name) for name in names[stage]] for stage in names}
        if None in found[args.stage]:
            raise ValueError(
                f"`pretrained_model_name_or_path` has no {args.stage} model: {args.pretrained_model_name_or_path}"
            )
        other = OTHER[args.stage]
        others = {} if None in found[other] else dict(zip(names[other], found[other], strict=True))
        stage = dict(zip(STAGE_PARTS, found[args.stage], strict=True))
        return {"tokenizer": pipeline.tokenizer, **stage, "others": others}
    path = Path(args.model_config or MODEL_CONFIGS / f"shapes_{args.stage}.json")
    if not path.is_file():
        raise ValueError(f"`model_config` must be a JSON file, got {str(path)!r}.")
    sizes = json.loads(path.read_text())
    tokenizer_name = args.tokenizer_name
    if tokenizer_name is None:
        tokenizer_name = Path(args.output_dir) / "tokenizer"
        if not (tokenizer_name / "tokenizer_config.json").exists():  # else another process, or this run before
            train_tokenizer(tokenizer_name)
    tokenizer = GPT2Tokenizer.from_pretrained(tokenizer_name)
    tokenizer.model_max_length = sizes["text_encoder"]["max_position_embeddings"]
    end = tokenizer.eos_token_id
    text_config = GLIDETextConfig(
        vocab_size=len(tokenizer), pad_token_id=end, eos_token_id=end, **sizes["text_encoder"]
    )
    unet_config = GLIDEUNet2DConditionModel.glide_config(text_hidden_size=text_config.hidden_size, **sizes["unet"])
    unet = GLIDEUNet2DConditionModel(**unet_config)
    unet.zero_output_layers()
    return {
        "tokenizer": tokenizer,
        "text_encoder": GLIDETextEncoder(text_config),
        "unet": unet,
        "scheduler": SCHEDULERS[args.stage](**sizes["scheduler"]),
        "others": {},
    }


def build_dataset(args: argparse.Namespace, components: dict[str, object]) -> TextToImageDataset:
    resolution = args.resolution or components["unet"].config.sample_size
    if args.dataset_name == "shapes":
        source = ShapesSource(resolution, args.seed)
    else:
        source = DatasetSource(
            args.dataset_name,
            args.train_data_dir,
            resolution,
            args.seed,
            args.image_column,
            args.caption_column,
            args.center_crop,
            args.random_flip,
        )
    low_resolution = None
    if args.stage == "super_res":
        low_resolution = LowResolution(
            resolution,
            args.low_resolution or resolution // 4,
            args.crop_size,
            args.low_res_blur,
            args.low_res_noise,
        )
        multiple = components["unet"].size_multiple
        if args.crop_size is not None and args.crop_size % multiple:
            raise ValueError(f"`crop_size` must be a multiple of {multiple} for this model, got {args.crop_size}.")
    weighting = TimestepWeighting(
        components["scheduler"].config.num_train_timesteps,
        args.noisy_share,
        tuple(args.snr_weight_range) if args.snr_weight_range else None,
    )
    return TextToImageDataset(
        source,
        components["tokenizer"],
        weighting,
        args.seed,
        args.proportion_empty_prompts,
        low_resolution,
        args.noise_offset,
    )


def cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model.to(dtype)` without diffusers' warning about models that keep some modules in float32; these keep none."""
    return nn.Module.to(model, dtype)


def save_pipeline(args: argparse.Namespace, components: dict[str, object]) -> Path:
    """Write the trained components into the pipeline's folder, beside those of the other stage if they are there."""
    folder = Path(args.pipeline_dir or Path(args.output_dir) / "pipeline")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    parts = {"tokenizer": components["tokenizer"]}
    parts |= {PREFIXES[args.stage] + name: components[name] for name in STAGE_PARTS}
    other, dtype = OTHER[args.stage], {"dtype": DTYPES[args.save_dtype]}
    names = [PREFIXES[other] + name for name in STAGE_PARTS]
    if all((folder / name).is_dir() for name in names):
        kinds = ((GLIDETextEncoder, dtype), (GLIDEUNet2DConditionModel, dtype), (SCHEDULERS[other], {}))
        parts |= {
            name: kind.from_pretrained(folder / name, **more) for name, (kind, more) in zip(names, kinds, strict=True)
        }
    else:
        for name, part in components["others"].items():
            parts[name] = part if name.endswith("scheduler") else cast(part, **dtype)
    if "unet" in parts:
        earlier = GLIDEPipeline.load_config(folder) if (folder / GLIDEPipeline.config_name).is_file() else {}
        GLIDEPipeline(
            **parts,
            prompt_domain="shapes" if args.dataset_name == "shapes" else None,
            low_res_consistency=args.low_res_consistency or earlier.get("low_res_consistency", False),
        ).save_pretrained(partial)
    else:  # An upsampler whose base is still to come.
        for name, part in parts.items():
            part.save_pretrained(partial / name)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in partial.iterdir():
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(target)
        entry.replace(target)
    partial.rmdir()
    return folder


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config = TrainingConfig(
        learning_rate=LearningRate(
            args.learning_rate, args.max_train_steps, args.lr_warmup_steps, args.lr_scheduler, args.lr_decay_steps
        ),
        **{
            name: value
            for name, value in vars(args).items()
            if name in TrainingConfig.__annotations__
            if name != "learning_rate"
        },
    )
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
    )
    set_seed(args.seed)
    with accelerator.main_process_first():
        components = build_components(args)
        dataset = build_dataset(args, components)
    if args.gradient_checkpointing:
        components["unet"].enable_gradient_checkpointing()
        components["text_encoder"].activation_checkpointing_enable()
    model = TextConditionedUNet(components["text_encoder"], components["unet"])
    set_seed(args.seed, device_specific=True)
    done = train(
        accelerator,
        config,
        model,
        dataset,
        text_to_image_loss(components["scheduler"], dataset.weighting),
        components["scheduler"].config.num_train_timesteps,
    )
    if accelerator.is_main_process:
        if done < args.max_train_steps:
            print(f"Stopped at step {done} of {args.max_train_steps}; go on with --resume_from_checkpoint latest.")
        else:
            cast(model, DTYPES[args.save_dtype])
            print(f"The pipeline is in {save_pipeline(args, components)}.")
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except (ValueError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
