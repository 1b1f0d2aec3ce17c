"""What `glide draw` does once its options are read: load a pipeline, generate, write files that remember how."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import re
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.utils
import torch
from diffusers import DiffusionPipeline
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image

from glide_pipelines import (
    CLIPGuidance,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)
from glide_pipelines.metadata import MetadataError, read_metadata, save_options

from .draw import complete_from_record
from .errors import UserError
from .loading import (
    find_device,
    find_dtype,
    find_model,
    make_fast,
    model_values,
    open_pipeline,
    read_image,
    shipped,
    silence_libraries,
    step_values,
    world_of,
)
from .options import STDOUT, image_format, is_pattern, output_file
from .output import colour_space, make_grid, save_animation, save_image
from .records import about_images, guidance_scale, make_record


logger = logging.getLogger("glide_pipelines")


@dataclass
class Job:
    """What goes into one file.

    Attributes:
        path: The file.
        prompts: Each has as many images as the others.
        seeds: One per image, so that an image of a grid can be generated again alone.
    """

    path: Path
    prompts: list[str]
    seeds: list[int]

    @property
    def columns(self) -> int:
        """Of the grid: one row per prompt, else as square as can be."""
        one_row_per_prompt = 1 < len(self.prompts) < len(self.seeds)
        return len(self.seeds) // len(self.prompts) if one_row_per_prompt else math.ceil(math.sqrt(len(self.seeds)))


def draw(args: argparse.Namespace) -> None:
    """Load the model, generate, and write the image, the grid of images, or separate files."""
    has_bars = not args.quiet and is_watched()
    _speak_plainly(args.quiet, has_bars)
    remembered = None if args.like is None else _read_record(args.like)
    if remembered is not None:
        complete_from_record(args, remembered)
    args.num_images = args.num_images or 1
    is_chosen = args.model is None
    if is_chosen:
        # A LoRA may have taught the shapes model anything, and a CLIP of one's own is of the shapes as before.
        of_shapes = args.lora or args.clip_model
        args.model = "shapes" if of_shapes else world_of(args.prompt)
    args.dtype = find_dtype(args.dtype, find_device(args.device))
    if not all(prompt.strip() for prompt in args.prompt):
        logger.warning("A prompt is empty: the model chooses what the image shows.")
    if len(args.prompt) > 1 and {"a", "an", "the"} & {prompt.lower() for prompt in args.prompt}:
        logger.warning('Each word is a prompt of its own, with its own image: a prompt of several stands in "quotes".')

    pipe = _load(args)
    if args.guidance_interval is not None and guidance_scale(vars(args), pipe) == 1:
        logger.warning("--guidance-interval changes nothing without guidance, at --guidance-scale 1.")
    clip_guidance = _clip_guidance(args, pipe)
    make_fast(args, pipe, clip_guided=clip_guidance is not None)
    call = {name: value for name, value in _call_values(args, pipe, clip_guidance).items() if value is not None}
    images_given = {"image": call.get("image"), "mask": call.get("mask_image")}
    record = make_record(vars(args), pipe, images_given, clip_guidance and clip_guidance.clip_model)
    if remembered is not None:
        _compare(record, remembered, args.like)

    jobs = _jobs(args)
    pipe.set_progress_bar_config(disable=not has_bars, leave=len(jobs) == 1)
    frames: list[Image.Image] = []
    for job in jobs:
        if args.animate is not None:
            call |= _frame_by_frame(frames, job.columns)
        try:
            images = pipe(
                job.prompts,
                num_images_per_prompt=len(job.seeds) // len(job.prompts),
                generator=[torch.Generator().manual_seed(seed) for seed in job.seeds],
                **call,
            ).images
        except (ValueError, FloatingPointError) as error:
            # The pipeline checks its arguments before any network runs, and all of them came from the user; so did a
            # model or a number format that leads to no image.
            raise UserError(str(error)) from error
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
            less = "generate fewer images at a time, or with --dtype bfloat16, --no-cuda-graphs or --no-upsample"
            raise UserError(f"{reason}: {less}") from error
        grid = make_grid(images, job.columns)
        about = record | about_images(job.prompts, job.seeds, images[0].size)
        metadata = {} if args.no_metadata else _metadata(about, job.path)
        save_image(grid, job.path, **colour_space(call.get("image")), **metadata)
        if args.animate is not None:
            save_animation(frames, args.animate)
        if not args.quiet:
            first, last = job.seeds[0], job.seeds[-1]
            seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
            where = sys.stderr if STDOUT in (job.path, args.animate) else sys.stdout
            by = f" by the {args.model} model" if is_chosen else ""
            print(f"{job.path}: {grid.width} x {grid.height} pixels{by}, {seeds}", file=where)


def _jobs(args: argparse.Namespace) -> list[Job]:
    """The files to write. Separate ones are generated one by one: each can be generated again to the bit, and those
    that are written stay when the rest is stopped."""
    num_images = len(args.prompt) * args.num_images
    first_seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    seeds = [first_seed + index for index in range(num_images)]
    if not is_pattern(args.output):
        return [Job(args.output, args.prompt, seeds)]
    jobs = []
    for index, seed in enumerate(seeds):
        prompt = args.prompt[index // args.num_images]
        name = re.sub(r"\W+", "-", prompt)[:50].strip("-") or "empty"
        path = Path(str(args.output).format(index=index, seed=seed, prompt=name))
        jobs.append(Job(path, [prompt], [seed]))
    if len({job.path for job in jobs}) < len(jobs):
        raise UserError(f"--output {args.output}: several images would have one name; put {{index}} into it")
    try:
        for job in jobs:
            job.path.parent.mkdir(parents=True, exist_ok=True)
            output_file(str(job.path))
    except (OSError, argparse.ArgumentTypeError) as error:
        raise UserError(f"--output {args.output}: {error}") from error
    return jobs


# -- the pipeline and its call ----------------------------------------------------------------------------------------


def _load(args: argparse.Namespace) -> DiffusionPipeline:
    """The pipeline of the task that the options make."""
    task: type[DiffusionPipeline]
    if args.enlarge:
        task = GLIDESuperResolutionPipeline
    elif args.image is None:
        task = GLIDEPipeline
    else:
        task = GLIDEImg2ImgPipeline if args.mask is None else GLIDEInpaintPipeline
    # An upsampler that was saved alone opens only as what enlarges; all else opens as the text-to-image pipeline.
    loaded_as = task if args.enlarge else GLIDEPipeline
    # Where no inpainting model ships beside it, the model itself is taken.
    checkpoint = "text-to-image" if args.mask is None or shipped(args.model, "inpaint") is None else "inpaint"
    pipe = open_pipeline(
        **model_values(args), checkpoint=checkpoint, pipeline_class=loaded_as, upsample=not args.no_upsample
    )
    if args.lora:
        _load_adapters(pipe, args.lora)
    return task.from_pipe(pipe)


def _load_adapters(pipe: DiffusionPipeline, given: list[str]) -> None:
    """Add up LoRAs, each `PATH` or `PATH:SCALE`."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("--lora needs the package peft: pip install peft")
    scales: dict[str, float] = {}
    for text in given:
        path, _, end = text.rpartition(":")
        try:
            scale = float(end)
        except ValueError:
            path, scale = text, 1.0
        name = f"lora{len(scales)}"
        scales[name] = scale
        try:
            if not Path(path).exists():
                if path.count("/") != 1 or path.startswith((".", "~", "/")):  # else it may be on the Hub
                    raise ValueError("no such file or folder")
                path = huggingface_hub.snapshot_download(path, allow_patterns=["*.safetensors", "*.json"])
            elif Path(path, "lora").is_dir() and not any(Path(path).glob("*.safetensors")):
                raise ValueError(f"the folder of a training; its LoRA is {Path(path, 'lora')}")
            pipe.load_lora_weights(path, adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(f"--lora {path}: {error}") from error
    pipe.set_adapters(list(scales), list(scales.values()))


def _clip_guidance(args: argparse.Namespace, pipe: DiffusionPipeline) -> CLIPGuidance | None:
    if args.clip_guidance_scale is None and args.clip_model is None:
        return None
    from glide_pipelines.evaluation.clips import load_noised_clip

    option = "--clip-guidance-scale" if args.clip_model is None else "--clip-model"
    name = args.clip_model or args.model
    if args.clip_model is not None or name is None or not Path(name, "model_index.json").is_file():
        name = find_model(name, "noised-clip", option)
    # Else the CLIP of that pipeline, or none: not one that ships with a model of the same name.
    try:
        clip_model, clip_tokenizer = load_noised_clip(name)
    except ValueError as error:
        raise UserError(f"{option}: {error}") from error
    scale = {} if args.clip_guidance_scale is None else {"scale": args.clip_guidance_scale}
    return CLIPGuidance(clip_model.to(pipe.device), clip_tokenizer, **scale)


def _call_values(
    args: argparse.Namespace, pipe: DiffusionPipeline, clip_guidance: CLIPGuidance | None
) -> dict[str, Any]:
    """What the task's pipeline takes of the options; None where they say nothing."""
    guider = None
    if args.guidance_interval is not None:
        start, stop = args.guidance_interval
        guider = ClassifierFreeGuidance(guidance_scale=guidance_scale(vars(args), pipe), start=start, stop=stop)
    return {
        "image": None if args.image is None else read_image(args.image),
        "mask_image": None if args.mask is None else read_image(args.mask),
        "strength": args.strength,
        "padding_mask_crop": args.padding_mask_crop,
        "num_resample": args.num_resample,
        "width": args.width,
        "height": args.height,
        "guidance_scale": args.guidance_scale,
        "guider": guider,
        "cond_fn": clip_guidance,
        "negative_prompt": args.negative_prompt,
        **step_values(args.steps, args.super_res_steps),
    }


def _frame_by_frame(frames: list[Image.Image], columns: int) -> dict[str, Any]:
    """Arguments of a call that collects the model's estimate of the clean images after each step, as grids."""

    def collect(pipe: DiffusionPipeline, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        estimates = pipe.image_processor.postprocess(tensors["pred_original_sample"], "pil")
        frames.append(make_grid(estimates, columns))
        return {}

    return {"callback_on_step_end": collect, "callback_on_step_end_tensor_inputs": ["pred_original_sample"]}


# -- what an image remembers ------------------------------------------------------------------------------------------


def _metadata(record: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        return save_options(record, image_format(path) or "")
    except MetadataError as error:
        logger.warning(f"{path}: {error}")
        return {}


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return read_metadata(path)
    except Exception as error:  # decoders raise what they like
        raise UserError(f"--like {path}: {error}") from error


def _compare(record: dict[str, Any], remembered: dict[str, Any], path: Path) -> None:
    """Warn where what should be the same is another model or image than what an image was made with."""
    makers = (
        "model",
        "dtype",
        "lora",
        "clip_model",
        "scheduler",
        "super_res_scheduler",
        "no_upsample",
        "mask",
        "image",
    )
    before = remembered.get("fingerprints") or {}
    for name, now in record["fingerprints"].items():
        same = makers if name == "model" else (name,)
        if name in before and before[name] != now and all(record.get(key) == remembered.get(key) for key in same):
            logger.warning(f"{record[name]} is another {name} now than when {path} was generated.")


def is_watched() -> bool:
    """Whether messages appear on a terminal; in a file progress bars would be thousands of lines."""
    return sys.stderr is not None and sys.stderr.isatty()


def _speak_plainly(quiet: bool, has_bars: bool) -> None:
    """This library's warnings as one line each, and nothing of other libraries; bars on a terminal only."""
    silence_libraries()
    if not has_bars:
        huggingface_hub.utils.disable_progress_bars()
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("glide: warning: %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(logging.ERROR if quiet else logging.WARNING)
