"""Training of every part of GLIDE: losses, data, and the loop that they share."""

from ..datasets import DatasetExamples
from .contrastive import noised_clip_loss
from .dataset import TextToImageDataset
from .distillation import Distillation
from .inpainting import narrow_for_text_to_image, prepare_for_inpainting, widen_for_inpainting
from .learning_rate import LearningRate
from .lora import LORA_TARGETS, add_lora, save_lora
from .losses import HybridLoss, hybrid_loss
from .low_resolution import LowResolution
from .masks import random_mask
from .new_models import new_noised_clip, new_stage, new_text_encoder, prepare_tokenizer
from .pipeline_parts import PipelineParts
from .prepare import DataReport, prepare_data
from .shards import ShardWriter, TarShards, expand_shards
from .sources import DatasetSource, ShardSource
from .text_to_image import text_to_image_loss, train_stage
from .timesteps import TimestepWeighting
from .trainer import TrainingConfig, train
from .validation import held_out_loss, sampling_pipeline, save_validation_images


__all__ = [
    "LORA_TARGETS",
    "DataReport",
    "DatasetExamples",
    "DatasetSource",
    "Distillation",
    "HybridLoss",
    "LearningRate",
    "LowResolution",
    "PipelineParts",
    "ShardSource",
    "ShardWriter",
    "TarShards",
    "TextToImageDataset",
    "TimestepWeighting",
    "TrainingConfig",
    "add_lora",
    "expand_shards",
    "held_out_loss",
    "hybrid_loss",
    "narrow_for_text_to_image",
    "new_noised_clip",
    "new_stage",
    "new_text_encoder",
    "noised_clip_loss",
    "prepare_data",
    "prepare_for_inpainting",
    "prepare_tokenizer",
    "random_mask",
    "sampling_pipeline",
    "save_lora",
    "save_validation_images",
    "text_to_image_loss",
    "train",
    "train_stage",
    "widen_for_inpainting",
]
