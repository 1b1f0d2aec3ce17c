"""The files of a pipeline, opened: networks without values, and the values to fill them with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ..models import GLIDETextEncoder, NoisedCLIPModel
from ..sampling import Stage, scale_factor
from ..schedulers import GLIDEDDPMScheduler
from .clip import RELEASED_LOGIT_SCALE, build_clip, clip_correspondences, tower_config
from .detection import STAGE_KINDS, build_stage, check_tensors
from .download import find_checkpoint
from .errors import ConversionError, blaming
from .reading import CheckpointFile, open_checkpoint
from .state_dicts import Correspondence, correspondences
from .tokenizers import load_clip_tokenizer, load_tokenizer


@dataclass(frozen=True)
class StageFile:
    """A stage on the meta device (shapes, no values), and the file that holds its weights.

    Args:
        argument (`str`): The caller's argument that named the file.
        file ([`CheckpointFile`]): The file.
        stage ([`Stage`]): The networks, and the scheduler of OpenAI's notebooks.
    """

    argument: str
    file: CheckpointFile
    stage: Stage

    @property
    def files(self) -> list[CheckpointFile]:
        """The file, in a list."""
        return [self.file]

    @property
    def text_encoder(self) -> GLIDETextEncoder:
        """The text encoder of the stage, which every file holds."""
        assert self.stage.text_encoder is not None
        return self.stage.text_encoder

    def fill(
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
    """The noised CLIP on the meta device (shapes, no values), and the file of each tower.

    Args:
        arguments (`Mapping[str, str]`): By kind, the caller's argument that named the file.
        towers (`Mapping[str, CheckpointFile]`): By kind, the file.
        model ([`NoisedCLIPModel`]): The network.
    """

    arguments: Mapping[str, str]
    towers: Mapping[str, CheckpointFile]
    model: NoisedCLIPModel

    @property
    def files(self) -> list[CheckpointFile]:
        """The files of both towers."""
        return list(self.towers.values())

    def fill(self, dtype: torch.dtype, allow_non_finite: bool = False, copy: bool = False) -> Iterator[tuple[str, Any]]:
        """Fill the network, see [`read_weights`], and yield it with its name in a pipeline."""
        table = clip_correspondences(self.model)
        weights = {"logit_scale": torch.tensor(RELEASED_LOGIT_SCALE, dtype=dtype)}
        for kind, file in self.towers.items():
            with blaming(self.arguments[kind], file.path):
                weights |= read_weights(file.state_dict(), table, kind, dtype, allow_non_finite, copy)
        self.model.load_state_dict(weights, assign=True)
        del weights
        yield "clip_model", self.model


def open_stage(
    argument: str,
    name_or_path: str | Path,
    kinds: tuple[str, ...],
    image_sizes: Mapping[str, int],
    attention_head_dim: int = 64,
    text_num_attention_heads: int | None = None,
) -> StageFile:
    """Find the file of a stage and build the networks that it shows, without reading their values.

    Args:
        argument (`str`): The caller's argument that named the file, for messages.
        name_or_path (`str` or `Path`): A file, or the name of one of OpenAI's.
        kinds (`tuple[str, ...]`): What the file may be, such as `("base", "base-inpaint")`.
        image_sizes (`Mapping[str, int]`): By the stage's name, height and width of its images in pixels.
        attention_head_dim (`int`, defaults to 64), text_num_attention_heads (`int`, *optional*): See [`build_stage`].

    Raises:
        ConversionError: if the file is none of these, or makes no images of that size.
    """
    with blaming(argument, name_or_path):
        file = open_checkpoint(find_checkpoint(name_or_path), kinds)
        name = next(name for name, of_stage in STAGE_KINDS.items() if file.kind in of_stage)
        size = image_sizes[name]
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
    arguments: Mapping[str, str], given: Mapping[str, str | Path | None], attention_head_dim: int = 64
) -> CLIPFiles:
    """Find the files of both towers and build the network that they show, without reading its values.

    Args:
        arguments (`Mapping[str, str]`): By kind (`"clip-text-enc"`, `"clip-image-enc"`), the caller's argument.
        given (`Mapping[str, str | Path | None]`): By kind, a file or the name of one of OpenAI's.
        attention_head_dim (`int`, defaults to 64): Channels per head of both towers, which the files do not show.

    Raises:
        ConversionError: if a file is missing or is not the tower's, or the towers do not go together.
    """
    for kind, argument in arguments.items():
        if given[kind] is None:
            raise ConversionError(f"`{argument}` is missing: the noised CLIP has two towers, each with its file")
    names = {kind: name for kind, name in given.items() if name is not None}
    files, towers = {}, {}
    for kind, argument in arguments.items():
        with blaming(argument, names[kind]):
            files[kind] = open_checkpoint(find_checkpoint(names[kind]), (kind,))
            towers[kind] = tower_config(files[kind].state_dict(), kind, attention_head_dim)
    with blaming(arguments["clip-image-enc"], names["clip-image-enc"]):
        model = build_clip(towers["clip-text-enc"], towers["clip-image-enc"])
    table = clip_correspondences(model)
    for kind, argument in arguments.items():
        with blaming(argument, names[kind]):
            check_tensors(files[kind].state_dict(), [row for row in table if row.component == kind], {kind: model})
    return CLIPFiles(arguments, files, model.eval())


def check_clip(clip: CLIPFiles, image_size: int) -> None:
    """The CLIP must read what the base model makes.

    Raises:
        ConversionError: if it reads images of another size, or knows another number of timesteps.
    """
    vision = clip.model.vision_model.config
    with blaming(clip.arguments["clip-image-enc"], clip.towers["clip-image-enc"].path):
        if vision.image_size != image_size:
            raise ConversionError(
                f"it reads images of {vision.image_size} pixels, the base model makes {image_size} (`image_size`)"
            )
        timesteps = GLIDEDDPMScheduler().config.num_train_timesteps
        if vision.num_train_timesteps != timesteps:
            raise ConversionError(f"it knows {vision.num_train_timesteps} timesteps, the base model has {timesteps}")


def pipeline_components(
    stages: Sequence[StageFile],
    tokenizer: str | Path | PreTrainedTokenizerBase,
    clip: CLIPFiles | None = None,
    clip_tokenizer: str | Path | PreTrainedTokenizerBase = "openai/clip-vit-base-patch32",
) -> dict[str, Any]:
    """The components of a pipeline by their names: those of the stages, the tokenizer, the noised CLIP with its own.

    Args:
        stages (`Sequence[StageFile]`): The stages, whose text encoders share a tokenizer.
        tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`): See [`load_tokenizer`].
        clip ([`CLIPFiles`], *optional*): The noised CLIP.
        clip_tokenizer (`str`, `Path` or `PreTrainedTokenizerBase`): See [`load_clip_tokenizer`].

    Raises:
        ConversionError: if a tokenizer cannot be loaded, or does not fit.
    """
    config = stages[0].text_encoder.config
    with blaming("tokenizer", _name(tokenizer)):
        loaded = load_tokenizer(tokenizer, config.max_position_embeddings, config.vocab_size)
    components: dict[str, Any] = {"tokenizer": loaded}
    for opened in stages:
        opened.text_encoder.config.pad_token_id = loaded.pad_token_id
        opened.text_encoder.config.eos_token_id = loaded.eos_token_id
        components |= opened.stage.components()
    if clip is not None:
        clip_config = clip.model.text_model.config
        with blaming("clip_tokenizer", _name(clip_tokenizer)):
            components["clip_tokenizer"] = load_clip_tokenizer(
                clip_tokenizer, clip_config.max_position_embeddings, clip_config.vocab_size
            )
        components["clip_model"] = clip.model
    return components


def _name(tokenizer: str | Path | PreTrainedTokenizerBase) -> str:
    return str(tokenizer) if isinstance(tokenizer, str | Path) else type(tokenizer).__name__


def read_weights(
    state_dict: Mapping[str, torch.Tensor],
    table: Sequence[Correspondence],
    component: str,
    dtype: torch.dtype,
    allow_non_finite: bool = False,
    copy: bool = False,
) -> dict[str, torch.Tensor]:
    """The state dict of one component, with every value checked.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): In GLIDE's layout.
        table (`Sequence[Correspondence]`): Which tensor is which of the component's.
        component (`str`): The component, as the table names it.
        dtype (`torch.dtype`): The number format that is wanted.
        allow_non_finite (`bool`, defaults to `False`): Whether values may be NaN or infinite.
        copy (`bool`, defaults to `False`): Whether tensors that need no change are copied, in place of sharing memory
            with `state_dict`, and so with the file that is mapped.

    Raises:
        ConversionError: naming the first tensor with a value that is not finite.
    """
    weights: dict[str, torch.Tensor] = {}
    for row in table:
        if row.component != component:
            continue
        original = state_dict[row.glide]
        tensor = original.to(dtype, copy=copy)
        if not allow_non_finite and not tensor.isfinite().all():
            fault = f"overflows in {dtype}" if original.isfinite().all() else "holds NaN or infinity"
            raise ConversionError(f"{row.glide!r} {fault}; `allow_non_finite` takes it as it is")
        weights |= row.split(tensor)
    return weights
