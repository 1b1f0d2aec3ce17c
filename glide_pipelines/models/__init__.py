"""The networks: what they compute, nothing about sampling."""

from .text_encoder import GLIDETextConfig, GLIDETextEncoder
from .unet import GLIDEUNet2DConditionModel


__all__ = ["GLIDETextConfig", "GLIDETextEncoder", "GLIDEUNet2DConditionModel"]
