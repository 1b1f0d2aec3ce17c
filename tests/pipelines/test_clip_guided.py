"""Guidance by a noised CLIP: what it steers, what it goes together with, and what is refused."""

import json

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import (
    CONTEXT,
    WIDTH,
    tiny_call,
    tiny_clip,
    tiny_clip_pipeline,
    tiny_inpaint_pipeline,
    tiny_pipeline,
    tiny_tokenizer,
)

from glide_pipelines import CLIPGuidedPipeline, GLIDEDDIMScheduler, GLIDEInpaintPipeline
from glide_pipelines.sampling import clip_gradient


@pytest.fixture(scope="module")
def pipe():
    return tiny_clip_pipeline(upsampler=False)


def draw(pipe, **changes):
    pipe.set_progress_bar_config(disable=True)
    return pipe(**tiny_call(**changes)).images


def picture_and_mask(size=8):
    values = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), dtype=np.uint8)
    mask[:, size // 2 :] = 255
    return {"image": Image.fromarray(values), "mask_image": Image.fromarray(mask)}


def seen(pipe, monkeypatch, **changes):
    """What CLIP saw in a call: (timestep, vectors) of each gradient."""
    calls = []

    def similarity(sample, timesteps, text_features):
        calls.append((timesteps.tolist(), text_features))
        return type(pipe.clip_model).similarity(pipe.clip_model, sample, timesteps, text_features)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.clip_model, "similarity", similarity, raising=False)
        draw(pipe, **changes)
    return calls


# -- what it steers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["GLIDEDDPMScheduler", "GLIDEDDIMScheduler", "DPMSolverMultistepScheduler"])
def test_a_step_leads_towards_the_caption(scheduler):
    """By the very similarity that steers; a negative scale leads the other way."""
    pipe = tiny_clip_pipeline(upsampler=False)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    target = pipe.encode_clip_prompt("a red circle")

    def fit(scale):
        """How well what the first step leaves fits."""
        fits = []

        def judge(pipe, step, timestep, tensors):
            fits.append(pipe.clip_model.similarity(tensors["latents"], timestep.reshape(1), target).item())
            return tensors

        draw(pipe, clip_guidance_scale=scale, timesteps=[300, 200], callback_on_step_end=judge)
        return fits[0]

    assert fit(-0.1) < fit(0.0) < fit(0.1)


def test_scale_zero_is_the_pipeline_without_clip(pipe, monkeypatch):
    expected = draw(tiny_pipeline(upsampler=False), guidance_scale=1.0)
    np.testing.assert_array_equal(draw(pipe, clip_guidance_scale=0), expected)
    assert seen(pipe, monkeypatch, clip_guidance_scale=0) == []
    assert not np.allclose(draw(pipe), expected, atol=1e-3)


def test_clip_guides_the_base_stage_only(monkeypatch):
    pipe = tiny_clip_pipeline()
    calls = seen(pipe, monkeypatch, num_inference_steps=3)
    assert [timesteps for timesteps, _ in calls] == [[999], [500], [0]]
    assert draw(pipe).shape == (1, 32, 32, 3)


def test_both_guidances_add_up(pipe):
    """CLIP's gradient joins the prediction that classifier-free guidance made."""
    expected = draw(
        tiny_pipeline(upsampler=False),
        guidance_scale=4.0,
        negative_prompt="square",
        cond_fn=lambda x, t: 2.0 * clip_gradient(pipe.clip_model, x, t, pipe.encode_clip_prompt("a red circle")),
    )
    both = draw(pipe, guidance_scale=4.0, negative_prompt="square", clip_guidance_scale=2.0)
    np.testing.assert_allclose(both, expected, atol=1e-5)
    assert not np.allclose(both, draw(pipe, clip_guidance_scale=2.0), atol=1e-3)


def test_an_own_gradient_is_added(pipe):
    assert not np.allclose(draw(pipe, cond_fn=lambda x, t: 10 * torch.ones_like(x)), draw(pipe), atol=1e-3)
    clip_only = draw(pipe, cond_fn=lambda x, t: None)
    np.testing.assert_array_equal(clip_only, draw(pipe))


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_clip_pipeline])
@pytest.mark.parametrize("cond_fn", [lambda x, t: x.sum(), lambda x, t: 1.0])
def test_an_own_gradient_of_another_shape_is_an_error(make, cond_fn):
    with pytest.raises(ValueError, match=r"`cond_fn` must return a tensor of the shape of x_t, \[1, 3, 8, 8\]"):
        draw(make(upsampler=False), cond_fn=cond_fn)


def test_only_a_part_of_the_steps_is_guided(pipe, monkeypatch):
    steps = {"timesteps": [900, 700, 500, 300, 100]}
    for start, end, expected in (
        (0.0, 1.0, [900, 700, 500, 300, 100]),
        (0.0, 0.4, [900, 700]),
        (0.4, 0.8, [500, 300]),
        (0.8, 1.0, [100]),
    ):
        calls = seen(pipe, monkeypatch, clip_guidance_start=start, clip_guidance_end=end, **steps)
        assert [timesteps[0] for timesteps, _ in calls] == expected


def test_a_callback_may_change_the_scale(pipe, monkeypatch):
    scales = []

    def stop(pipe, step, timestep, tensors):
        scales.append(pipe.clip_guidance_scale)
        pipe._clip_guidance_scale = 0.0
        return tensors

    scale = {"clip_guidance_scale": 2.0}
    assert len(seen(pipe, monkeypatch, num_inference_steps=4, callback_on_step_end=stop, **scale)) == 1
    assert scales == [2.0, 0.0, 0.0, 0.0]
    assert pipe.clip_guidance_scale is None  # no call runs


# -- what it looks for ------------------------------------------------------------------------------------------------


def unit(pipe, text):
    tokens = pipe.tokenize(text)
    return F.normalize(pipe.clip_model.get_text_features(tokens.input_ids, tokens.attention_mask), dim=-1)


@torch.no_grad()
def test_captions_are_added_up_by_weight(pipe):
    red, blue = unit(pipe, "red"), unit(pipe, "a blue square")
    for given, expected in (
        ("red", red),
        ({"red": 3.0}, red),
        ({"red": 1.0, "a blue square": -0.5}, F.normalize(red - 0.5 * blue, dim=-1)),
        (["red", "a blue square"], torch.cat([red, blue])),
        (["red", {"red": 2, "a blue square": 1}], torch.cat([red, F.normalize(2 * red + blue, dim=-1)])),
    ):
        torch.testing.assert_close(pipe.encode_clip_prompt(given), expected, atol=1e-5, rtol=0)
    twice = pipe.encode_clip_prompt(["red", "a blue square"], num_images_per_prompt=2)
    torch.testing.assert_close(twice, torch.cat([red, red, blue, blue]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_each_picture_has_its_caption(pipe, monkeypatch):
    red, blue = unit(pipe, "red"), unit(pipe, "blue")
    two = {"prompt": ["red", "blue"], "num_images_per_prompt": 2, "num_inference_steps": 1}
    for changes, expected in (
        ({}, [red, red, blue, blue]),
        ({"clip_prompt": "blue"}, [blue] * 4),
        ({"clip_prompt": {"blue": 2.0}}, [blue] * 4),
        ({"clip_prompt": ["blue", {"red": 1.0}]}, [blue, blue, red, red]),
        ({"clip_prompt_embeds": torch.cat([9 * blue, red])}, [blue, blue, red, red]),
    ):
        ((_, vectors),) = seen(pipe, monkeypatch, **two | changes)
        torch.testing.assert_close(vectors, torch.cat(expected), atol=1e-5, rtol=0)


def test_batches_equal_single_pictures(pipe):
    prompts = ["a red circle", "a blue square"]
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = draw(pipe, prompt=prompts, latents=start, generator=generators(0, 1))
    for index, prompt in enumerate(prompts):
        alone = draw(pipe, prompt=prompt, latents=start[index : index + 1], generator=generators(index))
        np.testing.assert_allclose(together[index], alone[0], atol=1e-4)


def test_the_prompt_given_as_embeddings(pipe):
    embeds = pipe.encode_prompt("a red circle", do_classifier_free_guidance=False)[0]
    given = draw(pipe, prompt=None, prompt_embeds=embeds, clip_prompt="a red circle")
    np.testing.assert_allclose(given, draw(pipe), atol=1e-5)


# -- inpainting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fine_tuned", [True, False])
def test_inpainting_is_guided(fine_tuned, monkeypatch):
    pipe = tiny_clip_pipeline(inpaint=fine_tuned)
    picture = picture_and_mask(32)
    painted = draw(pipe, **picture)
    assert painted.shape == (1, 32, 32, 3)
    kept = np.asarray(picture["image"])[:, :16]
    np.testing.assert_array_equal((255 * painted[0, :, :16]).round(), kept)
    inpaint = GLIDEInpaintPipeline.from_pipe(pipe)
    unguided = draw(inpaint, guidance_scale=1.0, **picture)
    np.testing.assert_array_equal(draw(pipe, clip_guidance_scale=0, **picture), unguided)
    assert not np.allclose(painted, unguided, atol=1e-3)
    assert len(seen(pipe, monkeypatch, num_inference_steps=3, **picture)) == 3


def test_inpainting_in_a_box_around_the_mask():
    pipe = tiny_clip_pipeline()
    picture = picture_and_mask(64)
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[30:34, 40:44] = 255
    assert draw(pipe, **picture | {"mask_image": Image.fromarray(mask)}, padding_mask_crop=2).shape == (1, 64, 64, 3)


def test_repeated_steps_count_as_parts_of_a_step(monkeypatch):
    pipe = tiny_clip_pipeline(upsampler=False)
    picture = picture_and_mask() | {"num_resample": 3, "timesteps": [800, 600, 400, 200], "clip_guidance_end": 0.5}
    calls = seen(pipe, monkeypatch, **picture)
    assert [timesteps[0] for timesteps, _ in calls] == [800] * 3 + [600] * 3


# -- the gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [3.0, 1000.0])
def test_half_precision_stays_finite(dtype, scale):
    pipe = tiny_clip_pipeline().to(dtype)
    assert pipe.clip_model.dtype == dtype
    assert np.isfinite(draw(pipe, clip_guidance_scale=scale, num_inference_steps=4)).all()


def test_clip_stays_on_the_device_under_offloading():
    """It takes turns with the base model at every step: moving both each time would cost more than it saves."""
    pipe = tiny_clip_pipeline(upsampler=False)
    expected = draw(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    assert hasattr(pipe.unet, "_hf_hook")
    assert not hasattr(pipe.clip_model, "_hf_hook")
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)


def test_clip_stays_on_the_device_under_group_offloading():
    pipe = tiny_clip_pipeline(upsampler=False)
    expected = draw(pipe)
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", exclude_modules="text_encoder")

    def is_hooked(network):
        return any(hasattr(module, "_diffusers_hook") for module in network.modules())

    assert is_hooked(pipe.unet) and not is_hooked(pipe.text_encoder) and not is_hooked(pipe.clip_model)
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)


def test_a_caption_too_long_for_clip_is_warned_of(pipe, caplog):
    draw(pipe, clip_prompt="a red circle " * CONTEXT)
    assert "The CLIP prompt has" in caplog.text


def test_gradient_checkpointing_changes_nothing():
    pipe = tiny_clip_pipeline(upsampler=False)
    expected = draw(pipe)
    pipe.clip_model.enable_gradient_checkpointing()
    np.testing.assert_allclose(draw(pipe), expected, atol=1e-5)


def test_max_batch_size_holds_for_clip_too():
    """Each image keeps its own caption."""
    pipe = tiny_clip_pipeline(upsampler=False)
    sizes = []
    pipe.clip_model.vision_model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    call = {"prompt": ["red", "a blue square", "x"], "num_images_per_prompt": 2, "clip_guidance_scale": 50.0}
    whole = draw(pipe, **call)
    parts = draw(pipe, max_batch_size=4, **call)
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    assert sizes == [6, 6, 4, 2, 4, 2]


def test_inside_inference_mode(pipe):
    expected = draw(pipe)
    with torch.inference_mode():
        np.testing.assert_array_equal(draw(pipe), expected)


def test_no_gradient_is_left_behind(pipe):
    draw(pipe)
    assert all(parameter.grad is None for parameter in pipe.clip_model.parameters())


# -- composition, folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny_pipeline, tiny_inpaint_pipeline])
def test_made_from_another_pipeline_and_back(make):
    pipe = make()
    clip, tokenizer = tiny_clip(), tiny_tokenizer()
    guided = CLIPGuidedPipeline.from_pipe(pipe, clip_model=clip, clip_tokenizer=tokenizer)
    assert guided.clip_model is clip and guided.clip_tokenizer is tokenizer
    for name, component in pipe.components.items():
        assert guided.components[name] is component
    back = type(pipe).from_pipe(guided)
    assert back.components == pipe.components
    with pytest.raises(ValueError, match=r"lacks what CLIPGuidedPipeline needs; pass `clip_model`, `clip_tokenizer`"):
        CLIPGuidedPipeline.from_pipe(pipe)


@pytest.mark.parametrize("opener", [CLIPGuidedPipeline, DiffusionPipeline])
def test_save_and_load(tmp_path, opener):
    pipe = tiny_clip_pipeline()
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["clip_model"] == ["glide_pipelines", "NoisedCLIPModel"]
    loaded = opener.from_pretrained(tmp_path)
    assert type(loaded) is CLIPGuidedPipeline
    np.testing.assert_allclose(draw(loaded), draw(pipe), atol=5e-4)


def test_variants_and_dtypes(tmp_path):
    tiny_clip_pipeline().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "clip_model" / "model.fp16.safetensors").is_file()
    assert CLIPGuidedPipeline.from_pretrained(tmp_path, variant="fp16").clip_model.dtype == torch.float32
    half = CLIPGuidedPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float16)
    assert half.clip_model.dtype == half.unet.dtype == torch.float16


def test_without_tokenizers_and_text_encoders():
    components = tiny_clip_pipeline(upsampler=False).components | {"tokenizer": None, "clip_tokenizer": None}
    pipe = CLIPGuidedPipeline(**components | {"text_encoder": None})
    embeds = {"prompt_embeds": torch.zeros(1, CONTEXT, WIDTH), "clip_prompt_embeds": torch.ones(1, WIDTH)}
    assert draw(pipe, prompt=None, **embeds).shape == (1, 8, 8, 3)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict():
    """A pipeline whose networks must not run."""
    pipe = tiny_clip_pipeline()

    def refuse(*_):
        raise AssertionError("a network ran before the arguments were checked")

    for part in pipe.components.values():
        for module in part.modules() if isinstance(part, torch.nn.Module) else ():
            module.register_forward_pre_hook(refuse)
    return pipe


EMBEDS = torch.ones(1, WIDTH)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"clip_guidance_scale": float("inf")}, ValueError, "`clip_guidance_scale` must be finite, got inf"),
        ({"clip_guidance_scale": "3"}, TypeError, "`clip_guidance_scale` must be a number, got '3'"),
        ({"clip_guidance_start": -0.1}, ValueError, "`clip_guidance_start` must lie between 0 and 1, got -0.1"),
        ({"clip_guidance_end": 1.5}, ValueError, "`clip_guidance_end` must lie between 0 and 1, got 1.5"),
        (
            {"clip_guidance_start": 0.6, "clip_guidance_end": 0.4},
            ValueError,
            "`clip_guidance_start` must be below `clip_guidance_end`, got 0.6 and 0.4",
        ),
        ({"prompt": None}, ValueError, "Pass `prompt` or `prompt_embeds`"),
        (
            {"prompt": None}
            | dict.fromkeys(("prompt_embeds", "super_res_prompt_embeds"), torch.zeros(1, CONTEXT, WIDTH)),
            ValueError,
            "`prompt`, `clip_prompt` or `clip_prompt_embeds`: there is nothing to guide to",
        ),
        ({"prompt": 5}, TypeError, r"`prompt` must be a string .* got 5 \(int\)"),
        ({"clip_prompt": 5}, TypeError, r"`clip_prompt` must be a string, a dict .* got 5 \(int\)"),
        ({"clip_prompt": ["a", 5]}, TypeError, r"`clip_prompt` must be .* got 5 \(int\)"),
        ({"clip_prompt": {1: 1.0}}, TypeError, "`clip_prompt` must be"),
        ({"clip_prompt": []}, ValueError, "`clip_prompt` must not be an empty list"),
        ({"clip_prompt": ["a", "b"]}, ValueError, "`clip_prompt` must have a batch of 1, as the prompts have, got 2"),
        ({"clip_prompt": {"a": 1, "b": -1.0}}, ValueError, r"weights in `clip_prompt` must not sum to zero, got \{'a'"),
        ({"clip_prompt": {}}, ValueError, "weights in `clip_prompt` must not sum to zero"),
        ({"clip_prompt": {"a": float("nan")}}, ValueError, r"`clip_prompt\['a'\]` must be finite"),
        ({"clip_prompt": {"a": "1"}}, TypeError, r"`clip_prompt\['a'\]` must be a number"),
        ({"clip_prompt": "a", "clip_prompt_embeds": EMBEDS}, ValueError, "`clip_prompt_embeds`, not both"),
        ({"clip_prompt_embeds": [1.0]}, TypeError, "`clip_prompt_embeds` must be a torch.Tensor"),
        ({"clip_prompt_embeds": EMBEDS[:, 1:]}, ValueError, r"`clip_prompt_embeds` .*\[batch, 16\], got \[1, 15\]"),
        (
            {"clip_prompt_embeds": 0 * EMBEDS},
            ValueError,
            "`clip_prompt_embeds` must be finite and not zero",
        ),
        ({"clip_prompt_embeds": EMBEDS / 0}, ValueError, "`clip_prompt_embeds` must be finite"),
        ({"clip_prompt_embeds": EMBEDS.expand(3, -1)}, ValueError, "`clip_prompt_embeds` must have a batch of 1"),
        (
            {"height": 64},
            ValueError,
            r"`clip_model` reads images of 8 x 8 pixels, .* has 16 x 8: choose `height` and `width` of 32",
        ),
        (
            picture_and_mask(40) | {"working_size": "image"},
            ValueError,
            "`clip_model` reads images of 8 x 8 pixels, .* has 10 x 10",
        ),
        ({"image": picture_and_mask()["image"]}, ValueError, "Pass `mask_image`"),
        ({"mask_image": picture_and_mask()["mask_image"]}, ValueError, "Pass `image`"),
        ({"padding_mask_crop": 4}, ValueError, "`padding_mask_crop` is for inpainting"),
        ({"num_resample": 2}, ValueError, "`num_resample` is for inpainting"),
        ({"working_size": "image"}, ValueError, "`working_size` is for inpainting"),
        ({"guidance_scale": float("nan")}, ValueError, "`guidance_scale` must be finite"),
    ],
)
def test_bad_arguments_are_named(strict, arguments, error, message):
    with pytest.raises(error, match=message):
        strict(**{"prompt": "a red circle"} | arguments)


def test_a_clip_of_another_schedule(strict):
    pipe = CLIPGuidedPipeline.from_pipe(strict, scheduler=GLIDEDDIMScheduler(num_train_timesteps=500))
    with pytest.raises(ValueError, match="`clip_model` was trained with 1000 timesteps, but `scheduler` has 500"):
        pipe("a red circle")


def test_a_tokenizer_of_another_clip(strict):
    pipe = CLIPGuidedPipeline.from_pipe(strict, clip_tokenizer=tiny_tokenizer(CONTEXT + 1))
    with pytest.raises(ValueError, match="`clip_tokenizer` has 13 tokens of context; `clip_model` reads 12"):
        pipe("a red circle")
    pipe = CLIPGuidedPipeline.from_pipe(strict, clip_tokenizer=None)
    with pytest.raises(ValueError, match="needs `clip_tokenizer`; without it pass `clip_prompt_embeds`"):
        pipe("a red circle")


def test_a_model_for_inpainting_makes_an_image_from_text_too():
    (image,) = tiny_clip_pipeline(inpaint=True)(**tiny_call()).images
    assert image.shape == (32, 32, 3) and image.std() > 0
