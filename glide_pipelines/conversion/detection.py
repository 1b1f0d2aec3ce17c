"""What a GLIDE state dict is: its kind, and networks of the sizes that it shows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..models import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel
from .errors import ConversionError
from .state_dicts import Correspondence, correspondences


# Each kind bears the name under which OpenAI's release of it is downloaded.
_UNET_KINDS = {3: "base", 6: "upsample", 7: "base-inpaint", 10: "upsample-inpaint"}  # by input channels
_RELEASED_HEAD_DIM = 64


@dataclass(frozen=True)
class Networks:
    """A UNet and its text encoder on the meta device (shapes, no values), and how a GLIDE state dict fills them.

    Args:
        kind (`str`): `"base"`, `"upsample"`, `"base-inpaint"` or `"upsample-inpaint"`.
        unet ([`GLIDEUNet2DConditionModel`]): The base model or upsampler.
        text_encoder ([`GLIDETextEncoder`]): Its text encoder.
        table (`list[Correspondence]`): From [`correspondences`].
    """

    kind: str
    unet: GLIDEUNet2DConditionModel
    text_encoder: GLIDETextEncoder
    table: list[Correspondence]


def detect_kind(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """The kind of checkpoint, by the name of OpenAI's release of it; None if it is none of GLIDE's.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): A state dict.

    Returns:
        `str` or None: `"base"`, `"upsample"`, `"base-inpaint"`, `"upsample-inpaint"`, `"clip-text-enc"` or
        `"clip-image-enc"`.
    """
    if "blocks.input.w_voc" in state_dict:
        return "clip-text-enc"
    if "blocks.input.w_t" in state_dict:
        return "clip-image-enc"
    first = state_dict.get("input_blocks.0.0.weight")
    if first is None or first.ndim != 4 or "transformer_proj.weight" not in state_dict:
        return None
    return _UNET_KINDS.get(first.shape[1])


def build_networks(
    state_dict: Mapping[str, torch.Tensor],
    attention_head_dim: int = _RELEASED_HEAD_DIM,
    text_num_attention_heads: int | None = None,
    sample_size: int = 64,
) -> Networks:
    """Build, without values, the networks whose weights a GLIDE state dict holds.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): In the layout of OpenAI's `base.pt`.
        attention_head_dim (`int`, defaults to 64): Channels per head of the UNet. A state dict does not show them,
            and a wrong number goes unnoticed but for wrong pictures; 64 is right for everything derived from the
            released models.
        text_num_attention_heads (`int`, *optional*): Heads of the text encoder, not shown either; by default they
            are 64 wide.
        sample_size (`int`, defaults to 64): Height and width in pixels of the pictures that the UNet makes.

    Returns:
        [`Networks`]

    Raises:
        ConversionError: if the state dict is not that of a GLIDE UNet with its text encoder, or the head widths do
            not divide the channels.
    """
    kind = detect_kind(state_dict)
    if kind not in _UNET_KINDS.values():
        known = f"GLIDE's {kind}" if kind else "the checkpoint of another model"
        raise ConversionError(f"this is {known}, not a GLIDE UNet with its text encoder")
    try:
        unet_config = _unet_config(state_dict, attention_head_dim, sample_size)
        text_config = _text_config(state_dict, text_num_attention_heads)
        with torch.device("meta"):
            unet = GLIDEUNet2DConditionModel(**unet_config)
            text_encoder = GLIDETextEncoder(text_config)
    except ConversionError:
        raise
    except (LookupError, ArithmeticError, ValueError, RuntimeError) as error:
        # A few tensors are named as in GLIDE, but the rest makes no model of any size.
        raise ConversionError(f"this is not a whole GLIDE checkpoint ({' '.join(str(error).split())})") from error
    table = correspondences(unet, text_encoder)
    check_tensors(state_dict, table, {"unet": unet, "text_encoder": text_encoder})
    return Networks(kind, unet, text_encoder, table)


def _unet_config(
    state_dict: Mapping[str, torch.Tensor], attention_head_dim: int, sample_size: int
) -> dict[str, object]:
    # On the way down, a block that halves the resolution has the same tensors as one that does not. On the way up it
    # shows: the last block of every level but the last one carries a second residual block.
    blocks = count(state_dict, "output_blocks.")
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
        num_hidden_layers=count(state_dict, "transformer.resblocks."),
        num_attention_heads=heads,
        max_position_embeddings=state_dict["positional_embedding"].shape[0],
        pad_token_id=None,  # the tokenizer knows
        eos_token_id=None,
    )


def count(state_dict: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many modules there are whose names are `prefix` and a number."""
    return len({key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)})


def check_heads(argument: str, value: int, what: str, width: int) -> None:
    """A number of heads, or their width, must divide the width of what they are the heads of."""
    if value < 1 or width % value:
        raise ConversionError(f"`{argument}` must divide {what}, {width}, got {value}")


def check_tensors(
    state_dict: Mapping[str, torch.Tensor], table: Sequence[Correspondence], components: Mapping[str, nn.Module]
) -> None:
    """Every tensor of the networks is there, in its shape, and nothing else is.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): In GLIDE's layout.
        table (`Sequence[Correspondence]`): All of its tensors.
        components (`Mapping[str, nn.Module]`): The networks, by the names that the table uses.

    Raises:
        ConversionError: naming the first three faults.
    """
    states = {name: component.state_dict() for name, component in components.items()}
    shapes = {row.glide: tuple(row.join(states[row.component]).shape) for row in table}
    faults = (
        [f"{key!r} is missing" for key in shapes if key not in state_dict]
        + [f"{key!r} is unknown" for key in state_dict if key not in shapes]
        + [
            f"{key!r} is {tuple(state_dict[key].shape)} where {shape} is needed"
            for key, shape in shapes.items()
            if key in state_dict and tuple(state_dict[key].shape) != shape
        ]
        + [f"{key!r} holds {tensor.dtype}" for key, tensor in state_dict.items() if not tensor.is_floating_point()]
    )
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ConversionError(f"these are not the tensors of a GLIDE checkpoint: {', '.join(faults[:3])}{more}")
