"""The noised CLIP's two files, one per tower: the shapes that they show, and which tensor is which of the model's."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import torch

from ..models import NoisedCLIPConfig, NoisedCLIPModel
from .detection import check_heads, count_modules
from .errors import ConversionError
from .state_dicts import Correspondence


# What OpenAI's code multiplies cosines by; it is in neither file.
RELEASED_LOGIT_SCALE = math.log(100)

# GLIDE module -> transformers module, in the order of GLIDE's state dict.
_BLOCK = {
    "f_attn.ln": "layer_norm1",
    "f_attn.f_q": "self_attn.q_proj",
    "f_attn.f_k": "self_attn.k_proj",
    "f_attn.f_v": "self_attn.v_proj",
    "f_attn.f_c": "self_attn.out_proj",
    "f_mlp.ln": "layer_norm2",
    "f_mlp.f_1": "mlp.fc1",
    "f_mlp.f_2": "mlp.fc2",
}
_PARAMETERS = {"w": "weight", "g": "weight", "b": "bias"}


def tower_config(state_dict: Mapping[str, torch.Tensor], kind: str, attention_head_dim: int = 64) -> dict[str, int]:
    """The arguments of a tower's config, as its file shows them.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): In the layout of OpenAI's `clip_text_enc.pt` or `clip_image_enc.pt`.
        kind (`str`): `"clip-text-enc"` or `"clip-image-enc"`: which of them it is.
        attention_head_dim (`int`, defaults to 64): Channels per attention head. The files do not show it, and a wrong
            number goes unnoticed but for wrong gradients; 64 is right for the released model.

    Raises:
        ConversionError: if it is not whole, or the head width does not divide the tower's.
    """
    try:
        positions, width = state_dict["blocks.input.w_pos"].shape
        config = {
            "hidden_size": width,
            "intermediate_size": state_dict["blocks.block_0.f_mlp.f_1.w"].shape[0],
            "num_hidden_layers": count_modules(state_dict, "blocks.block_"),
            "projection_dim": state_dict["blocks.output.f.w"].shape[0],
        }
        if kind == "clip-text-enc":
            vocab_size, _ = state_dict["blocks.input.w_voc"].shape
            config |= {"vocab_size": vocab_size, "max_position_embeddings": positions}
        else:
            patch_size = state_dict["blocks.input.patch_proj"].shape[-1]
            timesteps, _ = state_dict["blocks.input.w_t"].shape
            # One position is the timestep's, the others form a square.
            image_size = patch_size * math.isqrt(positions - 1)
            config |= {"patch_size": patch_size, "image_size": image_size, "num_train_timesteps": timesteps}
    except (LookupError, ValueError) as error:
        # A few tensors are named as in GLIDE, but the rest makes no model of any size.
        raise ConversionError(f"this is not a whole {kind} ({' '.join(str(error).split())})") from error
    what = f"the width of the {'text' if kind == 'clip-text-enc' else 'image'} tower"
    check_heads("clip_attention_head_dim", attention_head_dim, what, width)
    return config | {"num_attention_heads": width // attention_head_dim}


def build_clip(text_tower: dict[str, int], image_tower: dict[str, int]) -> NoisedCLIPModel:
    """The noised CLIP of two towers (from [`tower_config`]), on the meta device: shapes, no values.

    Raises:
        ConversionError: if the towers project to different widths.
    """
    text, image = text_tower["projection_dim"], image_tower["projection_dim"]
    if text != image:
        raise ConversionError(f"the image tower projects to a width of {image}, the text tower to {text}")
    config = NoisedCLIPConfig(
        text_config=text_tower,
        vision_config=image_tower,
        projection_dim=text,
        logit_scale_init_value=RELEASED_LOGIT_SCALE,
    )
    with torch.device("meta"):
        return NoisedCLIPModel(config)


def clip_correspondences(clip: NoisedCLIPModel) -> list[Correspondence]:
    """The whole table for a noised CLIP, in the order of GLIDE's state dicts; each row's `component` is the kind of its
    file. Only the structure of the model counts, so it may be on the meta device."""
    keys = clip.state_dict().keys()
    rows = (
        Correspondence(f"blocks.{glide}", kind, (transformers,), head_dim=0)
        for kind, tower in (("clip-text-enc", _text_rows(clip)), ("clip-image-enc", _image_rows(clip)))
        for glide, transformers in tower
    )
    # The keys of the attention have no bias.
    return [row for row in rows if row.diffusers[0] in keys]


def clip_to_glide(clip: NoisedCLIPModel) -> dict[str, OrderedDict[str, torch.Tensor]]:
    """The two GLIDE state dicts of a noised CLIP, under `"clip-text-enc"` and `"clip-image-enc"`; `logit_scale` has no
    place in them. Tensors share memory with the model."""
    state_dict, table = clip.state_dict(), clip_correspondences(clip)
    return {
        kind: OrderedDict((row.glide, row.join(state_dict)) for row in table if row.component == kind)
        for kind in ("clip-text-enc", "clip-image-enc")
    }


def _text_rows(clip: NoisedCLIPModel) -> Iterator[tuple[str, str]]:
    yield "input.w_voc", "text_model.token_embedding.weight"
    yield "input.w_pos", "text_model.position_embedding"
    yield from _block_rows("text_model", clip.text_model.config.num_hidden_layers)
    yield from _module_rows("output.ln", "text_model.final_layer_norm", "gb")
    yield "output.f.w", "text_projection.weight"


def _image_rows(clip: NoisedCLIPModel) -> Iterator[tuple[str, str]]:
    yield "input.w_t", "vision_model.time_embedding.weight"
    yield "input.patch_proj", "vision_model.patch_embedding.weight"
    yield "input.w_pos", "vision_model.position_embedding"
    yield from _module_rows("input.ln", "vision_model.pre_layer_norm", "gb")
    yield from _block_rows("vision_model", clip.vision_model.config.num_hidden_layers)
    yield from _module_rows("output.ln", "vision_model.post_layer_norm", "gb")
    yield "output.f.w", "visual_projection.weight"


def _block_rows(tower: str, layers: int) -> Iterator[tuple[str, str]]:
    for layer, (glide, transformers) in itertools.product(range(layers), _BLOCK.items()):
        parameters = "gb" if glide.endswith("ln") else "wb"
        yield from _module_rows(f"block_{layer}.{glide}", f"{tower}.encoder.layers.{layer}.{transformers}", parameters)


def _module_rows(glide: str, transformers: str, parameters: str) -> Iterator[tuple[str, str]]:
    for name in parameters:
        yield f"{glide}.{name}", f"{transformers}.{_PARAMETERS[name]}"
