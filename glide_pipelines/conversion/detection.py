"""What a GLIDE state dict is: its kind, and a stage of the sizes that it shows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..models import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..sampling import Stage
from ..sampling.released import released_scheduler
from .errors import ConversionError
from .state_dicts import Correspondence, correspondences


# Each kind bears the name under which OpenAI's release of it is downloaded.
_UNET_KINDS = {3: "base", 6: "upsample", 7: "base-inpaint", 10: "upsample-inpaint"}  # by input channels
# Of each stage.
STAGE_KINDS = {"base": ("base", "base-inpaint"), "super_res": ("upsample", "upsample-inpaint")}
KINDS = (*_UNET_KINDS.values(), "clip-text-enc", "clip-image-enc")
_RELEASED_HEAD_DIM = 64
_FEWEST_TENSORS = 6  # of a residual block or a transformer block, whole ones have more

# Beginnings of tensors' names that tell which other model a state dict is of.
_OTHER_MODELS = {
    "down_blocks.": "a UNet in diffusers' layout, whose folder `from_pretrained` opens",
    "encoder.layers.": "a text encoder in transformers' layout, whose folder `from_pretrained` opens",
    "text_model.": "a CLIP in transformers' layout, whose folder `from_pretrained` opens",
    "model.diffusion_model.": "a checkpoint of Stable Diffusion",
    "visual.": "a CLIP for clean images",
}


def detect_kind(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """The kind of checkpoint, one of `KINDS`; None if it is none of GLIDE's."""
    if "blocks.input.w_voc" in state_dict:
        return "clip-text-enc"
    if "blocks.input.w_t" in state_dict:
        return "clip-image-enc"
    first = state_dict.get("input_blocks.0.0.weight")
    if first is None or first.ndim != 4 or "transformer_proj.weight" not in state_dict:
        return None
    return _UNET_KINDS.get(first.shape[1])


def describe(state_dict: Mapping[str, torch.Tensor]) -> str:
    """In words, what a state dict is that is none of GLIDE's."""
    if any("lora_" in key for key in state_dict):
        return "a LoRA, which `load_lora_weights` of a pipeline adds to a model"
    for beginning, model in _OTHER_MODELS.items():
        if any(key.startswith(beginning) for key in state_dict):
            return model
    first = state_dict.get("input_blocks.0.0.weight")
    if first is None or first.ndim != 4:
        return f"the checkpoint of another model (its first tensor is {next(iter(state_dict))!r})"
    if "transformer_proj.weight" not in state_dict:
        return "a UNet of guided diffusion without GLIDE's text encoder"
    *some, last = map(str, _UNET_KINDS)
    return f"a UNet of {first.shape[1]} input channels, which are {', '.join(some)} or {last} in GLIDE's"


def build_stage(
    state_dict: Mapping[str, torch.Tensor],
    attention_head_dim: int = _RELEASED_HEAD_DIM,
    text_num_attention_heads: int | None = None,
    sample_size: int = 64,
) -> Stage:
    """The stage whose weights a GLIDE state dict holds: networks on the meta device (shapes, no values), and the
    scheduler that OpenAI's notebooks sample it with.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): In the layout of OpenAI's `base.pt`.
        attention_head_dim (`int`, defaults to 64): Channels per head of the UNet. A state dict does not show them,
            and a wrong number goes unnoticed but for wrong images; 64 is right for everything derived from the
            released models.
        text_num_attention_heads (`int`, *optional*): Heads of the text encoder, not shown either; by default they
            are 64 wide.
        sample_size (`int`, defaults to 64): Height and width in pixels of the images that the UNet makes.

    Raises:
        ConversionError: if the state dict is not that of a GLIDE UNet with its text encoder, or the head widths do
            not divide the channels.
    """
    kind = detect_kind(state_dict)
    if kind is None or kind not in _UNET_KINDS.values():
        found = describe(state_dict) if kind is None else f"GLIDE's {kind}"
        raise ConversionError(f"this is {found}, where {' or '.join(_UNET_KINDS.values())} is needed")
    try:
        unet_config = _unet_config(state_dict, attention_head_dim, sample_size)
        text_config = _text_config(state_dict, text_num_attention_heads)
        with torch.device("meta"):
            unet = GLIDEUNet2DConditionModel(**unet_config)
            text_encoder = GLIDETextEncoder(text_config)
    except ConversionError:
        raise
    except KeyError as error:
        raise ConversionError(f"this is not a whole GLIDE checkpoint: {error} is missing") from error
    except (LookupError, ArithmeticError, ValueError, RuntimeError) as error:
        # A few tensors are named as in GLIDE, but the rest makes no model of any size.
        raise ConversionError(f"this is not a whole GLIDE checkpoint ({' '.join(str(error).split())})") from error
    check_tensors(state_dict, correspondences(unet, text_encoder), {"unet": unet, "text_encoder": text_encoder})
    return Stage(stage_name(kind), text_encoder.eval(), unet.eval(), released_scheduler(unet))


def stage_name(kind: str) -> str:
    """The stage that a kind of checkpoint holds: `"base"` or `"super_res"`."""
    return next(name for name, kinds in STAGE_KINDS.items() if kind in kinds)


def stage_kind(stage: Stage) -> str:
    """The kind of checkpoint that a stage makes."""
    return _UNET_KINDS[stage.unet.config.in_channels]


def _unet_config(state_dict: Mapping[str, torch.Tensor], attention_head_dim: int, sample_size: int) -> dict[str, Any]:
    # On the way down, a block that halves the resolution has the same tensors as one that does not. On the way up it
    # shows: the last block of every level but the last one carries a second residual block.
    blocks = count_modules(state_dict, "output_blocks.")
    doubling = (
        block
        for block, place in itertools.product(range(blocks), (1, 2))
        if f"output_blocks.{block}.{place}.in_layers.0.weight" in state_dict
    )
    layers_per_block = next(doubling, blocks - 1)
    levels = range(blocks // (layers_per_block + 1))
    firsts = [f"input_blocks.{1 + level * (layers_per_block + 1)}" for level in levels]
    channels = [state_dict[f"{first}.0.out_layers.3.weight"].shape[0] for first in firsts]
    attends = [level for level in levels if f"{firsts[level]}.1.qkv.weight" in state_dict]
    for width in {*(channels[level] for level in attends), channels[-1]}:
        check_heads("attention_head_dim", attention_head_dim, "the channels of the UNet's attention layers", width)
    return GLIDEUNet2DConditionModel.glide_config(
        block_out_channels=tuple(channels),
        attention_levels=tuple(attends),
        layers_per_block=layers_per_block,
        text_hidden_size=state_dict["transformer_proj.weight"].shape[1],
        in_channels=state_dict["input_blocks.0.0.weight"].shape[1],
        sample_size=sample_size,
        attention_head_dim=attention_head_dim,
    )


def _text_config(state_dict: Mapping[str, torch.Tensor], num_attention_heads: int | None) -> GLIDETextConfig:
    vocab_size, width = state_dict["token_embedding.weight"].shape
    if num_attention_heads is None and width % _RELEASED_HEAD_DIM:
        raise ConversionError(
            f"`text_num_attention_heads` must be given: the width of the text encoder, {width}, does not divide into "
            f"the released heads of {_RELEASED_HEAD_DIM} channels"
        )
    heads = width // _RELEASED_HEAD_DIM if num_attention_heads is None else num_attention_heads
    check_heads("text_num_attention_heads", heads, "the width of the text encoder", width)
    return GLIDETextConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=state_dict["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=count_modules(state_dict, "transformer.resblocks."),
        num_attention_heads=heads,
        max_position_embeddings=state_dict["positional_embedding"].shape[0],
        pad_token_id=None,  # the tokenizer knows
        eos_token_id=None,
    )


def count_modules(state_dict: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many modules there are whose names are `prefix` and a number.

    Raises:
        ValueError: if they have fewer tensors than any block of GLIDE's, so that a short file cannot ask for thousands
            of layers.
    """
    keys = [key for key in state_dict if key.startswith(prefix)]
    modules = len({key.removeprefix(prefix).split(".")[0] for key in keys})
    if len(keys) < _FEWEST_TENSORS * modules:
        raise ValueError(f"{len(keys)} tensors for {modules} modules {prefix}*")
    return modules


def check_heads(argument: str, value: int, what: str, width: int) -> None:
    """A number of heads, or their width, must divide the width of what they are the heads of."""
    if value < 1 or width % value:
        raise ConversionError(f"`{argument}` must divide {what}, {width}, got {value}")


def check_tensors(
    state_dict: Mapping[str, torch.Tensor], table: Sequence[Correspondence], components: Mapping[str, nn.Module]
) -> None:
    """A state dict in GLIDE's layout must hold every tensor of a table, in the shape that the components give it, and
    nothing else.

    Raises:
        ConversionError: naming the first three faults.
    """
    states = {name: component.state_dict() for name, component in components.items()}
    needed = {row.glide: tuple(row.join(states[row.component]).shape) for row in table}
    given = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    faults = [
        *(f"{key!r} is missing" for key in needed if key not in given),
        *(f"{key!r} is unknown" for key in given if key not in needed),
        *(
            f"{key!r} is {given[key]} where {shape} is needed"
            for key, shape in needed.items()
            if given.get(key, shape) != shape
        ),
        *(f"{key!r} holds {tensor.dtype}" for key, tensor in state_dict.items() if not tensor.is_floating_point()),
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ConversionError(f"these are not the tensors of a GLIDE checkpoint: {', '.join(faults[:3])}{more}")
