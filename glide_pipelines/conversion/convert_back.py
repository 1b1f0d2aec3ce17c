"""Folders of diffusers to files in the layout of OpenAI's release."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers.utils import logging

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel, NoisedCLIPModel
from ..sampling import STAGE_PREFIXES, Stage
from .clip import RELEASED_LOGIT_SCALE, clip_to_glide
from .detection import build_stage, stage_kind
from .download import RELEASED_FILES
from .errors import ConversionError, blaming, check_variant, first_line
from .folders import new_folder, writing
from .state_dicts import to_glide


logger = logging.get_logger(__name__)

Network = TypeVar("Network", GLIDEUNet2DConditionModel, GLIDETextEncoder, NoisedCLIPModel)


def convert_diffusers_to_glide(model_path: str | Path, dump_path: str | Path, variant: str | None = None) -> list[Path]:
    """Convert the networks of a pipeline's folder to files that the original code loads.

    Weights are written in float32, as released. A folder that was converted in float32 gives the very same tensors
    back.

    Args:
        model_path (`str` or `Path`): A folder that a GLIDE pipeline was saved to.
        dump_path (`str` or `Path`): The folder to write; it must be empty or not exist.
        variant (`str`, *optional*): The variant to read, such as `"fp16"`.

    Returns:
        `list[Path]`: the files, named as OpenAI's release: `base.pt` and `upsample.pt`, or `base_inpaint.pt` and
        `upsample_inpaint.pt`, and `clip_text_enc.pt` and `clip_image_enc.pt` where there is a noised CLIP.

    Raises:
        ConversionError: naming the argument, what was given and what is allowed; then nothing has been written.
    """
    check_variant(variant)
    names = []
    with new_folder(dump_path, "dump_path") as folder:
        for kind, state_dict in _read_pipeline(Path(model_path).expanduser(), variant):
            names.append(RELEASED_FILES[kind])
            # Opened here, because torch keeps to itself why a file that it opened cannot be written.
            with writing("dump_path", dump_path), open(folder / names[-1], "wb") as file:
                torch.save(state_dict, file)
            del state_dict  # before the next one is read
    return [Path(dump_path).expanduser().resolve() / name for name in names]


def _read_pipeline(model_path: Path, variant: str | None) -> Iterator[tuple[str, OrderedDict[str, torch.Tensor]]]:
    """Kind and GLIDE state dict of each file, one after the other."""
    with blaming("model_path", model_path):
        if not (model_path / "unet" / "config.json").is_file():
            raise ConversionError("a folder that a GLIDE pipeline was saved to is needed; there is no unet in it")
        for name in STAGE_PREFIXES:
            if (model_path / Stage.component_names(name)[1]).is_dir():
                yield _read_stage(model_path, name, variant)
        if (model_path / "clip_model").is_dir():
            yield from _read_clip(model_path / "clip_model", variant).items()


def _read_stage(model_path: Path, name: str, variant: str | None) -> tuple[str, OrderedDict[str, torch.Tensor]]:
    """The kind of one stage, and its GLIDE state dict."""
    text_encoder_name, unet_name, _ = Stage.component_names(name)
    unet = _load(GLIDEUNet2DConditionModel, model_path / unet_name, variant)
    text_encoder = _load(GLIDETextEncoder, model_path / text_encoder_name, variant)
    try:
        state_dict = to_glide(unet, text_encoder)
    except Exception as error:  # what the networks of another model raise is not ours to know
        what = f"{unet_name} and {text_encoder_name}"
        raise ConversionError(f"{what} are not those of GLIDE ({first_line(error)})") from error
    heads = (unet.config.attention_head_dim, text_encoder.config.num_attention_heads)
    return stage_kind(build_stage(state_dict, *heads, unet.config.sample_size)), state_dict


def _read_clip(folder: Path, variant: str | None) -> dict[str, OrderedDict[str, torch.Tensor]]:
    """The two GLIDE state dicts of the noised CLIP, by kind."""
    clip = _load(NoisedCLIPModel, folder, variant)
    if not math.isclose(clip.logit_scale.item(), RELEASED_LOGIT_SCALE, abs_tol=1e-2):
        logger.warning(
            f"This CLIP multiplies cosines by {clip.logit_scale.exp().item():.4g}, which the files do not hold: "
            "OpenAI's code takes 100, and needs its guidance scale changed by as much."
        )
    return clip_to_glide(clip)


def _load(network: type[Network], folder: Path, variant: str | None) -> Network:
    """A network in float32. Loading checks that its weights are whole and finite."""
    try:
        loaded: Any = network.from_pretrained(folder, variant=variant, dtype=torch.float32, use_safetensors=True)
    except Exception as error:  # what a missing or broken file, or one of another model raises is not ours to know
        raise ConversionError(f"{folder.name} is not GLIDE's ({first_line(error)})") from error
    return loaded
