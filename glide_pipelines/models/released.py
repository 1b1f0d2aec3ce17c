"""Sizes of the UNets that OpenAI released, for [`~GLIDEUNet2DConditionModel.glide_config`]."""

from __future__ import annotations

from typing import Any


RELEASED_BASE: dict[str, Any] = {
    "block_out_channels": (192, 384, 576, 768),
    "attention_levels": (1, 2, 3),
    "layers_per_block": 3,
}
RELEASED_SUPER_RES: dict[str, Any] = {
    "block_out_channels": (192, 192, 384, 384, 768, 768),
    "attention_levels": (3, 4, 5),
    "layers_per_block": 2,
    "in_channels": 6,
    "sample_size": 256,
}
