"""From the values of options to a pipeline that is ready to run. Mistakes are reported as [`UserError`]."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers.utils.logging
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from PIL import Image, UnidentifiedImageError

from glide_pipelines import GLIDEPipeline, emoji, pretrained_checkpoint, shapes
from glide_pipelines.schedulers import space_timesteps

from .errors import UserError
from .options import FAST, SCHEDULERS, did_you_mean


logger = logging.getLogger("glide_pipelines")

UPSAMPLER = ("super_res_unet", "super_res_text_encoder", "super_res_scheduler")

# What the models that ship say of a prompt that they do not know. The shapes come first: they know exactly what they
# know, and the emoji take any prompt of words that they have read.
WORLDS = {"shapes": shapes.prompt_warning, "emoji": emoji.prompt_warning}

# By the checkpoint of a world: a folder with one of these files holds such a model. The others are pipelines.
MODEL_FILES = {"features": ("config.json",), "noised-clip": ("config.json", "clip_model/config.json")}


def model_values(args: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_model_options` and the schedulers of `add_sampling_options` say, as [`open_pipeline`]
    takes it."""
    names = ("model", "device", "dtype", "cuda_graphs", "scheduler", "super_res_scheduler")
    return {name: getattr(args, name) for name in names}


def sampling_values(args: argparse.Namespace) -> dict[str, Any]:
    """What the options say of how images are generated, as `sampling_settings` of the evaluation takes it."""
    names = ("seed", "batch_size", "dtype", "steps", "super_res_steps")
    return {"model": args.model or "shapes_checkpoint()", **{name: getattr(args, name) for name in names}}


def step_values(steps: int | str | None = None, super_res_steps: int | str | None = None) -> dict[str, Any]:
    """Steps of both stages as a pipeline takes them: a number, which every scheduler knows, or a spacing."""
    values: dict[str, Any] = {}
    for prefix, given in (("", steps), ("super_res_", super_res_steps)):
        if given is not None:
            values[prefix + ("timesteps" if isinstance(given, str) else "num_inference_steps")] = given
    return values


def open_pipeline(
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    cuda_graphs: bool = True,
    scheduler: str | None = None,
    super_res_scheduler: str | None = None,
    checkpoint: str = "text-to-image",
    pipeline_class: type[DiffusionPipeline] = GLIDEPipeline,
    upsample: bool = True,
    option: str = "--model",
) -> DiffusionPipeline:
    """Load a pipeline of GLIDE, without progress bars.

    Args:
        model (`str`, *optional*): As [`find_model`] takes it.
        device (`str`, *optional*): As [`find_device`] takes it.
        dtype (`str`, *optional*): As [`find_dtype`] takes it.
        cuda_graphs (`bool`, defaults to `True`): On CUDA, run the UNets in CUDA graphs.
        scheduler, super_res_scheduler (`str`, *optional*): Names of `SCHEDULERS`; by default the model's own.
        checkpoint (`str`, defaults to `"text-to-image"`): Which of the checkpoints that ship is the default.
        pipeline_class (`type`, defaults to [`GLIDEPipeline`]): What to load it as.
        upsample (`bool`, defaults to `True`): Without it the upsampler is left out.
        option (`str`, defaults to `"--model"`): Named in errors about the model.

    Raises:
        UserError: if there is no such model or device.
    """
    where = find_device(device)
    dtype = find_dtype(dtype, where)
    if is_slow(dtype, where):
        logger.warning(f"{dtype} is slow on a processor without instructions for it, and this one seems to have none.")
    model = find_model(model, checkpoint, option)
    left_out = dict.fromkeys(() if upsample else UPSAMPLER)
    try:
        pipe = pipeline_class.from_pretrained(model, dtype=getattr(torch, dtype), **left_out)
    except Exception as error:  # what a damaged model makes the libraries raise depends on the damage
        raise UserError(f"{option} {model}: {error}") from error
    set_schedulers(pipe, {"scheduler": scheduler, "super_res_scheduler": super_res_scheduler})
    pipe.set_progress_bar_config(disable=True)
    pipe.to(where)
    if cuda_graphs and where.type == "cuda":
        pipe.enable_cuda_graphs()
    return pipe


def set_schedulers(pipe: DiffusionPipeline, given: Mapping[str, Any]) -> None:
    """Give a pipeline the schedulers that options name, each with the noise schedule of the one before it."""
    for component in ("scheduler", "super_res_scheduler"):
        name, current = given.get(component), getattr(pipe, component, None)
        if name is not None and current is not None:
            pipe.register_modules(**{component: other_scheduler(current, name)})


def count_steps(steps: int | str) -> int:
    """How many steps a number or a spacing stands for."""
    return steps if isinstance(steps, int) else len(space_timesteps(steps))


def fast_values(given: Mapping[str, Any], pipe: DiffusionPipeline, clip_guided: bool = False) -> dict[str, Any]:
    """What `--fast` stands for with a pipeline: the options of `FAST` that were not given, of the stages that take more
    steps by themselves. Where a checkpoint recommends few steps, others would be more work and a worse image.

    Args:
        given (`Mapping[str, Any]`): The options by name; nothing comes of those without `fast`.
        pipe (`DiffusionPipeline`): What generates.
        clip_guided (`bool`, defaults to `False`): Whether a CLIP guides its first stage.
    """
    values: dict[str, Any] = {}
    if given.get("fast"):
        for prefix, own in _own_steps(pipe, clip_guided).items():
            names = (f"{prefix}steps", f"{prefix}scheduler")
            if own > FAST[f"{prefix}steps"]:
                values |= {name: FAST[name] for name in names if name in FAST and given.get(name) is None}
    return values


def make_fast(args: argparse.Namespace, pipe: DiffusionPipeline, clip_guided: bool = False) -> None:
    """Complete the options with [`fast_values`], give the pipeline their schedulers, and say which stages stay."""
    values = fast_values(vars(args), pipe, clip_guided)
    vars(args).update(values)
    set_schedulers(pipe, values)
    own = _own_steps(pipe, clip_guided) if args.fast else {}
    names = {"": "base", "super_res_": "upsampler"}
    kept = [
        f"the {names[prefix]} at its own {own[prefix]} steps" for prefix in own if vars(args)[f"{prefix}steps"] is None
    ]
    if kept:
        logger.warning(f"--fast leaves {' and '.join(kept)}.")


def _own_steps(pipe: DiffusionPipeline, clip_guided: bool) -> dict[str, int]:
    """How many steps each stage takes where no option says it, by the prefix of the stage's options."""
    return {
        stage.prefix: count_steps(pipe.default_steps(stage.name, clip_guided and number == 0))
        for number, stage in enumerate(pipe.stages.values())
    }


def find_model(model: str | None, checkpoint: str = "text-to-image", option: str = "--model") -> str:
    """What `from_pretrained` takes for a model.

    Args:
        model (`str`, *optional*): A folder, a model of the Hub, or a world whose models ship; by default `"shapes"`.
        checkpoint (`str`, defaults to `"text-to-image"`): Which model of a world that is.
        option (`str`, defaults to `"--model"`): Named in errors.

    Raises:
        UserError: if there can be no such model.
    """
    folder = shipped(model, checkpoint)
    if model is None or folder is not None:
        return str(folder)
    if os.path.isfile(model):
        raise UserError(f"{option} {model}: a file; give its folder, or what `glide convert` makes of it")
    inside = os.path.join(model, "pipeline")
    if os.path.isdir(inside) and not os.path.isfile(os.path.join(model, "model_index.json")):
        raise UserError(f"{option} {model}: the folder of a training; its pipeline is {inside}")
    # "owner/name" may be on the Hub; anything else is the name of a world, or a folder that is missing.
    if os.path.isdir(model) or (model.count("/") == 1 and not model.startswith((".", "~", "/"))):
        return model
    if model in WORLDS:
        raise UserError(f"{option} {model}: no model for {checkpoint} ships with it")
    ships = f"none of the models that ship ({', '.join(WORLDS)})"
    raise UserError(f"{option} {model}: no such folder, and {ships}{did_you_mean(model, WORLDS)}")


def shipped(name: str | None, checkpoint: str) -> str | None:
    """The folder of a model that ships.

    A folder of the same name in the working directory goes before it only if it holds such a model: it may well be one
    of images.

    Args:
        name (`str`, *optional*): A world, such as `"emoji"`; None is the shapes' own, whatever the folders here.
        checkpoint (`str`): Which of its models.

    Returns:
        `str`, *optional*: None where none ships by that name, or a folder goes before it.
    """
    files = MODEL_FILES.get(checkpoint, ("model_index.json",))
    if name is not None and any(os.path.isfile(os.path.join(name, file)) for file in files):
        return None
    try:
        return str(pretrained_checkpoint(name or "shapes", checkpoint))
    except ValueError:
        return None


def world_of(prompts: Sequence[str]) -> str:
    """Of the worlds whose models ship the first that knows all of these prompts, or else the last."""
    known = (world for world, warning in WORLDS.items() if not any(map(warning, prompts)))
    return next(known, list(WORLDS)[-1])


def other_scheduler(current: SchedulerMixin, name: str) -> SchedulerMixin:
    """The scheduler of this name of `SCHEDULERS`, with the noise schedule of the current scheduler."""
    path, settings = SCHEDULERS[name]
    library, class_name = path.split(".")
    return getattr(importlib.import_module(library), class_name).from_config(current.config, **settings)


def find_device(name: str | None) -> torch.device:
    """The device of this name; without one CUDA where there is one, else MPS where it computes, else the CPU."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() and _computes("mps") else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        # The first sentence says what is wrong, the rest is for those who build torch.
        reason = str(error).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name}: {reason}") from error
    if device.type == "meta":
        raise UserError(f"--device {name}: this device computes shapes only, no values")
    return device


def find_dtype(name: str | None, device: torch.device) -> str:
    """The number format of this name; without one the one in which the device is fast, and the images as good.

    That is bfloat16 on a CUDA device or an x86 processor with instructions for it, float16 on other CUDA devices, and
    float32 elsewhere.
    """
    if name is not None:
        return name
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    capabilities: Mapping[str, Any] = {}
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # newer than the oldest torch that serves
        capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def is_slow(dtype: str, device: torch.device) -> bool:
    """Whether a device takes many times as long in this number format as in float32."""
    return device.type == "cpu" and dtype != "float32" and find_dtype(None, device) == "float32"


def _computes(device: str) -> bool:
    """Whether a device runs what the networks are made of; old systems have MPS, but not for all of it."""
    try:
        image = torch.ones(1, 4, 4, 4, device=device)
        image = F.group_norm(F.conv2d(image, torch.ones(4, 4, 1, 1, device=device)), 2)
        return bool(F.scaled_dot_product_attention(image, image, image).isfinite().all())
    except (RuntimeError, AssertionError, TypeError):
        return False


def read_image(path: Path) -> Image.Image:
    """The image in a file, read to its end."""
    try:
        image = Image.open(path)
        image.load()
    except UnidentifiedImageError as error:
        raise UserError(f"{path} cannot be read as an image: PNG, JPEG and WebP can, HEIC cannot") from error
    except Exception as error:  # decoders raise what they like
        raise UserError(f"{path} cannot be read as an image: {error}") from error
    # A phone's MPO holds one image several times.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        logger.warning(f"{path} has {frames} frames: the first one is taken.")
    return image


def hide_loading_bars() -> None:
    """No progress bars of other libraries while they load and save models."""
    for library in (transformers.utils.logging, diffusers_logging):
        library.disable_progress_bar()


def silence_libraries() -> None:
    """No progress bars besides those of sampling and downloads, and no notes of other libraries."""
    hide_loading_bars()
    for library in (transformers.utils.logging, diffusers_logging):
        library.set_verbosity_error()
    warnings.simplefilter("ignore")
