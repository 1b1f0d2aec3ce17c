"""`from_single_file`: pipelines and networks from checkpoint files, as in diffusers.

What reads the files is `glide_pipelines.conversion`, which stands above pipelines and networks. So they do not import
it: the package registers its functions here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase


_loaders: dict[str, Callable[..., Any]] = {}


def register_loaders(pipeline: Callable[..., Any], network: Callable[..., Any]) -> None:
    """Set the functions that load a pipeline, and a UNet or a text encoder. `from_single_file` calls them with the
    class, the path and the other arguments."""
    _loaders.update(pipeline=pipeline, network=network)


class GLIDESingleFileMixin:
    """Gives a pipeline [`~GLIDESingleFileMixin.from_single_file`]."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Open a folder or a model on the Hub, as `DiffusionPipeline.from_pretrained` does.

        Raises:
            ValueError: if it is a file, which [`~GLIDESingleFileMixin.from_single_file`] opens.
        """
        if os.path.isfile(pretrained_model_name_or_path):
            raise ValueError(
                "`pretrained_model_name_or_path` must be a folder or a Hub id; a checkpoint file is opened by "
                f"`from_single_file`. Got the file {os.fspath(pretrained_model_name_or_path)!r}."
            )
        pipeline: Any = super()
        return pipeline.from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        super_res: str | Path | None = None,
        tokenizer: str | Path | PreTrainedTokenizerBase = "openai-community/gpt2",
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> Self:
        """Open checkpoint files in the layout of OpenAI's release, or of what was fine-tuned from it.

        Files of `torch.save` and of safetensors are read, as plain state dicts or under keys such as `state_dict`,
        `model` or `ema`, with and without the prefixes of torch's wrappers (`module.`, `_orig_mod.`). The result
        equals that of a conversion to a folder, but nothing is written.

        Args:
            pretrained_model_link_or_path (`str` or `Path`): The base model, or for [`GLIDESuperResolutionPipeline`] the
                upsampler: a file, or the name of one of OpenAI's (`"base"`, `"upsample"`, `"base-inpaint"`,
                `"upsample-inpaint"`), which is downloaded.
            super_res (`str` or `Path`, *optional*): The upsampler, likewise. Without it the pipeline returns the base
                image.
            tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`, defaults to `"openai-community/gpt2"`): A folder with
                `vocab.json` and `merges.txt`, a repository on the Hub, or a tokenizer.
            dtype (`torch.dtype`, defaults to `torch.float32`): The number format of the weights.
            kwargs: Besides components and settings of the pipeline (such as `scheduler`), which replace those of the
                release:

                - **attention_head_dim** (`int`, defaults to 64) -- Channels per attention head of the UNets. The files
                  do not show it, and a wrong number gives wrong images without an error; 64 is right for OpenAI's
                  models and everything that was fine-tuned from them.
                - **text_num_attention_heads** (`int`, *optional*) -- Attention heads of the text encoders, not shown
                  either; by default they are 64 channels wide.
                - **image_size** (`int`, defaults to 64), **super_res_image_size** (`int`, defaults to 256) -- Height
                  and width in pixels of the images of each stage.
                - **clip_text**, **clip_image** (`str` or `Path`) -- For [`CLIPGuidedPipeline`], the towers of the
                  noised CLIP: files, or the names `"clip-text-enc"` and `"clip-image-enc"`.
                - **clip_tokenizer** (`str`, `Path` or `PreTrainedTokenizerBase`, defaults to
                  `"openai/clip-vit-base-patch32"`) -- CLIP's own.
                - **clip_attention_head_dim** (`int`, defaults to 64) -- Channels per attention head of both towers.
                - **allow_non_finite** (`bool`, defaults to `False`) -- Whether weights may be NaN or infinite.

        Returns:
            A pipeline of this class, on the CPU and in evaluation mode.

        Raises:
            ConversionError: a `ValueError` that names the argument, what was given and what is allowed: a file that is
                missing, damaged, holds anything but tensors, or is of a kind that this pipeline does not take. Kinds
                and shapes are checked before any weights are loaded.
        """
        return _loaders["pipeline"](
            cls, pretrained_model_link_or_path, super_res=super_res, tokenizer=tokenizer, dtype=dtype, **kwargs
        )


class SingleFileNetworkMixin:
    """Gives the UNet and the text encoder [`~SingleFileNetworkMixin.from_single_file`]."""

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **kwargs: Any) -> Self:
        """Load this network from a checkpoint file in the layout of OpenAI's release, which holds a UNet with its text
        encoder.

        Args:
            pretrained_model_link_or_path (`str` or `Path`): A file, or a name, as
                [`GLIDESingleFileMixin.from_single_file`] takes it, of any of the four kinds.
            kwargs:
                - **dtype** (`torch.dtype`, defaults to `torch.float32`) -- The number format of the weights.
                - **attention_head_dim**, **text_num_attention_heads**, **allow_non_finite** -- See
                  [`GLIDESingleFileMixin.from_single_file`].
                - **image_size** (`int`, *optional*) -- Height and width of the UNet's images in pixels; by default 64
                  for a base model and 256 for an upsampler.

        Returns:
            The network, on the CPU and in evaluation mode.

        Raises:
            ConversionError: a `ValueError` that names the argument, what was given and what is allowed.
        """
        return _loaders["network"](cls, pretrained_model_link_or_path, **kwargs)
