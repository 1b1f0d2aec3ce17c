"""The networks: what they compute, nothing about sampling."""

from .noised_clip import NoisedCLIPConfig, NoisedCLIPModel, contrastive_loss
from .text_encoder import GLIDETextConfig, GLIDETextEncoder
from .tokenization import tokenize_prompts, train_tokenizer
from .unet import GLIDEUNet2DConditionModel


__all__ = [
    "GLIDETextConfig",
    "GLIDETextEncoder",
    "GLIDEUNet2DConditionModel",
    "NoisedCLIPConfig",
    "NoisedCLIPModel",
    "contrastive_loss",
    "tokenize_prompts",
    "train_tokenizer",
]
