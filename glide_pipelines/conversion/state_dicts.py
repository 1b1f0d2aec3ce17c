"""Which tensor of a GLIDE state dict is which of the diffusers models: one table, read in both directions."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from .errors import ConversionError


_Modules = Mapping[str, str | tuple[str, ...]]

# GLIDE module -> diffusers module (or modules, where GLIDE fuses projections), in the order of GLIDE's state dict.
_RESIDUAL_BLOCK: _Modules = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION_BLOCK: _Modules = {
    "norm": "group_norm",
    "qkv": ("to_q", "to_k", "to_v"),
    "encoder_kv": ("add_k_proj", "add_v_proj"),
    "proj_out": "to_out.0",
}
_TEXT_BLOCK: _Modules = {
    "attn.c_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn.c_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_2": "layer_norm2",
}
# The projections of the UNet's attention are convolutions over a sequence there: one more axis, of size 1.
_CONV1D = ("qkv", "encoder_kv", "proj_out")

_Rows = Iterable[tuple[str, str, _Modules]]


@dataclass(frozen=True)
class Correspondence:
    """One tensor of a GLIDE state dict, and the tensor or tensors that hold its values in a diffusers model.

    Args:
        glide (`str`): Key in GLIDE's state dict.
        component (`str`): `"unet"` or `"text_encoder"`.
        diffusers (`tuple[str, ...]`): Keys in that component's state dict. Several: GLIDE fuses these projections,
            head by head (the rows of head 0 for each of them, then those of head 1, ...).
        head_dim (`int`): Channels per attention head.
        conv1d (`bool`): Whether GLIDE's tensor has one more axis, of size 1.
    """

    glide: str
    component: str
    diffusers: tuple[str, ...]
    head_dim: int
    conv1d: bool = False

    def split(self, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """The diffusers tensors of a GLIDE tensor of shape `[len(diffusers) * C, ...]`, by key."""
        tensor = tensor[..., 0] if self.conv1d else tensor
        if len(self.diffusers) == 1:
            return {self.diffusers[0]: tensor}
        parts = tensor.unflatten(0, (-1, len(self.diffusers), self.head_dim)).unbind(1)
        return {key: part.flatten(0, 1) for key, part in zip(self.diffusers, parts, strict=True)}

    def join(self, state_dict: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The GLIDE tensor, from the state dict of the component."""
        parts = [state_dict[key] for key in self.diffusers]
        if len(parts) == 1:
            tensor = parts[0]
        else:
            tensor = torch.stack([part.unflatten(0, (-1, self.head_dim)) for part in parts], dim=1).flatten(0, 2)
        return tensor[..., None] if self.conv1d else tensor


def correspondences(unet: GLIDEUNet2DConditionModel, text_encoder: GLIDETextEncoder) -> list[Correspondence]:
    """The whole table for a UNet and its text encoder, in the order of GLIDE's state dict.

    Only their structure counts, so they may be on the meta device.
    """
    keys = {"unet": unet.state_dict().keys(), "text_encoder": text_encoder.state_dict().keys()}
    head_dim = {
        "unet": unet.config.attention_head_dim,
        "text_encoder": text_encoder.config.hidden_size // text_encoder.config.num_attention_heads,
    }
    table = [
        Correspondence("positional_embedding", "text_encoder", ("position_embedding",), 0),
        Correspondence("padding_embedding", "text_encoder", ("padding_embedding",), 0),
    ]
    # Text and UNet alternate in GLIDE's state dict.
    text_rows = _text_rows(text_encoder.config.num_hidden_layers)
    for component, rows in (
        ("unet", _unet_rows(unet)),
        ("text_encoder", text_rows),
        ("unet", [("transformer_proj", "class_embedding", {"": ""})]),
    ):
        for glide_prefix, diffusers_prefix, modules in rows:
            for (glide, diffusers), parameter in itertools.product(modules.items(), ("weight", "bias")):
                diffusers = (diffusers,) if isinstance(diffusers, str) else diffusers
                row = Correspondence(
                    _dotted(glide_prefix, glide, parameter),
                    component,
                    tuple(_dotted(diffusers_prefix, module, parameter) for module in diffusers),
                    head_dim[component],
                    conv1d=glide in _CONV1D and parameter == "weight",
                )
                # Not there in every model: the shortcut of a residual block, the bias of an embedding.
                if keys[component] >= set(row.diffusers):
                    table.append(row)
    return table


def to_glide(unet: GLIDEUNet2DConditionModel, text_encoder: GLIDETextEncoder) -> OrderedDict[str, torch.Tensor]:
    """The GLIDE state dict of a UNet and its text encoder: keys in the original's order, dtypes as they are. Tensors
    that are not fused share memory with the models.

    Raises:
        ValueError: if the models hold anything that GLIDE does not.
    """
    states = {"unet": unet.state_dict(), "text_encoder": text_encoder.state_dict()}
    table = correspondences(unet, text_encoder)
    for component, state in states.items():
        known = {key for row in table if row.component == component for key in row.diffusers}
        if unknown := sorted(state.keys() - known):
            raise ValueError(f"the {component} is not GLIDE's: {len(unknown)} unknown tensors, first {unknown[0]!r}")
    return OrderedDict((row.glide, row.join(states[row.component])) for row in table)


def read_weights(
    state_dict: Mapping[str, torch.Tensor],
    table: Iterable[Correspondence],
    component: str,
    dtype: torch.dtype = torch.float32,
    allow_non_finite: bool = False,
    copy: bool = False,
) -> dict[str, torch.Tensor]:
    """The state dict of one component, with every value checked.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): In GLIDE's layout.
        table (`Iterable[Correspondence]`): From [`correspondences`], or of a noised CLIP.
        component (`str`): The component, as the table names it.
        dtype (`torch.dtype`, defaults to `torch.float32`): The number format that is wanted.
        allow_non_finite (`bool`, defaults to `False`): Whether values may be NaN or infinite.
        copy (`bool`, defaults to `False`): Whether tensors that need no change are copied, in place of sharing memory
            with `state_dict`, and so with the file that is mapped.

    Raises:
        ConversionError: naming the first tensor with a value that is not finite.
    """
    weights: dict[str, torch.Tensor] = {}
    for row in (row for row in table if row.component == component):
        original = state_dict[row.glide]
        tensor = original.to(dtype, copy=copy)
        if not allow_non_finite and not tensor.isfinite().all():
            fault = f"overflows in {dtype}" if original.isfinite().all() else "holds NaN or infinity"
            raise ConversionError(f"{row.glide!r} {fault}; `allow_non_finite` takes it as it is")
        weights |= row.split(tensor)
    return weights


def _unet_rows(unet: GLIDEUNet2DConditionModel) -> _Rows:
    """GLIDE prefix, diffusers prefix and modules, in GLIDE's order.

    GLIDE numbers the blocks of the whole way down (and up) in one list, where diffusers groups them by level.
    """
    levels, layers = len(unet.config.block_out_channels), unet.config.layers_per_block
    attends = ["CrossAttn" in kind for kind in unet.config.down_block_types]

    yield "", "", {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}

    yield "input_blocks.0.0", "conv_in", {"": ""}
    block = itertools.count(1)
    for level in range(levels):
        for layer in range(layers):
            glide, diffusers = f"input_blocks.{next(block)}", f"down_blocks.{level}"
            yield f"{glide}.0", f"{diffusers}.resnets.{layer}", _RESIDUAL_BLOCK
            if attends[level]:
                yield f"{glide}.1", f"{diffusers}.attentions.{layer}", _ATTENTION_BLOCK
        if level < levels - 1:
            yield f"input_blocks.{next(block)}.0", f"down_blocks.{level}.downsamplers.0", _RESIDUAL_BLOCK

    yield "middle_block.0", "mid_block.resnets.0", _RESIDUAL_BLOCK
    yield "middle_block.1", "mid_block.attentions.0", _ATTENTION_BLOCK
    yield "middle_block.2", "mid_block.resnets.1", _RESIDUAL_BLOCK

    block = itertools.count()
    for level in range(levels):
        for layer in range(layers + 1):
            glide, diffusers = f"output_blocks.{next(block)}", f"up_blocks.{level}"
            place = itertools.count()
            yield f"{glide}.{next(place)}", f"{diffusers}.resnets.{layer}", _RESIDUAL_BLOCK
            if attends[levels - 1 - level]:
                yield f"{glide}.{next(place)}", f"{diffusers}.attentions.{layer}", _ATTENTION_BLOCK
            if layer == layers and level < levels - 1:
                yield f"{glide}.{next(place)}", f"{diffusers}.upsamplers.0", _RESIDUAL_BLOCK

    yield "", "", {"out.0": "conv_norm_out", "out.2": "conv_out"}


def _text_rows(layers: int) -> _Rows:
    for layer in range(layers):
        yield f"transformer.resblocks.{layer}", f"encoder.layers.{layer}", _TEXT_BLOCK
    yield "", "", {"final_ln": "final_layer_norm", "token_embedding": "token_embedding"}


def _dotted(*names: str) -> str:
    return ".".join(name for name in names if name)
