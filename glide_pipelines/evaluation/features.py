"""Networks that turn pictures into features, class probabilities, and similarities to captions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from ..checkpoints import shapes_checkpoint
from ..images import scale_pixels
from ..models import NoisedCLIPConfig, NoisedCLIPModel, tokenize_prompts
from .shapes_features import ShapesFeatures


# What loading raises of a model that is not there, is of another kind, or has weights cut short.
UNUSABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class Features(NamedTuple):
    """What a network says of pictures.

    Args:
        features (`torch.Tensor` of shape `[B, D]`): For the FID, precision and recall.
        log_probabilities (`torch.Tensor` of shape `[B, C]`, *optional*): Of its classes, for the Inception score; None
            if it is no classifier.
    """

    features: torch.Tensor
    log_probabilities: torch.Tensor | None


def load_feature_network(name: str) -> nn.Module:
    """A network by name.

    Args:
        name (`str`): `"shapes"`, the classifier of the shapes world that ships; `"inception"`, the network of the
            published figures (its weights are downloaded from GitHub, once); else a `transformers` vision model, a
            folder or a Hub id. Of an image classifier the features are what its last layer sees, of a CLIP its image
            embeddings, of any other model its pooled output, or the mean over its last hidden states.

    Returns:
        `nn.Module`: takes uint8 pictures `[B, 3, H, W]` and returns [`Features`].

    Raises:
        ValueError: if there is no such network.
        ImportError: if a package is missing.
    """
    if name == "shapes":
        return _Shapes()
    if name == "inception":
        return _Inception()
    return _Transformers(name)


class _Shapes(nn.Module):
    """The shapes world's own classifier; its classes are colour and shape of the leftmost object."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ShapesFeatures.from_pretrained(shapes_checkpoint("features")).eval()

    def forward(self, pictures: torch.Tensor) -> Features:
        features = self.model.features(pictures)
        logits = self.model.attributes(features)
        colours, shapes = (logits[f"{name} 0"].log_softmax(dim=1) for name in ("colour", "shape"))
        return Features(features, (colours[:, :, None] + shapes[:, None, :]).flatten(1))


class _Inception(nn.Module):
    """Inception v3 with the weights and the scaling of the original FID."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
            raise ImportError(
                "`features` 'inception' needs torch-fidelity, and the torchvision that belongs to this torch: "
                f"the extra `eval` (in a clone: `pip install -e '.[eval]'`) ({error})."
            ) from error
        try:
            # Without the bias of the last layer, as in every published Inception score.
            self.model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"]).eval()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"`features` 'inception': its weights cannot be loaded: {error}") from error

    def forward(self, pictures: torch.Tensor) -> Features:
        features, logits = self.model(pictures)
        return Features(features, logits.log_softmax(dim=1))


class _Transformers(nn.Module):
    """A vision model of `transformers`, with the scaling that it was trained with."""

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            architectures = AutoConfig.from_pretrained(name).architectures or []
            is_classifier = any(item.endswith("ForImageClassification") for item in architectures)
            kind = AutoModelForImageClassification if is_classifier else AutoModel
            self.model = kind.from_pretrained(name, dtype=torch.float32).eval()
            # Pillow's scaling, whether torchvision is installed or not.
            self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        except UNUSABLE as error:
            raise ValueError(
                f"`features` must be 'shapes', 'inception' or a vision model of transformers, got {name!r}: {error}"
            ) from error
        self.seen: torch.Tensor | None = None
        if is_classifier:
            heads = [
                module
                for module in self.model.modules()
                if isinstance(module, nn.Linear) and module.out_features == self.model.config.num_labels
            ]
            heads[-1].register_forward_pre_hook(lambda module, inputs: setattr(self, "seen", inputs[0]))
        self.is_classifier = is_classifier

    def forward(self, pictures: torch.Tensor) -> Features:
        pixels = _preprocess(self.processor, pictures).to(pictures.device)
        if self.is_classifier:
            logits = self.model(pixels).logits
            return Features(self.seen.float().flatten(1), logits.float().log_softmax(dim=1))
        if hasattr(self.model, "get_image_features"):
            return Features(_tensor(self.model.get_image_features(pixel_values=pixels)).float(), None)
        output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        features = output.last_hidden_state.mean(dim=1) if pooled is None else pooled
        return Features(features.float().flatten(1), None)


def load_clip(name: str) -> nn.Module:
    """A CLIP by name, for the CLIP score.

    Args:
        name (`str`): As [`load_noised_clip`] takes it, or a folder or a Hub id of a CLIP of `transformers`, such as
            `"openai/clip-vit-base-patch16"`.

    Returns:
        `nn.Module`: takes uint8 pictures `[B, 3, H, W]` and a list of `B` captions (what is longer than the text
        context is cut), and returns `[B]`: 100 times the cosine of the embeddings. That is the paper's
        s(f(x) . g(c)), where s is 100 in OpenAI's CLIPs, and CLIPScore (arXiv 2104.08718) without its clamp at 0.

    Raises:
        ValueError: if there is no such model, or it is no CLIP.
    """
    try:
        is_noised = _find_clip(name)[2].get("model_type") == NoisedCLIPConfig.model_type
        return (_NoisedCLIP if is_noised else _CLIP)(name)
    except UNUSABLE as error:
        raise ValueError(f"`clip` must be a CLIP with its tokenizer, got {name!r}: {error}") from error


def load_noised_clip(name: str) -> tuple[NoisedCLIPModel, PreTrainedTokenizerBase]:
    """A noised CLIP and its tokenizer.

    Args:
        name (`str`): `"shapes"`, the one of the shapes world that ships; or a folder or a Hub id, of both together or
            of a [`CLIPGuidedPipeline`].

    Raises:
        ValueError: if there is none.
    """
    try:
        source, folders, config = _find_clip(name)
        if config.get("model_type") != NoisedCLIPConfig.model_type:
            raise ValueError(f"it is a {config.get('model_type')}")
        model = NoisedCLIPModel.from_pretrained(source, dtype=torch.float32, subfolder=folders[0]).eval()
        return model, AutoTokenizer.from_pretrained(source, subfolder=folders[1])
    except UNUSABLE as error:
        raise ValueError(f"`clip_model` must be a noised CLIP with its tokenizer, got {name!r}: {error}") from error


def _find_clip(name: str) -> tuple[str, tuple[str, str], dict[str, Any]]:
    """Where a CLIP lies, the subfolders of it and its tokenizer, which are none outside a pipeline, and its
    configuration."""
    source = str(shapes_checkpoint("noised-clip")) if name == "shapes" else name
    for folders in (("", ""), ("clip_model", "clip_tokenizer")):
        file = cached_file(source, "config.json", subfolder=folders[0])  # None, if only this file is missing
        if file is not None:
            return source, folders, json.loads(Path(file).read_text(encoding="utf-8"))
    raise OSError("there is no config.json")


class _NoisedCLIP(nn.Module):
    """A noised CLIP, which sees the pictures at timestep 0."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model, self.tokenizer = load_noised_clip(name)

    def forward(self, pictures: torch.Tensor, captions: list[str]) -> torch.Tensor:
        side = self.model.config.vision_config.image_size
        sample = scale_pixels(F.interpolate(pictures.float(), size=(side, side), mode="area"))
        tokens = tokenize_prompts(self.tokenizer, captions).to(pictures.device)
        timesteps = torch.zeros(len(pictures), device=pictures.device)
        images = self.model.get_image_features(sample, timesteps)
        texts = self.model.get_text_features(tokens.input_ids, tokens.attention_mask)
        return 100 * F.cosine_similarity(images.float(), texts.float(), dim=1)


class _CLIP(nn.Module):
    """A CLIP of `transformers`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(name, dtype=torch.float32).eval()
        if not (hasattr(self.model, "get_image_features") and hasattr(self.model, "get_text_features")):
            raise ValueError(f"it is a {type(self.model).__name__}")
        self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        self.tokenizer = AutoTokenizer.from_pretrained(name)

    def forward(self, pictures: torch.Tensor, captions: list[str]) -> torch.Tensor:
        pixels = _preprocess(self.processor, pictures).to(pictures.device)
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(pictures.device)
        images = _tensor(self.model.get_image_features(pixel_values=pixels))
        texts = _tensor(self.model.get_text_features(**tokens))
        return 100 * F.cosine_similarity(images.float(), texts.float(), dim=1)


def _preprocess(processor: Any, pictures: torch.Tensor) -> torch.Tensor:
    return processor(list(pictures.cpu().numpy()), input_data_format="channels_first", return_tensors="pt").pixel_values


def _tensor(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.pooler_output
