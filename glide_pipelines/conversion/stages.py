"""The files of a pipeline, opened: networks without values, and the values to fill them with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase

from ..models import GLIDETextEncoder, NoisedCLIPModel
from ..sampling import Stage, scale_factor
from ..schedulers import GLIDEDDPMScheduler
from .clip import RELEASED_LOGIT_SCALE, build_clip, clip_correspondences, tower_config
from .detection import build_stage, check_tensors, stage_name
from .download import find_checkpoint
from .errors import ConversionError, blaming
from .reading import CheckpointFile, open_checkpoint
from .state_dicts import correspondences, read_weights
from .tokenizers import load_clip_tokenizer, load_tokenizer


@dataclass(frozen=True)
class StageFile:
    """A stage on the meta device (shapes, no values), the file that holds its weights, and the caller's argument that
    named it."""

    argument: str
    file: CheckpointFile
    stage: Stage

    @property
    def text_encoder(self) -> GLIDETextEncoder:
        """The text encoder of the stage, which every file holds."""
        assert self.stage.text_encoder is not None
        return self.stage.text_encoder

    def load_weights(
        self,
        dtype: torch.dtype,
        allow_non_finite: bool = False,
        copy: bool = False,
        components: Sequence[str] = ("text_encoder", "unet"),
    ) -> Iterator[tuple[str, Any]]:
        """Fill one network after the other, see [`read_weights`], and yield it with its name in a pipeline."""
        table = correspondences(self.stage.unet, self.text_encoder)
        for component in components:
            with blaming(self.argument, self.file.path):
                # Mapped anew for each network: what has been read of a mapped file counts as used memory until it is
                # closed.
                weights = read_weights(self.file.state_dict(), table, component, dtype, allow_non_finite, copy)
            network = getattr(self.stage, component)
            network.load_state_dict(weights, assign=True)
            del weights
            yield f"{self.stage.prefix}{component}", network


@dataclass(frozen=True)
class CLIPFiles:
    """The noised CLIP on the meta device (shapes, no values), and by kind (`"clip-text-enc"`, `"clip-image-enc"`) the
    file of each tower with the caller's argument that named it."""

    towers: Mapping[str, tuple[str, CheckpointFile]]
    model: NoisedCLIPModel

    def load_weights(
        self, dtype: torch.dtype, allow_non_finite: bool = False, copy: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """Fill the network, see [`read_weights`], and yield it with its name in a pipeline."""
        table = clip_correspondences(self.model)
        weights = {"logit_scale": torch.tensor(RELEASED_LOGIT_SCALE, dtype=dtype)}
        for kind, (argument, file) in self.towers.items():
            with blaming(argument, file.path):
                weights |= read_weights(file.state_dict(), table, kind, dtype, allow_non_finite, copy)
        self.model.load_state_dict(weights, assign=True)
        del weights
        yield "clip_model", self.model


@dataclass(frozen=True)
class PipelineFiles:
    """The stages of a pipeline and its noised CLIP, if it has one, with their files."""

    stages: list[StageFile]
    clip: CLIPFiles | None

    @property
    def files(self) -> list[CheckpointFile]:
        """All of them."""
        towers = [] if self.clip is None else [file for _, file in self.clip.towers.values()]
        return [*(stage.file for stage in self.stages), *towers]

    def components(
        self,
        tokenizer: str | Path | PreTrainedTokenizerBase,
        clip_tokenizer: str | Path | PreTrainedTokenizerBase,
    ) -> dict[str, Any]:
        """The components of the pipeline by their names: those of the stages, whose text encoders share a tokenizer,
        and the noised CLIP with its own. For the tokenizers see [`load_tokenizer`] and [`load_clip_tokenizer`].

        Raises:
            ConversionError: if a tokenizer cannot be loaded, or does not fit.
        """
        config = self.stages[0].text_encoder.config
        with blaming("tokenizer", _name(tokenizer)):
            loaded = load_tokenizer(tokenizer, config.max_position_embeddings, config.vocab_size)
        components: dict[str, Any] = {"tokenizer": loaded}
        for opened in self.stages:
            opened.text_encoder.config.pad_token_id = loaded.pad_token_id
            opened.text_encoder.config.eos_token_id = loaded.eos_token_id
            components |= opened.stage.components()
        if self.clip is not None:
            config = self.clip.model.text_model.config
            with blaming("clip_tokenizer", _name(clip_tokenizer)):
                components["clip_tokenizer"] = load_clip_tokenizer(
                    clip_tokenizer, config.max_position_embeddings, config.vocab_size
                )
            components["clip_model"] = self.clip.model
        return components

    def load_weights(
        self, title: str, dtype: torch.dtype, allow_non_finite: bool, copy: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """Fill one network after the other, under a progress bar of that title, and yield it with its name."""
        opened: list[StageFile | CLIPFiles] = [*self.stages, *([] if self.clip is None else [self.clip])]
        with logging.tqdm(total=2 * len(self.stages) + (self.clip is not None), desc=title, unit="network") as bar:
            for name, network in itertools.chain(
                *(each.load_weights(dtype, allow_non_finite, copy) for each in opened)
            ):
                yield name, network
                bar.set_postfix_str(name)
                bar.update()


def open_files(
    given: Mapping[str, str | Path | None],
    kinds: Mapping[str, tuple[str, ...]],
    image_sizes: Mapping[str, int],
    attention_head_dim: int = 64,
    text_num_attention_heads: int | None = None,
    clip: Mapping[str, tuple[str, str | Path | None]] | None = None,
    clip_attention_head_dim: int = 64,
) -> PipelineFiles:
    """Find the files of a pipeline and build the networks that they show, without reading their values.

    Args:
        given (`Mapping[str, str | Path | None]`): By the caller's argument, the file of each stage or the name of one
            of OpenAI's; None for a stage that the pipeline goes without.
        kinds (`Mapping[str, tuple[str, ...]]`): By stage, in the same order, what its file may be.
        image_sizes (`Mapping[str, int]`): By stage, height and width of its images in pixels.
        attention_head_dim (`int`, defaults to 64), text_num_attention_heads (`int`, *optional*): See [`build_stage`].
        clip (`Mapping[str, tuple]`, *optional*): The towers of the noised CLIP, as [`open_clip`] takes them.
        clip_attention_head_dim (`int`, defaults to 64): Channels per head of both towers.

    Raises:
        ConversionError: if a file is not what it is given as, or they do not belong together.
    """
    stages = [
        open_stage(argument, file, kinds[name], image_sizes, attention_head_dim, text_num_attention_heads)
        for (argument, file), name in zip(given.items(), kinds, strict=False)
        if file is not None
    ]
    if len(stages) == 2:
        check_pair(*stages)
    opened = None if clip is None else open_clip(clip, clip_attention_head_dim, image_sizes["base"])
    return PipelineFiles(stages, opened)


def open_stage(
    argument: str,
    name_or_path: str | Path,
    kinds: tuple[str, ...],
    image_sizes: Mapping[str, int],
    attention_head_dim: int = 64,
    text_num_attention_heads: int | None = None,
) -> StageFile:
    """Find the file of a stage and build the networks that it shows, see [`open_files`].

    Raises:
        ConversionError: if the file is none of these, or makes no images of that size.
    """
    with blaming(argument, name_or_path):
        file = open_checkpoint(find_checkpoint(name_or_path), kinds)
        size = image_sizes[stage_name(file.kind)]
        stage = build_stage(file.state_dict(), attention_head_dim, text_num_attention_heads, size)
        multiple = stage.unet.size_multiple
        if not isinstance(size, int) or size < 1 or size % multiple:
            raise ConversionError(
                f"`{stage.prefix}image_size` must be a positive multiple of {multiple} for this file, got {size}"
            )
    return StageFile(argument, file, stage)


def check_pair(base: StageFile, upsampler: StageFile) -> None:
    """The two stages must belong together.

    Raises:
        ConversionError: if their text encoders cannot share a tokenizer, or the sizes of their images do not fit.
    """
    with blaming(upsampler.argument, upsampler.file.path):
        for what, of in (("tokens", "vocab_size"), ("positions", "max_position_embeddings")):
            here, there = (getattr(each.text_encoder.config, of) for each in (upsampler, base))
            if here != there:
                raise ConversionError(
                    f"its text encoder has {here} {what}, that of `{base.argument}` {there}; they share a tokenizer"
                )
        check_sizes(upsampler.stage.sample_size[0], base.stage.sample_size[0])


def check_sizes(super_res_image_size: int, image_size: int) -> int:
    """How many times larger the upsampler's images are than the base's.

    Raises:
        ConversionError: if that is no whole number.
    """
    try:
        return scale_factor(super_res_image_size, image_size)
    except (ValueError, ZeroDivisionError) as error:
        raise ConversionError(f"`super_res_image_size` and `image_size` do not go together: {error}") from error


def open_clip(
    given: Mapping[str, tuple[str, str | Path | None]], attention_head_dim: int = 64, image_size: int | None = None
) -> CLIPFiles:
    """Find the files of both towers and build the network that they show, without reading its values.

    Args:
        given (`Mapping[str, tuple[str, str | Path | None]]`): By kind (`"clip-text-enc"`, `"clip-image-enc"`), the
            caller's argument, and the file or the name of one of OpenAI's.
        attention_head_dim (`int`, defaults to 64): Channels per head of both towers, which the files do not show.
        image_size (`int`, *optional*): Of the base model's images, which the CLIP must read.

    Raises:
        ConversionError: if a file is missing or is not the tower's, or the towers do not go together, or with the base
            model.
    """
    for argument, name in given.values():
        if name is None:
            raise ConversionError(f"`{argument}` is missing: the noised CLIP has two towers, each with its file")
    files, configs = {}, {}
    for kind, (argument, name) in given.items():
        with blaming(argument, str(name)):
            file = open_checkpoint(find_checkpoint(str(name)), (kind,))
            configs[kind] = tower_config(file.state_dict(), kind, attention_head_dim)
        files[kind] = argument, file
    with blaming(*map(str, given["clip-image-enc"])):
        model = build_clip(configs["clip-text-enc"], configs["clip-image-enc"])
    table = clip_correspondences(model)
    for kind, (argument, file) in files.items():
        with blaming(argument, str(given[kind][1])):
            check_tensors(file.state_dict(), [row for row in table if row.component == kind], {kind: model})
    if image_size is not None:
        argument, file = files["clip-image-enc"]
        with blaming(argument, file.path):
            _check_clip(model, image_size)
    return CLIPFiles(files, model.eval())


def _check_clip(clip: NoisedCLIPModel, image_size: int) -> None:
    """The CLIP must read what the base model makes."""
    vision = clip.vision_model.config
    if vision.image_size != image_size:
        raise ConversionError(
            f"it reads images of {vision.image_size} pixels, the base model makes {image_size} (`image_size`)"
        )
    timesteps = GLIDEDDPMScheduler().config.num_train_timesteps
    if vision.num_train_timesteps != timesteps:
        raise ConversionError(f"it knows {vision.num_train_timesteps} timesteps, the base model has {timesteps}")


def _name(tokenizer: str | Path | PreTrainedTokenizerBase) -> str:
    return str(tokenizer) if isinstance(tokenizer, str | Path) else type(tokenizer).__name__
