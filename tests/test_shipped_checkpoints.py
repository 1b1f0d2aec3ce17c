"""The checkpoints that ship: they open, fit each other, do what they are for, and are small."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from transformers import AutoTokenizer

from glide_pipelines import (
    CLIPGuidedPipeline,
    GLIDEDDIMScheduler,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    NoisedCLIPModel,
    pretrained_checkpoint,
    shapes_checkpoint,
)
from glide_pipelines.evaluation import load_feature_network
from glide_pipelines.images import to_tensor
from glide_pipelines.models import tokenize_prompts
from glide_pipelines.shapes import Object, Scene, judge, render


CAPTIONS = (
    "a red circle on a white background",
    "a large blue square on a gray background",
    "a small yellow star on a black background",
    "a green triangle on a white background",
    "a purple diamond on a gray background",
    "an orange cross on a black background",
    "a pink circle on a gray background",
    "a cyan star on a white background",
)


def seeds():
    return [torch.Generator().manual_seed(seed) for seed in range(len(CAPTIONS))]


@pytest.mark.parametrize(
    ("name", "megabytes"), [("text-to-image", 25), ("inpaint", 25), ("noised-clip", 15), ("features", 1)]
)
def test_they_are_small(name, megabytes):
    size = sum(file.stat().st_size for file in shapes_checkpoint(name).rglob("*") if file.is_file())
    assert size < megabytes * 1e6


@pytest.mark.parametrize(("name", "megabytes"), [("text-to-image", 25), ("features", 4)])
def test_the_emoji_are_small(name, megabytes):
    folder = pretrained_checkpoint("emoji", name)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < megabytes * 1e6


def test_the_emoji_that_are_asked_for_are_recognised():
    """By the classifier that ships beside the model, in ten steps and both stages."""
    names = ["a taxi", "a slice of pizza", "a red heart", "a guitar", "a rocket", "a tiger face"]
    network = load_feature_network(str(pretrained_checkpoint("emoji", "features")))
    pipe = GLIDEPipeline.from_pretrained(pretrained_checkpoint("emoji"))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(names))]
    images = pipe(names, num_inference_steps=10, super_res_num_inference_steps=5, generator=generators).images
    assert {image.size for image in images} == {(128, 128)}
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    best = network(pixels).log_probabilities.topk(5).indices
    found = [network.class_names.index(name) in five for name, five in zip(names, best.tolist(), strict=True)]
    assert sum(found) >= len(names) - 1


def test_the_emoji_name_words_that_they_never_read(caplog):
    pipe = GLIDEPipeline.from_pretrained(pretrained_checkpoint("emoji"), super_res_unet=None)
    pipe.set_progress_bar_config(disable=True)
    pipe("a corgi", num_inference_steps=1)
    assert "never read 'corgi'" in caplog.text


def test_the_base_draws_what_is_asked():
    pipe = GLIDEPipeline.from_pretrained(shapes_checkpoint(), super_res_unet=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pictures = pipe(list(CAPTIONS), num_inference_steps=10, generator=seeds()).images
    right = [judge(picture, caption).correct for picture, caption in zip(pictures, CAPTIONS, strict=True)]
    assert sum(right) >= 7


def test_a_masked_object_is_replaced():
    pipe = GLIDEInpaintPipeline.from_pretrained(shapes_checkpoint("inpaint"), super_res_unet=None)
    pipe.set_progress_bar_config(disable=True)
    kept = Object("square", "blue", "small", 0.7, 0.7)
    picture = render(Scene((Object("circle", "red", "small", 0.28, 0.28), kept), "white"), 32)
    mask = Image.new("L", (32, 32))
    mask.paste(255, (2, 2, 16, 16))
    prompt = "a green star and a blue square on a white background"
    call = {"num_inference_steps": 25, "generator": seeds()[:4], "num_images_per_prompt": 4}
    edited = pipe(prompt, image=picture, mask_image=mask, **call).images
    assert sum(judge(image, prompt).correct for image in edited) >= 3
    hole = np.asarray(mask) > 0
    assert all((np.asarray(image)[~hole] == np.asarray(picture)[~hole]).all() for image in edited)


def test_the_clip_knows_captions_and_guides_to_them():
    folder = shapes_checkpoint("noised-clip")
    clip_model, clip_tokenizer = NoisedCLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenize_prompts(clip_tokenizer, list(CAPTIONS))
    base = GLIDEPipeline.from_pretrained(shapes_checkpoint(), super_res_unet=None)
    pipe = CLIPGuidedPipeline.from_pipe(base, clip_model=clip_model, clip_tokenizer=clip_tokenizer)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = GLIDEDDIMScheduler.from_config(pipe.scheduler.config)

    @torch.no_grad()
    def similarities(scale):
        call = {"num_inference_steps": 10, "generator": seeds(), "clip_guidance_scale": scale}
        x_start = to_tensor(pipe(list(CAPTIONS), **call).images, (32, 32))
        images = clip_model.get_image_features(x_start, torch.zeros(len(CAPTIONS), dtype=torch.long))
        texts = clip_model.get_text_features(tokens.input_ids, tokens.attention_mask)
        return F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T

    unguided, guided = similarities(0.0), similarities(4.0)
    assert (guided.argmax(dim=1) == torch.arange(len(CAPTIONS))).sum() >= 7
    assert guided.diagonal().mean() > unguided.diagonal().mean()


def test_every_one_has_a_card():
    for name in ("text-to-image", "inpaint", "noised-clip"):
        card = Path(shapes_checkpoint(name), "README.md").read_text(encoding="utf-8")
        assert "## What it can do" in card
        assert "## Use\n\n```bash\npip install glide-pipelines\n```\n\n```python" in card
