"""Released checkpoints to diffusers folders, and back."""

from .convert import convert_glide_to_diffusers
from .convert_back import convert_diffusers_to_glide
from .download import RELEASED_FILES, download_checkpoint, find_checkpoint
from .errors import ConversionError
from .model_card import glide_filtered_card, model_card
from .single_file import load_network, load_noised_clip, load_pipeline


__all__ = [
    "RELEASED_FILES",
    "ConversionError",
    "convert_diffusers_to_glide",
    "convert_glide_to_diffusers",
    "download_checkpoint",
    "find_checkpoint",
    "glide_filtered_card",
    "load_network",
    "load_noised_clip",
    "load_pipeline",
    "model_card",
]
