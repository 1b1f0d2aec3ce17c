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
    GLIDEImg2ImgPipeline,
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


@pytest.mark.parametrize(("name", "megabytes"), [("text-to-image", 25), ("noised-clip", 3), ("features", 4)])
def test_the_emoji_are_small(name, megabytes):
    folder = pretrained_checkpoint("emoji", name)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < megabytes * 1e6


EMOJI = ["a taxi", "a slice of pizza", "a red heart", "a guitar", "a rocket", "a tiger face"]


@pytest.fixture(scope="module")
def emoji():
    pipe = GLIDEPipeline.from_pretrained(pretrained_checkpoint("emoji"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def emoji_images(emoji):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(EMOJI))]
    return emoji(EMOJI, generator=generators).images


def recognised(images, names):
    """How many images a classifier takes for what their names say, among its first five guesses."""
    network = load_feature_network(str(pretrained_checkpoint("emoji", "features")))
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    best = network(pixels).log_probabilities.topk(5).indices
    return sum(network.class_names.index(name) in five for name, five in zip(names, best.tolist(), strict=True))


def test_the_emoji_need_two_steps_without_guidance_where_the_prompt_decides(emoji):
    for each in (emoji, GLIDEInpaintPipeline.from_pipe(emoji)):
        assert [each.default_steps(stage) for stage in ("base", "super_res")] == [2, 2]
        assert each.default_guidance_scale == 1.0
    assert emoji.default_steps("base", steered=True) == "100"
    assert GLIDEImg2ImgPipeline.from_pipe(emoji).default_steps("base") == "100"


def test_the_emoji_that_are_asked_for_are_recognised(emoji_images):
    """By the classifier that ships beside the model, in two steps of each stage."""
    assert {image.size for image in emoji_images} == {(128, 128)}
    assert recognised(emoji_images, EMOJI) >= len(EMOJI) - 1


def test_one_emoji_becomes_another_under_a_mask(emoji, emoji_images):
    """By the same models, which see the known image and the mask."""
    inpaint = GLIDEInpaintPipeline.from_pipe(emoji)
    assert inpaint.unet.is_inpainter and inpaint.super_res_unet.is_inpainter
    assert inpaint.mode == "fine-tuned"
    mask = Image.new("L", (128, 128))
    mask.paste(255, (0, 0, 128, 64))
    given = [image.copy() for image in emoji_images]
    for image in given:
        image.paste("white", (0, 0, 128, 64))
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(EMOJI))]
    images = inpaint(EMOJI, image=given, mask_image=mask, generator=generators).images
    for image, kept in zip(images, given, strict=True):
        np.testing.assert_array_equal(np.asarray(image)[64:], np.asarray(kept)[64:])
    assert recognised(given, EMOJI) < len(EMOJI) - 1 <= recognised(images, EMOJI)


def test_the_clip_of_the_emoji_picks_captions_and_guides(emoji, emoji_images):
    folder = pretrained_checkpoint("emoji", "noised-clip")
    clip, tokenizer = NoisedCLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokens = tokenize_prompts(tokenizer, EMOJI)
    samples = to_tensor(emoji_images, (32, 32))
    with torch.no_grad():
        logits = clip(tokens.input_ids, samples, torch.zeros(len(EMOJI)), tokens.attention_mask).logits_per_image
    assert (logits.argmax(dim=1) == torch.arange(len(EMOJI))).sum() >= len(EMOJI) - 1
    guided = CLIPGuidedPipeline.from_pipe(emoji, clip_model=clip, clip_tokenizer=tokenizer)
    assert guided.default_steps("base") == "100"
    assert guided(EMOJI[0], clip_guidance_scale=4.0, num_inference_steps=10).images[0].size == (128, 128)


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
