"""Losses, data and the loop that the training scripts share."""

from .data import DatasetSource, LowResolution, ShapesSource, TextToImageDataset
from .inpainting import widen_for_inpainting
from .learning_rate import LearningRate
from .losses import HybridLoss, hybrid_loss
from .masks import draw_mask
from .text_to_image import TextConditionedUNet, text_to_image_loss
from .timesteps import TimestepWeighting
from .trainer import TrainingConfig, train


__all__ = [
    "DatasetSource",
    "HybridLoss",
    "LearningRate",
    "LowResolution",
    "ShapesSource",
    "TextConditionedUNet",
    "TextToImageDataset",
    "TimestepWeighting",
    "TrainingConfig",
    "draw_mask",
    "hybrid_loss",
    "text_to_image_loss",
    "train",
    "widen_for_inpainting",
]
