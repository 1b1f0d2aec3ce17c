"""The command line that the training scripts share, named as in diffusers' own scripts."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import HfApi

import glide_cli

from .data import DatasetSource, ShapesSource, Source
from .learning_rate import LearningRate
from .trainer import TrainingConfig


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Which pictures and captions, and how the pictures are cut."""
    add = parser.add_argument_group("data").add_argument
    add("--dataset_name", help='"shapes" (the default), or a dataset on the Hub')
    add("--train_data_dir", help="folder of pictures with a metadata.jsonl")
    add(
        "--num_objects_shares",
        type=float,
        nargs=3,
        metavar="SHARE",
        help="of the shapes world: how many scenes have one, two and three objects (default: 0.4 0.4 0.2)",
    )
    add("--image_column", default="image", help="column of the pictures (default: %(default)s)")
    add("--caption_column", default="text", help="column of the captions (default: %(default)s)")
    add("--resolution", type=int, help="width and height of the pictures, which become the model's; by default its own")
    add("--center_crop", action="store_true", help="crop the middle; otherwise anywhere")
    add("--random_flip", action="store_true", help="mirror half of the pictures (wrong where captions say left)")


def add_stage_arguments(parser: argparse.ArgumentParser) -> None:
    """Which of the two diffusion models is trained, on what noise, and where it goes."""
    add = parser.add_argument_group("stage").add_argument
    add(
        "--stage",
        choices=("base", "super_res"),
        default="base",
        help="which of the two models (default: %(default)s)",
    )
    add("--pipeline_dir", help="the pipeline that the trained stage becomes part of; by default OUTPUT_DIR/pipeline")
    add("--crop_size", type=int, help="super_res: train on crops of this size")
    add("--low_resolution", type=int, help="super_res: size of the small picture; by default the base's, or a quarter")
    add(
        "--low_res_blur",
        type=float,
        default=0.0,
        help="super_res: largest blur of the small picture (default: %(default)s)",
    )
    add(
        "--low_res_noise",
        type=float,
        default=0.0,
        help="super_res: largest noise in the small picture (default: %(default)s)",
    )
    add("--low_res_consistency", action="store_true", help="super_res: sampling keeps the small picture's colours")
    add("--freeze_text_encoder", action="store_true", help="train the UNet only")
    add("--proportion_empty_prompts", type=float, default=0.2, help="captions left out (default: %(default)s)")
    add(
        "--noise_offset",
        type=float,
        default=0.0,
        help="deviation of a constant on each channel's noise (default: %(default)s)",
    )
    add_noisy_share(add)
    add("--snr_weight_range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="weight by clamp(1/SNR, LOW, HIGH)")


def add_noisy_share(add: Callable[..., Any]) -> None:
    """Which timesteps are trained on more than others."""
    text = "share of timesteps drawn from the noisier half alone; below 0, the cleaner (default: %(default)s)"
    add("--noisy_share", type=float, default=0.0, help=text)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """How a run is run, logged and kept: what becomes a [`TrainingConfig`], an `Accelerator` and a folder."""
    add = parser.add_argument_group("run").add_argument
    add("--output_dir", required=True, help="folder of the run: log and checkpoints")
    add("--save_dtype", choices=DTYPES, default="fp32", help="of the trained model (default: %(default)s)")
    add("--push_to_hub", action="store_true", help="upload the trained model")
    add("--hub_model_id", help="repository to upload to, such as name/model")
    add("--seed", type=int, help="default: %(default)s")
    add("--max_train_steps", type=int, required=True, help="steps in all, those before a resumption included")
    add("--train_batch_size", type=int, help="per process (default: %(default)s)")
    add("--gradient_accumulation_steps", type=int, help="batches per step (default: %(default)s)")
    add("--gradient_checkpointing", action="store_true", help="recompute in the backward pass, to save memory")
    add("--learning_rate", type=float, default=1e-4, help="default: %(default)s")
    add("--lr_scheduler", default="constant", help="constant, linear or cosine decay (default: %(default)s)")
    add("--lr_warmup_steps", type=int, default=0, help="default: %(default)s")
    add("--lr_decay_steps", type=int, help="length of the decay at the end; by default all after the warm-up")
    add("--adam_beta1", type=float, help="default: %(default)s")
    add("--adam_beta2", type=float, help="default: %(default)s")
    add("--adam_weight_decay", type=float, help="default: %(default)s")
    add("--adam_epsilon", type=float, help="default: %(default)s")
    add("--max_grad_norm", type=float, help="clip the gradient to it (default: %(default)s)")
    add("--ema_decay", type=float, help="0 keeps no average (default: %(default)s)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), help="by default what accelerate is configured for")
    add("--checkpointing_steps", type=int, help="a checkpoint every so many steps")
    add("--checkpointing_minutes", type=float, help="a checkpoint every so many minutes")
    add("--checkpoints_total_limit", type=int, help="keep so many checkpoints")
    add("--resume_from_checkpoint", help='"latest", or a checkpoint')
    add("--report_to", help="tensorboard, wandb or another of accelerate's trackers, beside OUTPUT_DIR/log.jsonl")
    add("--logging_steps", type=int, help="a line of the log every so many steps (default: %(default)s)")
    add("--dataloader_num_workers", type=int, help="processes that load pictures (default: %(default)s)")
    # What a TrainingConfig holds has the defaults that it has there.
    defaults = {field.name: field.default for field in fields(TrainingConfig) if field.default is not MISSING}
    parser.set_defaults(**defaults)


def read_sizes(path: str | Path, *parts: str) -> dict[str, dict[str, Any]]:
    """What the JSON file that `--model_config` names says of these parts of a model.

    Raises:
        ValueError: if there is no such file, or it says nothing of a part.
    """
    if not Path(path).is_file():
        raise ValueError(f"`model_config` must be a JSON file, got {str(path)!r}.")
    try:
        sizes = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`model_config` {path} is no JSON: {error}") from error
    for part in parts:
        if not isinstance(sizes, dict) or not isinstance(sizes.get(part), dict):
            raise ValueError(f"`model_config` {path} is of another kind of model: it lacks {part!r}.")
    return sizes


def check_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """Refuse what cannot go together, before anything is loaded.

    Raises:
        ValueError: if two arguments contradict each other.
    """
    if args.dataset_name is not None and args.train_data_dir is not None:
        raise ValueError("Pass only one of `dataset_name` and `train_data_dir`.")
    if args.dataset_name is None and args.train_data_dir is None:
        args.dataset_name = "shapes"
    if args.push_to_hub != (args.hub_model_id is not None):
        raise ValueError("`push_to_hub` and `hub_model_id` go together.")
    if getattr(args, "proportion_full_captions", 0.0) and args.dataset_name != "shapes":
        raise ValueError("`proportion_full_captions` is for the shapes world.")
    if args.num_objects_shares is not None and args.dataset_name != "shapes":
        raise ValueError("`num_objects_shares` is for the shapes world.")
    if getattr(args, "stage", None) == "base":
        for name in ("crop_size", "low_resolution", "low_res_blur", "low_res_noise", "low_res_consistency"):
            if getattr(args, name):
                raise ValueError(f"`{name}` is for the stage super_res.")
    return args


def training_config(args: argparse.Namespace) -> TrainingConfig:
    """The [`TrainingConfig`] that [`add_run_arguments`] describes."""
    learning_rate = LearningRate(
        args.learning_rate, args.max_train_steps, args.lr_warmup_steps, args.lr_scheduler, args.lr_decay_steps
    )
    names = TrainingConfig.__annotations__.keys() - {"learning_rate"}
    return TrainingConfig(learning_rate=learning_rate, **{name: getattr(args, name) for name in names})


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """The `Accelerator` that [`add_run_arguments`] describes, with its tracker started."""
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    if args.report_to is not None:
        plain = {name: value for name, value in vars(args).items() if isinstance(value, int | float | str)}
        accelerator.init_trackers("glide-pipelines", config=plain)
    return accelerator


def make_source(args: argparse.Namespace, resolution: int) -> Source:
    """The pictures and captions that the arguments of [`add_data_arguments`] describe, at a size in pixels."""
    if args.dataset_name == "shapes":
        full_captions = getattr(args, "proportion_full_captions", 0.0)
        return ShapesSource(resolution, args.seed, full_captions, args.num_objects_shares)
    return DatasetSource(
        args.dataset_name,
        args.train_data_dir,
        resolution,
        args.seed,
        args.image_column,
        args.caption_column,
        args.center_crop,
        args.random_flip,
    )


def finish(args: argparse.Namespace, accelerator: Accelerator, done: int, save: Callable[[], Path]) -> None:
    """End a run: keep what was trained if it is all there, and say where it is or how to go on.

    Args:
        args (`argparse.Namespace`): Of [`add_run_arguments`].
        accelerator (`Accelerator`): Only the main process writes.
        done (`int`): Steps done.
        save (`Callable[[], Path]`): Writes the trained model and returns its folder.
    """
    if accelerator.is_main_process:
        if done < args.max_train_steps:
            print(f"Stopped at step {done} of {args.max_train_steps}; go on with --resume_from_checkpoint latest.")
        else:
            folder = save()
            print(f"The trained model is in {folder}.")
            if args.push_to_hub:
                api = HfApi()
                api.create_repo(args.hub_model_id, exist_ok=True)
                print(f"It is uploaded: {api.upload_folder(repo_id=args.hub_model_id, folder_path=folder)}")
    accelerator.end_training()


def run_script(main: Callable[[], None]) -> None:
    """Call a script's `main`; an error of the user's is one line on stderr and exit code 2, without a traceback."""
    sys.exit(glide_cli.exit_code(Path(sys.argv[0]).name, main, (ValueError, ImportError, OSError)))
