"""Networks that turn images into features and class probabilities, for FID, precision and recall, Inception score."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification


# What loading raises for a model that is missing or of another kind, or whose weights are cut short.
UNUSABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)


class Features(NamedTuple):
    """What a network says of images.

    Args:
        features (`torch.Tensor` of shape `[B, D]`): For the FID, precision and recall.
        log_probabilities (`torch.Tensor` of shape `[B, C]`, *optional*): Of its classes, for the Inception score; None
            if it is no classifier.
    """

    features: torch.Tensor
    log_probabilities: torch.Tensor | None


class _Inception(nn.Module):
    """Inception v3 with the weights and the scaling of the original FID."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from torch_fidelity import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision made for another torch
            raise ImportError(
                "`features` 'inception' needs torch-fidelity, and the torchvision that belongs to this torch: "
                f'the extra `eval` (in a clone: `pip install ".[eval]"`) ({error}).'
            ) from error
        try:
            # Without the bias of the last layer, as in every published Inception score.
            self.model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"]).eval()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"`features` 'inception': its weights cannot be loaded: {error}") from error

    def forward(self, images: torch.Tensor) -> Features:
        features, logits = self.model(images)
        return Features(features, logits.log_softmax(dim=1))


def load_feature_network(name: str) -> nn.Module:
    """A network by name.

    Args:
        name (`str`): `"inception"`, the network of the published figures (its weights are downloaded from GitHub,
            once); else a `transformers` vision model, a folder or a Hub id. Of an image classifier the features are the
            input of its last layer, of a CLIP its image embeddings, of any other model its pooled output, or the mean
            over its last hidden states.

    Returns:
        `nn.Module`: takes uint8 images `[B, 3, H, W]` and returns [`Features`].

    Raises:
        ValueError: if there is no such network.
        ImportError: if a package is missing.
    """
    return _Inception() if name == "inception" else _VisionModel(name)


class _VisionModel(nn.Module):
    """A vision model of `transformers`, with the scaling that it was trained with."""

    def __init__(self, name: str) -> None:
        super().__init__()
        try:
            architectures = AutoConfig.from_pretrained(name).architectures or []
            self.is_classifier = any(item.endswith("ForImageClassification") for item in architectures)
            kind = AutoModelForImageClassification if self.is_classifier else AutoModel
            self.model = kind.from_pretrained(name, dtype=torch.float32).eval()
            # Pillow's scaling, whether torchvision is installed or not.
            self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        except UNUSABLE as error:
            raise ValueError(
                f"`features` must be 'inception' or a vision model of transformers, got {name!r}: {error}"
            ) from error
        self.last_input: torch.Tensor | None = None
        self.class_names = list(self.model.config.id2label.values()) if self.is_classifier else None
        if self.is_classifier:
            heads = [
                module
                for module in self.model.modules()
                if isinstance(module, nn.Linear) and module.out_features == self.model.config.num_labels
            ]
            heads[-1].register_forward_pre_hook(self._keep_input)

    def _keep_input(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.last_input = inputs[0]

    def forward(self, images: torch.Tensor) -> Features:
        pixels = preprocess(self.processor, images)
        if self.is_classifier:
            logits = self.model(pixels).logits
            assert self.last_input is not None  # the hook has just run
            return Features(self.last_input.float().flatten(1), logits.float().log_softmax(dim=1))
        if hasattr(self.model, "get_image_features"):
            return Features(embedding(self.model.get_image_features(pixel_values=pixels)).float(), None)
        output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        features = output.last_hidden_state.mean(dim=1) if pooled is None else pooled
        return Features(features.float().flatten(1), None)


def preprocess(processor: Any, images: torch.Tensor) -> torch.Tensor:
    """uint8 images `[B, 3, H, W]` as a model of transformers takes them, on their device."""
    given = list(images.cpu().numpy())
    return processor(given, input_data_format="channels_first", return_tensors="pt").pixel_values.to(images.device)


def embedding(output: Any) -> torch.Tensor:
    """The embeddings that `get_image_features` or `get_text_features` of a CLIP returned, as a tensor."""
    return output if isinstance(output, torch.Tensor) else output.pooler_output
