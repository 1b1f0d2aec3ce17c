"""Pipelines and networks from checkpoint files, without a folder between them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import PreTrainedTokenizerBase

from ..models import GLIDEUNet2DConditionModel, NoisedCLIPModel
from ..pipelines import CLIPGuidedPipeline, GLIDEInpaintPipeline, GLIDESuperResolutionPipeline
from .detection import STAGE_KINDS
from .errors import ConversionError
from .stages import check_sizes, open_clip, open_files, open_stage


Loaded = TypeVar("Loaded")

_TEXT_TO_IMAGE = {"base": ("base",), "super_res": ("upsample",)}
# The kinds of checkpoints that a pipeline takes for each of its stages; those of text to image unless it is here.
_KINDS: dict[type[DiffusionPipeline], Mapping[str, tuple[str, ...]]] = {
    GLIDEInpaintPipeline: STAGE_KINDS,
    CLIPGuidedPipeline: STAGE_KINDS,
    GLIDESuperResolutionPipeline: {"super_res": ("upsample",)},
}


def load_pipeline(
    cls: type[Loaded],
    path: str | Path,
    super_res: str | Path | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase = "openai-community/gpt2",
    clip_text: str | Path | None = None,
    clip_image: str | Path | None = None,
    clip_tokenizer: str | Path | PreTrainedTokenizerBase = "openai/clip-vit-base-patch32",
    dtype: torch.dtype = torch.float32,
    attention_head_dim: int = 64,
    text_num_attention_heads: int | None = None,
    clip_attention_head_dim: int = 64,
    image_size: int = 64,
    super_res_image_size: int = 256,
    allow_non_finite: bool = False,
    **kwargs: Any,
) -> Loaded:
    """A pipeline of class `cls`, see [`GLIDESingleFileMixin.from_single_file`]."""
    parameters = inspect.signature(cls.__init__).parameters
    if unknown := [name for name in kwargs if name not in parameters]:
        raise TypeError(f"`{cls.__name__}.from_single_file` has no argument {unknown[0]!r}.")
    _check_dtype(dtype)
    kinds = next((kinds for pipeline, kinds in _KINDS.items() if issubclass(cls, pipeline)), _TEXT_TO_IMAGE)
    if len(kinds) == 1 and super_res is not None:
        raise ConversionError(f"`super_res` is not for {cls.__name__}, whose upsampler is the first file")
    needs_clip = "clip_model" in parameters and "clip_model" not in kwargs
    if not needs_clip and (clip_text or clip_image):
        raise ConversionError(f"`clip_text` and `clip_image` are not for {cls.__name__} or beside `clip_model`")
    files = open_files(
        {"pretrained_model_link_or_path": path, "super_res": super_res},
        kinds,
        {"base": image_size, "super_res": super_res_image_size},
        attention_head_dim,
        text_num_attention_heads,
        _towers(clip_text, clip_image) if needs_clip else None,
        clip_attention_head_dim,
    )
    if "scale_factor" in parameters:
        kwargs = {"scale_factor": check_sizes(super_res_image_size, image_size)} | kwargs
    pipe = cls(**files.components(tokenizer, clip_tokenizer) | kwargs)
    for _, network in files.load_weights("Loading", dtype, allow_non_finite, copy=True):
        if isinstance(network, GLIDEUNet2DConditionModel):
            network.use_fastest_layout()
    return pipe


def load_network(
    cls: type[Loaded],
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    attention_head_dim: int = 64,
    text_num_attention_heads: int | None = None,
    image_size: int | None = None,
    allow_non_finite: bool = False,
) -> Loaded:
    """A network of class `cls`, see [`SingleFileNetworkMixin.from_single_file`]."""
    _check_dtype(dtype)
    sizes = {"base": 64, "super_res": 256} if image_size is None else dict.fromkeys(STAGE_KINDS, image_size)
    kinds = tuple(itertools.chain(*STAGE_KINDS.values()))
    opened = open_stage(
        "pretrained_model_link_or_path", path, kinds, sizes, attention_head_dim, text_num_attention_heads
    )
    component = "unet" if issubclass(cls, GLIDEUNet2DConditionModel) else "text_encoder"
    ((_, network),) = opened.load_weights(dtype, allow_non_finite, copy=True, components=(component,))
    if isinstance(network, GLIDEUNet2DConditionModel):
        network.use_fastest_layout()
    return cast(Loaded, network)


def load_noised_clip(
    clip_text: str | Path,
    clip_image: str | Path,
    dtype: torch.dtype = torch.float32,
    attention_head_dim: int = 64,
    allow_non_finite: bool = False,
) -> NoisedCLIPModel:
    """The noised CLIP from the files of its towers.

    Args:
        clip_text, clip_image (`str` or `Path`): Files in the layout of OpenAI's `clip_text_enc.pt` and
            `clip_image_enc.pt`, or the names `"clip-text-enc"` and `"clip-image-enc"`, which are downloaded.
        dtype (`torch.dtype`, defaults to `torch.float32`): The number format of the weights.
        attention_head_dim (`int`, defaults to 64): Channels per attention head of both towers, which the files do not
            show.
        allow_non_finite (`bool`, defaults to `False`): Whether weights may be NaN or infinite.

    Returns:
        [`NoisedCLIPModel`]: on the CPU, in evaluation mode.

    Raises:
        ConversionError: naming the argument, what was given and what is allowed.
    """
    _check_dtype(dtype)
    clip = open_clip(_towers(clip_text, clip_image), attention_head_dim)
    for _ in clip.load_weights(dtype, allow_non_finite, copy=True):
        pass
    return clip.model


def _towers(clip_text: str | Path | None, clip_image: str | Path | None) -> dict[str, tuple[str, str | Path | None]]:
    return {"clip-text-enc": ("clip_text", clip_text), "clip-image-enc": ("clip_image", clip_image)}


def _check_dtype(dtype: torch.dtype) -> None:
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConversionError(f"`dtype` must be a floating-point `torch.dtype`, got {dtype!r}")
