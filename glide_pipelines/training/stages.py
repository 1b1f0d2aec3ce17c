"""One of a pipeline's two stages: load it, train it, and put it back beside the other."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from accelerate import PartialState
from accelerate.utils import set_seed
from diffusers import DiffusionPipeline
from torch import nn

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..pipelines.pipeline_utils import enlargement
from ..schedulers import GLIDEDDPMScheduler
from .arguments import DTYPES, finish, make_accelerator, make_source, training_config
from .checkpoints import written_aside
from .data import LowResolution, TextToImageDataset
from .masks import draw_mask
from .text_to_image import TextConditionedUNet, text_to_image_loss
from .timesteps import TimestepWeighting
from .trainer import train


PREFIXES = {"base": "", "super_res": "super_res_"}  # of the names of the pipeline's components
OTHER = {"base": "super_res", "super_res": "base"}
STAGE_PARTS = ("text_encoder", "unet", "scheduler")

# `tokenizer`, `text_encoder`, `unet` and `scheduler` of a stage; `others`, the other stage's under their names in the
# pipeline; and the pipeline's `low_res_consistency` and `default_guidance_scale`.
Components = dict[str, object]


def load_stage(pipeline_class: type[DiffusionPipeline], path: str, stage: str) -> Components:
    """A stage of a pipeline, in float32, and in `others` what the pipeline holds of the other stage.

    Args:
        pipeline_class (`type[DiffusionPipeline]`): What opens it.
        path (`str`): A folder or a Hub id.
        stage (`str`): `"base"` or `"super_res"`.

    Raises:
        ValueError: if the pipeline does not have the stage.
    """
    pipeline = pipeline_class.from_pretrained(path, dtype=torch.float32)
    names = {key: _part_names(key) for key in PREFIXES}
    found = {key: [getattr(pipeline, name) for name in names[key]] for key in names}
    if None in found[stage]:
        raise ValueError(f"`pretrained_model_name_or_path` has no {stage} model: {path}")
    other = OTHER[stage]
    others = {} if None in found[other] else dict(zip(names[other], found[other], strict=True))
    return {
        "tokenizer": pipeline.tokenizer,
        **dict(zip(STAGE_PARTS, found[stage], strict=True)),
        "others": others,
        "low_res_consistency": pipeline.config.low_res_consistency,
        "default_guidance_scale": pipeline.config.default_guidance_scale,
    }


def pipeline_parts(components: Components, stage: str) -> Components:
    """The stage's parts and the tokenizer under their names in the pipeline."""
    parts = [components[name] for name in STAGE_PARTS]
    return {"tokenizer": components["tokenizer"], **dict(zip(_part_names(stage), parts, strict=True))}


def make_dataset(args: argparse.Namespace, components: Components, inpainting: bool = False) -> TextToImageDataset:
    """The examples that the arguments of [`add_data_arguments`] and [`add_stage_arguments`] describe."""
    resolution = components["unet"].config.sample_size
    low_resolution = None
    if args.stage == "super_res":
        low_resolution = LowResolution(
            resolution,
            args.low_resolution or _other_size(args, components) or resolution // 4,
            args.crop_size,
            args.low_res_blur,
            args.low_res_noise,
        )
        multiple = components["unet"].size_multiple
        if args.crop_size is not None and args.crop_size % multiple:
            raise ValueError(f"`crop_size` must be a multiple of {multiple} for this model, got {args.crop_size}.")
    return TextToImageDataset(
        make_source(args, resolution),
        components["tokenizer"],
        TimestepWeighting(
            components["scheduler"].config.num_train_timesteps,
            args.noisy_share,
            tuple(args.snr_weight_range) if args.snr_weight_range else None,
        ),
        args.seed,
        args.proportion_empty_prompts,
        low_resolution,
        args.noise_offset,
        draw_mask if inpainting else None,
    )


def _join_folder(args: argparse.Namespace, pipeline_class: type[DiffusionPipeline], components: Components) -> None:
    """Take the other stage and the pipeline's settings from the folder that the trained stage is to join, as far as
    they are there: they go before those of the pipeline that was loaded."""
    folder, names = _pipeline_folder(args), _part_names(OTHER[args.stage])
    if all((folder / name).is_dir() for name in names):
        components["others"] = {name: _load_part(folder / name) for name in names}
    if (folder / pipeline_class.config_name).is_file():
        saved = pipeline_class.load_config(folder)
        components["low_res_consistency"] = saved.get("low_res_consistency") or False
        components["default_guidance_scale"] = saved.get("default_guidance_scale")


def _set_resolution(args: argparse.Namespace, components: Components) -> None:
    """Make `--resolution` the size of the trained model, and see that the other stage suits it.

    Raises:
        ValueError: if the model cannot draw pictures of that size, or the two stages none together.
    """
    unet = components["unet"]
    earlier = unet.config.sample_size
    size = earlier if args.resolution is None else args.resolution
    if size < 1 or size % unet.size_multiple:
        multiple = unet.size_multiple
        raise ValueError(f"`resolution` must be a positive multiple of {multiple} for this model, got {size}.")
    unet.register_to_config(sample_size=size)  # what the pipeline will draw
    other_size = _other_size(args, components)
    if other_size is None:
        return
    if args.stage == "super_res":
        enlargement(size, other_size)
        if args.low_resolution not in (None, other_size):
            raise ValueError(f"`low_resolution` must be that of the base, {other_size}, got {args.low_resolution}.")
        return
    try:
        times = enlargement(other_size, size)
    except ValueError as error:
        raise ValueError(f"{error} Start from a pipeline without an upsampler, and train one afterwards.") from error
    if size != earlier:
        PartialState().print(
            f"The upsampler beside this base will have to enlarge {times} times: train it next, --stage super_res."
        )


def _other_size(args: argparse.Namespace, components: Components) -> int | None:
    """The size of the pictures of the other stage, if there is one yet."""
    unet = components["others"].get(f"{PREFIXES[OTHER[args.stage]]}unet")
    return None if unet is None else unet.config.sample_size


def train_stage(
    args: argparse.Namespace,
    pipeline_class: type[DiffusionPipeline],
    build_components: Callable[[argparse.Namespace], Components],
    inpainting: bool = False,
    validate: Callable[[Components, int], None] | None = None,
) -> None:
    """Train one stage as the arguments say, from the first step or the last checkpoint to the saved pipeline.

    Args:
        args (`argparse.Namespace`): Of [`add_data_arguments`], [`add_stage_arguments`] and [`add_run_arguments`].
        pipeline_class (`type[DiffusionPipeline]`): What the stage becomes a part of.
        build_components (`Callable`): Makes or loads the stage; called in the main process first.
        inpainting (`bool`): Whether the model sees masked pictures.
        validate (`Callable[[Components, int], None]`, *optional*): Called with the averaged weights and the step
            whenever a checkpoint was saved.
    """
    config, accelerator = training_config(args), make_accelerator(args)
    set_seed(args.seed)
    with accelerator.main_process_first():
        components = build_components(args)
        _join_folder(args, pipeline_class, components)
        if validate is not None and args.stage == "super_res" and not components["others"]:
            raise ValueError("`validation_prompts` needs a base model beside the upsampler.")
        components["unet"].use_fastest_layout()
        _set_resolution(args, components)
        dataset = make_dataset(args, components, inpainting)
    if args.gradient_checkpointing:
        components["unet"].enable_gradient_checkpointing()
        components["text_encoder"].activation_checkpointing_enable()
    components["text_encoder"].requires_grad_(not args.freeze_text_encoder)
    model = TextConditionedUNet(components["text_encoder"], components["unet"])
    set_seed(args.seed, device_specific=True)
    # The same process whatever the stage is sampled with, be it a scheduler of diffusers' own.
    process = GLIDEDDPMScheduler.from_config(components["scheduler"].config)
    done = train(
        accelerator,
        config,
        model,
        dataset,
        text_to_image_loss(process, dataset.weighting),
        process.config.num_train_timesteps,
        on_checkpoint=None if validate is None else lambda step: validate(components, step),
    )

    def save() -> Path:
        _cast(model, DTYPES[args.save_dtype])
        return save_stage(args, pipeline_class, components)

    finish(args, accelerator, done, save)


def save_stage(args: argparse.Namespace, pipeline_class: type[DiffusionPipeline], components: Components) -> Path:
    """Write a trained stage into the pipeline's folder, beside the other stage: that which is there by now, or else the
    one in `others`.

    Returns:
        `Path`: The folder. What stood in it is replaced when all that is new is written.
    """
    _join_folder(args, pipeline_class, components)  # another run may have written the other stage meanwhile
    folder = _pipeline_folder(args)
    parts = pipeline_parts(components, args.stage)
    for name, part in components["others"].items():
        parts[name] = part if name.endswith("scheduler") else _cast(part, DTYPES[args.save_dtype])
    with written_aside(folder) as partial:
        if "unet" in parts:
            pipeline_class(
                **parts,
                prompt_domain="shapes" if args.dataset_name == "shapes" else None,
                low_res_consistency=args.low_res_consistency or components["low_res_consistency"],
                default_guidance_scale=components["default_guidance_scale"],
            ).save_pretrained(partial)
        else:  # An upsampler whose base is still to come.
            for name, part in parts.items():
                part.save_pretrained(partial / name)
    return folder


def _pipeline_folder(args: argparse.Namespace) -> Path:
    return Path(args.pipeline_dir or Path(args.output_dir) / "pipeline")


def _part_names(stage: str) -> list[str]:
    return [PREFIXES[stage] + name for name in STAGE_PARTS]


def _load_part(folder: Path) -> object:
    """A component of the other stage, as an earlier run left it."""
    if folder.name.endswith("scheduler"):
        name = GLIDEDDPMScheduler.load_config(folder)["_class_name"]
        return getattr(diffusers, name).from_pretrained(folder)
    kind = GLIDEUNet2DConditionModel if folder.name.endswith("unet") else GLIDETextEncoder
    return kind.from_pretrained(folder, dtype=torch.float32)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """`model.to(dtype)` without diffusers' warning about models that keep some modules in float32; these keep none."""
    return nn.Module.to(model, dtype)
