"""SDEdit: strength, sizes, schedulers."""

import diffusers
import numpy as np
import pytest
import torch
from editing import PICTURE, inputs_of, picture, quiet, refused
from PIL import Image
from tiny import tiny_call, tiny_clip, tiny_pipeline, tiny_tokenizer

from glide_pipelines import CLIPGuidance, GLIDEImg2ImgPipeline, GLIDEPipeline


@pytest.fixture(scope="module")
def img2img():
    return quiet(GLIDEImg2ImgPipeline.from_pipe(tiny_pipeline()))


def sketch(pipe, image=PICTURE, **changes):
    return pipe(**tiny_call(image=image, **changes)).images


def test_strength_is_the_share_of_steps(img2img):
    steps = []
    sketch(
        img2img,
        strength=0.3,
        num_inference_steps=10,
        callback_on_step_end=lambda p, i, t, k: steps.append((p.stage, int(t))) or {},
    )
    assert steps[:3] == [("base", 222), ("base", 111), ("base", 0)]
    assert steps[3][0] == "super_res" and img2img.num_timesteps == 5


def test_the_sketch_gets_the_noise_of_the_first_step_that_is_run(img2img):
    seen = []
    hook = img2img.unet.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    call = {"strength": 0.7, "timesteps": [999, 500, 0], "guidance_scale": 1.0}
    try:
        for noise in (0.0, 1.0):
            sketch(img2img, Image.new("RGB", (32, 32), "white"), latents=torch.full((1, 3, 8, 8), noise), **call)
    finally:
        hook.remove()
    alpha_bar = img2img.scheduler.train_process.alphas_cumprod[500].item()
    signal, signal_and_noise = seen[0], seen[2]
    torch.testing.assert_close(signal, torch.full_like(signal, alpha_bar**0.5))
    torch.testing.assert_close(signal_and_noise - signal, torch.full_like(signal, (1 - alpha_bar) ** 0.5))


def test_little_strength_stays_near_the_sketch(img2img):
    base = quiet(GLIDEImg2ImgPipeline.from_pipe(img2img, super_res_unet=None))
    image = picture(8, 8)
    near, far = (
        np.abs(sketch(base, image, strength=strength, num_inference_steps=100)[0] - np.asarray(image) / 255).mean()
        for strength in (0.02, 1.0)
    )
    assert near < 0.1 < far


@pytest.mark.parametrize(
    ("size", "working_size"), [((300, 300), (32, 32)), ((300, 420), (24, 40)), ((3, 400), (8, 128)), ((4, 2), (48, 24))]
)
def test_a_sketch_of_any_size_is_drawn_with_the_pixels_of_the_model(img2img, size, working_size, caplog):
    """In its own shape, as far as the sizes that the model takes allow."""
    with inputs_of(img2img.super_res_unet) as seen:
        assert sketch(img2img, picture(*size)).shape == (1, *size, 3)
    assert {inputs["sample"].shape[-2:] for inputs in seen} == {working_size}
    assert "far from" not in caplog.text


def test_the_size_can_be_chosen(img2img, caplog):
    for working_size, expected in (("image", (40, 64)), ((32, 32), (32, 32))):
        with inputs_of(img2img.super_res_unet) as seen:
            sketch(img2img, picture(40, 64), working_size=working_size)
        assert {inputs["sample"].shape[-2:] for inputs in seen} == {expected}
    assert caplog.text.count("far from") == 1


def test_a_clip_reads_a_sketch_of_any_shape(img2img):
    guidance = CLIPGuidance(tiny_clip(), tiny_tokenizer())
    assert sketch(img2img, picture(60, 90), cond_fn=guidance).shape == (1, 60, 90, 3)


def test_what_is_drawn_of_a_sketch_keeps_its_place(img2img):
    """Where its shape leaves a part of what the model draws, the rest is cut off."""

    def draw(pipe, step, timestep, tensors):
        drawn = torch.full_like(tensors["latents"], -1)
        drawn[..., : drawn.shape[-2] // 4, :] = 1
        return {"latents": drawn}

    (result,) = sketch(img2img, picture(60, 120), callback_on_step_end=draw, working_size=(32, 32))
    assert result[:26].min() > 0.9 and result[34:].max() < 0.1  # 8 of the 16 rows that the sketch has at the size of 32


def test_any_size(img2img):
    assert sketch(img2img, picture(33, 47)).shape == (1, 33, 47, 3)
    assert sketch(img2img, picture(33, 47), height=64, width=32).shape == (1, 64, 32, 3)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_strength_with_stock_schedulers(img2img, name):
    scheduler = getattr(diffusers, name).from_config(img2img.scheduler.config)
    pipe = quiet(GLIDEImg2ImgPipeline.from_pipe(img2img, scheduler=scheduler, super_res_unet=None))
    image = picture(8, 8)
    result = sketch(pipe, image, strength=0.1, num_inference_steps=20)[0]
    assert np.abs(result - np.asarray(image) / 255).mean() < 0.25


@pytest.mark.parametrize("name", ["GLIDEDDPMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize(
    ("task", "call"), [(GLIDEImg2ImgPipeline, {"image": PICTURE, "strength": 0.5}), (GLIDEPipeline, {})]
)
def test_one_scheduler_may_serve_both_stages(img2img, name, task, call):
    """Each stage sets it to its own steps, on which with this spacing the strength of the first noise depends too."""
    cls = getattr(diffusers, name, type(img2img.scheduler))
    one, other = (cls.from_config(img2img.scheduler.config, timestep_spacing="leading") for _ in range(2))
    steps = {"num_inference_steps": 8, "super_res_num_inference_steps": 2}
    pictures = [
        quiet(task.from_pipe(img2img, scheduler=one, super_res_scheduler=second))(**tiny_call(**call, **steps)).images
        for second in (one, other)
    ]
    np.testing.assert_array_equal(*pictures)


def test_strength_with_pndm(img2img, capsys):
    """Whose second call repeats the second timestep, also of a run that is cut."""
    scheduler = diffusers.PNDMScheduler.from_config(img2img.scheduler.config)
    pipe, steps = GLIDEImg2ImgPipeline.from_pipe(img2img, scheduler=scheduler, super_res_unet=None), []
    sketch(
        pipe,
        strength=0.3,
        num_inference_steps=10,
        callback_on_step_end=lambda p, i, t, k: steps.append((i, int(t))) or {},
    )
    assert steps == [(0, 222), (1, 111), (2, 111), (3, 0)] and pipe.num_timesteps == 4
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "Pass `image`"),
        ({"image": torch.full((3, 32, 32), torch.nan)}, "`image` holds NaN"),
        ({"image": Image.new("RGB", (1, 1))}, "`image` has a single pixel"),
        ({"working_size": 0}, "`working_size` must be 'model', 'image' or .* got 0"),
        ({"strength": float("nan")}, "`strength` must be finite"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, r"`latents` must have the shape \[1, 3, 8, 8\]"),
        ({"super_res_latents": torch.zeros(1, 3, 4, 4)}, r"`super_res_latents` must have the shape \[1, 3, 32, 32\]"),
        ({"strength": 1.5}, "`strength` must lie between 0 and 1, got 1.5"),
        ({"strength": -0.1}, "`strength` must lie between 0 and 1"),
        ({"strength": 0.1}, "`strength` 0.1 leaves none of the 2 steps"),
        ({"strength": 0}, "`strength` 0 leaves none"),
        ({"image": [PICTURE] * 2}, "`image` must be one image, as there is one prompt, got 2"),
    ],
)
def test_bad_input_to_sdedit(img2img, changes, message):
    with refused(img2img, ValueError, message):
        img2img(**tiny_call(image=PICTURE) | changes)
