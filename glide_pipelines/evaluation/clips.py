"""CLIPs: for the CLIP score, and the noised ones for guidance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import cached_file

from ..images import scale_pixels
from ..models import NoisedCLIPConfig, NoisedCLIPModel, tokenize_prompts
from .features import UNUSABLE, embedding, preprocess


def load_clip(name: str) -> nn.Module:
    """A CLIP for the CLIP score.

    Args:
        name (`str`): As [`load_noised_clip`] takes it, or a folder or a Hub id of a CLIP of `transformers`, such as
            `"openai/clip-vit-base-patch16"`.

    Returns:
        `nn.Module`: takes uint8 images `[B, 3, H, W]` and a list of `B` captions (what is longer than the text context
        is cut), and returns `[B]`: 100 times the cosine of the embeddings. That is the paper's s(f(x) . g(c)), where s
        is 100 in OpenAI's CLIPs, and CLIPScore (arXiv 2104.08718) without its clamp at 0.

    Raises:
        ValueError: if there is no such model, or it is no CLIP.
    """
    try:
        is_noised = _find_clip(name)[1].get("model_type") == NoisedCLIPConfig.model_type
        return (_NoisedCLIPScore if is_noised else _CLIPScore)(name)
    except UNUSABLE as error:
        raise ValueError(f"`clip` must be a CLIP with its tokenizer, got {name!r}: {error}") from error


def load_noised_clip(name: str) -> tuple[NoisedCLIPModel, PreTrainedTokenizerBase]:
    """A noised CLIP and its tokenizer.

    Args:
        name (`str`): A folder or a Hub id, of both together or of a [`CLIPGuidedPipeline`].

    Raises:
        ValueError: if there is none.
    """
    try:
        folders, config = _find_clip(name)
        if config.get("model_type") != NoisedCLIPConfig.model_type:
            raise ValueError(f"it is a {config.get('model_type')}")
        model = NoisedCLIPModel.from_pretrained(name, dtype=torch.float32, subfolder=folders[0]).eval()
        return model, AutoTokenizer.from_pretrained(name, subfolder=folders[1])
    except UNUSABLE as error:
        raise ValueError(f"`clip_model` must be a noised CLIP with its tokenizer, got {name!r}: {error}") from error


def _find_clip(name: str) -> tuple[tuple[str, str], dict[str, Any]]:
    """The subfolders of a CLIP and its tokenizer, which are empty outside a pipeline, and its configuration."""
    for folders in (("", ""), ("clip_model", "clip_tokenizer")):
        file = cached_file(name, "config.json", subfolder=folders[0])  # None, if only this file is missing
        if file is not None:
            return folders, json.loads(Path(file).read_text(encoding="utf-8"))
    raise OSError("there is no config.json")


class _NoisedCLIPScore(nn.Module):
    """The CLIP score by a noised CLIP, which sees the images at timestep 0."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model, self.tokenizer = load_noised_clip(name)

    def forward(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        side = self.model.config.vision_config.image_size
        sample = scale_pixels(F.interpolate(images.float(), size=(side, side), mode="area"))
        tokens = tokenize_prompts(self.tokenizer, captions).to(images.device)
        timesteps = torch.zeros(len(images), device=images.device)
        image_features = self.model.get_image_features(sample, timesteps)
        text_features = self.model.get_text_features(tokens.input_ids, tokens.attention_mask)
        return _score(image_features, text_features)


class _CLIPScore(nn.Module):
    """The CLIP score by a CLIP of `transformers`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise ValueError(f"it is a {type(self.model).__name__}")
        self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        self.tokenizer = AutoTokenizer.from_pretrained(name)

    def forward(self, images: torch.Tensor, captions: list[str]) -> torch.Tensor:
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(images.device)
        image_features = self.model.get_image_features(pixel_values=preprocess(self.processor, images))
        return _score(embedding(image_features), embedding(self.model.get_text_features(**tokens)))


def _score(image_features: torch.Tensor, text_features: torch.Tensor) -> torch.Tensor:
    return 100 * F.cosine_similarity(image_features.float(), text_features.float(), dim=1)
