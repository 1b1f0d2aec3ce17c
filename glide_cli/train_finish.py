"""The end of a run: the trained model is saved, and uploaded with a card."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .train_options import TrainingData, save_dtype


if TYPE_CHECKING:  # importing these takes seconds
    from accelerate import Accelerator
    from huggingface_hub import ModelCard
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def finish(
    args: argparse.Namespace,
    accelerator: Accelerator,
    done: int,
    save: Callable[[], Path],
    data: TrainingData,
    loaded_as: str,
) -> None:
    """End a run: save and upload what was trained, or say how to continue.

    Args:
        args (`argparse.Namespace`): The options.
        accelerator (`Accelerator`): Only the main process writes.
        done (`int`): Steps done.
        save (`Callable[[], Path]`): Saves the trained model and returns its folder.
        data ([`TrainingData`]): What it was trained on.
        loaded_as (`str`): The class of glide_pipelines that opens the folder.
    """
    if accelerator.is_main_process:
        if done < args.max_train_steps:
            print(f"Stopped at step {done} of {args.max_train_steps}; continue with --resume_from_checkpoint latest.")
        else:
            folder = save()
            print(f"The trained model is in {folder}.")
            if args.push_to_hub:
                tag = "zero-shot-image-classification" if loaded_as == "NoisedCLIPModel" else "text-to-image"
                facts = _facts(args, accelerator)
                adapts = args.pretrained_model_name_or_path if "LoRA" in facts else None
                card = training_card(args.hub_model_id, loaded_as, data.name, facts, tag, adapts)
                print(f"Uploaded: {push_to_hub(folder, args.hub_model_id, card)}")
    accelerator.end_training()


def save_model(args: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save a model that is no part of a pipeline, with its tokenizer, to `--model_dir`; returns the folder."""
    from glide_pipelines.files import updated_folder

    folder = Path(args.model_dir or Path(args.output_dir) / "model")
    with updated_folder(folder) as temporary:
        model.to(save_dtype(args)).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return folder


def _facts(args: argparse.Namespace, accelerator: Accelerator) -> dict[str, Any]:
    """The settings that a model card lists."""
    batch = args.train_batch_size * args.gradient_accumulation_steps * accelerator.num_processes
    facts = {
        "stage": args.stage,
        "LoRA": _lora(args),
        "started from": args.pretrained_model_name_or_path,
        "steps": args.max_train_steps,
        "images per step": batch,
        "optimizer": args.optimizer,
        "learning rate": f"{args.learning_rate}, {args.lr_scheduler}",
        "precision": accelerator.mixed_precision,
        "moving average of the weights": args.ema_decay[0],
        "seed": args.seed,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _lora(args: argparse.Namespace) -> str | None:
    if args.lora_rank is None:
        return None
    return f"{'DoRA, ' if args.use_dora else ''}rank {args.lora_rank}, alpha {args.lora_alpha or args.lora_rank}"


def training_card(
    repo_id: str,
    loaded_as: str,
    data: str,
    facts: Mapping[str, Any],
    pipeline_tag: str = "text-to-image",
    adapts: str | None = None,
) -> ModelCard:
    """The card of a trained model.

    Args:
        repo_id (`str`): Its repository.
        loaded_as (`str`): The class of glide_pipelines that opens it.
        data (`str`): What it was trained on.
        facts (`Mapping[str, Any]`): How, as names and values.
        pipeline_tag (`str`, defaults to `"text-to-image"`): The Hub's name of the task.
        adapts (`str`, *optional*): Of a LoRA: the pipeline that it was trained on.
    """
    from glide_pipelines.conversion.model_card import model_card
    from glide_pipelines.markdown import markdown_table

    from .loading import WORLDS

    names, source = loaded_as, f'"{adapts or repo_id}"'
    if adapts in WORLDS:
        names, source = f"{loaded_as}, pretrained_checkpoint", f"pretrained_checkpoint({source})"
    use = f"model = {loaded_as}.from_pretrained({source})"
    if adapts is not None:
        use += f'\nmodel.load_lora_weights("{repo_id}")'
    sections = {
        "": f"Trained on {data} with glide-pipelines.",
        "Use": f"```python\nfrom glide_pipelines import {names}\n\n{use}\n```",
        "Training": markdown_table(["setting", "value"], [[name, str(value)] for name, value in facts.items()]),
    }
    return model_card(repo_id, sections, license="unknown", pipeline_tag=pipeline_tag)


def push_to_hub(folder: Path, repo_id: str, card: ModelCard) -> str:
    """Upload a folder, and the card unless the repository has one already.

    (`DiffusionPipeline.push_to_hub` would save the pipeline again, write a card that says nothing of it, and cannot
    upload an upsampler whose base is still to come.)

    Returns:
        `str`: The address of the commit.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    if not api.file_exists(repo_id, "README.md"):
        card.push_to_hub(repo_id)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
