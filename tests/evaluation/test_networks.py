"""The networks that measure: vision models of transformers, CLIPs."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_tokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from glide_pipelines import NoisedCLIPConfig, NoisedCLIPModel
from glide_pipelines.evaluation import load_clip, load_feature_network, load_noised_clip


SIZES = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VIT = ViTConfig(**SIZES, image_size=16, patch_size=8, num_labels=5)


def some_images(count=3, size=24, seed=0):
    return torch.randint(
        0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def save(folder, model, processor=None, tokenizer=None):
    for part in (model, processor, tokenizer):
        if part is not None:
            part.save_pretrained(folder)
    return str(folder)


# -- Inception ----------------------------------------------------------------------------------------------------


class FakeInception(torch.nn.Module):
    """What torch-fidelity's network takes and returns, in place of its 90 megabytes of weights."""

    def __init__(self, name, features_list):
        super().__init__()
        assert features_list == ["2048", "logits_unbiased"]
        self.mean = torch.nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, images):
        assert images.dtype == torch.uint8
        means = images.float().mean(dim=(2, 3))
        return means.repeat(1, 683)[:, :2048], means.repeat(1, 336)


@pytest.fixture
def torch_fidelity(monkeypatch):
    module = ModuleType("torch_fidelity")
    module.FeatureExtractorInceptionV3 = FakeInception
    monkeypatch.setitem(sys.modules, "torch_fidelity", module)
    return module


def test_inception_gives_the_features_and_the_classes_of_the_published_scores(torch_fidelity):
    network = load_feature_network("inception")
    assert not network.model.training and next(network.parameters()).device.type == "cpu"
    features, log_probabilities = network(some_images())
    means = some_images().float().mean(dim=(2, 3))
    assert features.shape == (3, 2048) and torch.equal(features[:, :3], means)
    assert log_probabilities.shape == (3, 1008)
    assert torch.allclose(log_probabilities[:, :3], means.log_softmax(dim=1) - torch.tensor(336.0).log(), atol=1e-4)


def test_what_inception_lacks_is_named(torch_fidelity, monkeypatch):
    def unreachable(*args):
        raise OSError("<urlopen error>")

    torch_fidelity.FeatureExtractorInceptionV3 = unreachable
    with pytest.raises(ValueError, match="`features` 'inception': its weights cannot be loaded: <urlopen error>"):
        load_feature_network("inception")
    del torch_fidelity.FeatureExtractorInceptionV3
    install = r"needs torch-fidelity, and the torchvision .*: the extra `eval` .*\("
    with pytest.raises(ImportError, match=install):
        load_feature_network("inception")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=install):
        load_feature_network("inception")


# -- transformers -------------------------------------------------------------------------------------------------


def test_of_a_classifier_the_features_are_what_its_last_layer_sees(tmp_path):
    torch.manual_seed(0)
    model = ViTForImageClassification(VIT).eval()
    name = save(tmp_path, model, ViTImageProcessor(size={"height": 16, "width": 16}))
    with torch.no_grad():
        features, log_probabilities = load_feature_network(name)(some_images())
        assert features.shape == (3, 8)
        assert torch.allclose(model.classifier(features).log_softmax(dim=1), log_probabilities, atol=1e-5)
        # The scaling is the processor's: nothing is left to do for images of the model's own size.
        pixels = some_images(size=16).float() / 127.5 - 1
        expected = model(pixels).logits.log_softmax(dim=1)
        assert torch.allclose(load_feature_network(name)(some_images(size=16)).log_probabilities, expected, atol=1e-5)


def test_of_any_other_model_they_are_its_pooled_output(tmp_path):
    torch.manual_seed(0)
    model = ViTModel(VIT).eval()
    name = save(tmp_path, model, ViTImageProcessor(size={"height": 16, "width": 16}))
    with torch.no_grad():
        features, log_probabilities = load_feature_network(name)(some_images(size=16))
        expected = model(some_images(size=16).float() / 127.5 - 1).pooler_output
    assert torch.allclose(features, expected, atol=1e-5) and log_probabilities is None


@pytest.fixture
def clip(tmp_path):
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": 258, "max_position_embeddings": 12, "eos_token_id": 257, "pad_token_id": 257}
    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return model, save(tmp_path / "clip", model, processor, tiny_tokenizer()), processor


def scaled(pixels, processor):
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    return (pixels / 255 - mean) / std


def test_of_a_clip_they_are_its_image_embeddings(clip):
    model, name, processor = clip
    with torch.no_grad():
        features, log_probabilities = load_feature_network(name)(some_images(size=16))
        expected = model.get_image_features(scaled(some_images(size=16), processor)).pooler_output
    assert torch.allclose(features, expected, atol=1e-5) and log_probabilities is None


def test_clip_score_is_a_hundred_cosines(clip):
    model, name, processor = clip
    captions = ["a red circle", "a star", "a very very long caption"]
    tokens = tiny_tokenizer()(captions, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        output = model(pixel_values=scaled(some_images(size=16), processor), **tokens)
        found = load_clip(name)(some_images(size=16), captions)
    expected = output.logits_per_image.diagonal() / model.logit_scale.exp() * 100
    assert torch.allclose(found, expected, atol=1e-3)
    assert found.std() > 0.1


def test_a_noised_clip_sees_clean_images(tmp_path):
    torch.manual_seed(0)
    text = {**SIZES, "vocab_size": 258, "max_position_embeddings": 12}
    vision = {**SIZES, "image_size": 8, "patch_size": 4}
    model = NoisedCLIPModel(NoisedCLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).eval()
    name = save(tmp_path / "model", model, tokenizer=tiny_tokenizer())
    captions = ["a red circle", "a star", "a circle"]
    tokens = tiny_tokenizer()(captions, padding="max_length", return_tensors="pt")
    small = some_images(size=24).float().unflatten(2, (8, 3)).unflatten(4, (8, 3)).mean(dim=(3, 5))
    with torch.no_grad():
        images = model.get_image_features(small / 127.5 - 1, torch.zeros(3))
        texts = model.get_text_features(tokens.input_ids, tokens.attention_mask)
        found = load_clip(name)(some_images(size=24), captions)
    assert torch.allclose(found, 100 * F.cosine_similarity(images, texts), atol=1e-3)
    # Also from a pipeline's folder, where model and tokenizer stand apart.
    model.save_pretrained(tmp_path / "pipe/clip_model")
    tiny_tokenizer().save_pretrained(tmp_path / "pipe/clip_tokenizer")
    with torch.no_grad():
        assert torch.equal(load_clip(str(tmp_path / "pipe"))(some_images(size=24), captions), found)


def test_networks_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"`features` must be 'inception' or a vision model .* got '.*nothing'"):
        load_feature_network(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"`clip` must be a CLIP with its tokenizer, got '.*nothing'"):
        load_clip(str(tmp_path / "nothing"))
    name = save(tmp_path / "vit", ViTModel(VIT), ViTImageProcessor())
    with pytest.raises(ValueError, match=r"`clip` must be a CLIP with its tokenizer, got .*: it is a ViTModel"):
        load_clip(name)


def test_weights_that_were_cut_short_are_named(clip, tmp_path):
    noised = NoisedCLIPModel(NoisedCLIPConfig(text_config=SIZES, vision_config=SIZES, projection_dim=6))
    names = {
        "clip": clip[1],
        "noised": save(tmp_path / "noised", noised, tokenizer=tiny_tokenizer()),
        "vit": save(tmp_path / "vit", ViTModel(VIT), ViTImageProcessor()),
    }
    for name in names.values():
        weights = Path(name, "model.safetensors")
        weights.write_bytes(weights.read_bytes()[:-100])
    for load, argument, kind in (
        (load_feature_network, "features", "vit"),
        (load_clip, "clip", "clip"),
        (load_clip, "clip", "noised"),
        (load_noised_clip, "clip_model", "noised"),
    ):
        with pytest.raises(ValueError, match=f"`{argument}` must be .* got '{names[kind]}': .*incomplete metadata"):
            load(names[kind])
