"""Whatever is put into a call, an error names an argument before any network runs, or the result is finite.

The short run is the same each time; `pytest -m slow tests/reliability/test_fuzz_*.py -s` makes new calls, and counts.
"""

import functools

import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from editing import quiet
from fuzzing import arguments, fuzz_a_little, fuzz_a_lot, promise
from hypothesis import strategies as st
from PIL import Image
from tiny import (
    CONTEXT,
    WIDTH,
    tiny_clip,
    tiny_clip_pipeline,
    tiny_inpaint_pipeline,
    tiny_pipeline,
    tiny_text_encoder,
    tiny_unet,
)

from glide_pipelines import (
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDESuperResolutionPipeline,
)
from glide_pipelines.schedulers import space_timesteps


# -- pipelines --------------------------------------------------------------------------------------------------------


EMBEDS = torch.zeros(1, CONTEXT, WIDTH)
COMMON = {
    "num_images_per_prompt": st.integers(1, 2),
    "eta": st.floats(0, 1),
    "upsample_temperature": st.floats(0, 2),
    "generator": st.builds(lambda seed: torch.Generator().manual_seed(seed), st.integers(0, 9)),
    "cross_attention_kwargs": st.sampled_from([None, {}, {"scale": 0.5}]),
    "cond_fn": st.sampled_from([None, lambda x_t, timestep: None, [lambda x_t, timestep: -x_t]]),
    "return_dict": st.booleans(),
    "callback_on_step_end": st.sampled_from([None, lambda *args: {}]),
    "callback_on_step_end_tensor_inputs": st.sampled_from([["latents"], ["prompt_embeds"], []]),
}
STAGES = {
    "guidance_scale": st.floats(-5, 10),
    "negative_prompt": st.sampled_from([None, "a blue square", ["x"]]),
    "guider": st.sampled_from([None, ClassifierFreeGuidance(3.0), ClassifierFreeGuidance("x")]),
    "super_res_prompt_embeds": st.sampled_from([None, EMBEDS]),
    "timesteps": st.sampled_from([None, "2", "ddim2", [500, 3], (9, 8)]),
    "super_res_timesteps": st.sampled_from([None, "2", [500, 3]]),
    **COMMON,
}
PICTURE, MASK = Image.new("RGB", (32, 32), "red"), Image.new("L", (32, 32), 255)
SIZE = {"height": st.sampled_from([8, 16, 32]), "width": st.sampled_from([8, 16, 32])}
EDIT = {"padding_mask_crop": st.sampled_from([None, 0, 4]), "num_resample": st.integers(1, 2)}
CLIP = {
    "clip_guidance_scale": st.floats(-5, 10),
    "clip_prompt": st.sampled_from([None, "a", {"a": 1.0, "b": -0.5}, ["a"]]),
    "clip_guidance_start": st.floats(0, 0.5),
    "clip_guidance_end": st.floats(0.5, 1),
    "clip_prompt_embeds": st.sampled_from([None, torch.ones(1, WIDTH)]),
}
STEPS = {"num_inference_steps": 2, "super_res_num_inference_steps": 1}


# Each: the pipeline, arguments of a call that works, and strategies of good values for the others.
PIPELINES = {
    "text-to-image": (tiny_pipeline, STEPS, STAGES | SIZE),
    "base alone": (lambda: tiny_pipeline(upsampler=False), {"num_inference_steps": 2}, STAGES | SIZE),
    "img2img": (
        lambda: GLIDEImg2ImgPipeline.from_pipe(tiny_pipeline()),
        STEPS | {"image": PICTURE},
        STAGES | {"strength": st.floats(0.5, 1)},
    ),
    "inpaint": (tiny_inpaint_pipeline, STEPS | {"image": PICTURE, "mask_image": MASK}, STAGES | SIZE | EDIT),
    "implicit inpaint": (
        lambda: GLIDEInpaintPipeline.from_pipe(tiny_pipeline()),
        STEPS | {"image": PICTURE, "mask_image": MASK},
        STAGES | SIZE | EDIT,
    ),
    "super-resolution": (
        lambda: GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline()),
        {"num_inference_steps": 2, "image": PICTURE.resize((8, 8))},
        COMMON | {"tile_size": st.sampled_from([None, 16, 32]), "tile_overlap": st.sampled_from([None, 0, 4])},
    ),
    "clip-guided": (tiny_clip_pipeline, STEPS, STAGES | CLIP),
    "clip-guided inpaint": (tiny_clip_pipeline, STEPS | {"image": PICTURE, "mask_image": MASK}, STAGES | CLIP | EDIT),
}


@functools.cache
def prepared(name):
    pipe = quiet(PIPELINES[name][0]())
    passes = []
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.register_forward_pre_hook(lambda *_: passes.append(None))
    return pipe, passes


def call_pipeline(name, data):
    pipe, passes = prepared(name)
    _, given_values, good = PIPELINES[name]
    embeds = dict.fromkeys(("prompt_embeds", "negative_prompt_embeds"), st.just(EMBEDS))
    noise = dict.fromkeys(("latents", "super_res_latents"), st.none())
    good = good | noise | (embeds if name != "super-resolution" else {})
    call = arguments(data, {"prompt": "a red circle", "output_type": "np"} | given_values, good)
    names = {*call, *good, "scheduler", "image", "mask_image"}  # a default may be what does not go with the rest
    names |= {f"super_res_{argument}" for argument in names}
    passes.clear()
    output = promise(lambda: pipe(**call), names, lambda: bool(passes))
    if output is not None:
        images = output.images if hasattr(output, "images") else output[0]
        for image in images:
            pixels = image.float().numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
            assert np.isfinite(pixels).all()


# -- schedulers -------------------------------------------------------------------------------------------------------


def call_scheduler(cls, data):
    good = {
        "num_train_timesteps": st.sampled_from([2, 10, 1000]),
        "beta_start": st.floats(1e-4, 1e-2),
        "beta_end": st.floats(1e-2, 0.5),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"]),
        "trained_betas": st.none(),
        "variance_type": st.sampled_from(["learned_range", "fixed_small", "fixed_large", None]),
        "clip_sample": st.booleans(),
        "clip_sample_range": st.floats(0.1, 10),
        "thresholding": st.booleans(),
        "dynamic_thresholding_ratio": st.floats(0.5, 1),
        "sample_max_value": st.floats(1, 10),
        "timestep_spacing": st.sampled_from(["linspace", "leading", "trailing"]),
        "steps_offset": st.integers(0, 1),
    }
    config = arguments(data, {}, good)
    scheduler = promise(lambda: cls(**config), good)
    if scheduler is None:
        return
    spacing = arguments(data, {"num_inference_steps": 2}, {"timesteps": st.sampled_from(["2", [1, 0]])})
    if promise(lambda: scheduler.set_timesteps(**spacing) or True, spacing) is None:
        return
    timesteps = st.sampled_from(scheduler.timesteps.tolist())
    step = arguments(
        data,
        {"model_output": torch.ones(1, 6, 8, 8), "timestep": scheduler.timesteps[0], "sample": torch.ones(1, 3, 8, 8)},
        {"timestep": timesteps, "cond_grad": st.just(torch.ones(1, 3, 8, 8))}
        | ({"eta": st.floats(0, 1)} if cls is GLIDEDDIMScheduler else {}),
    )
    output = promise(lambda: scheduler.step(**step), [*step, *config, "variance_type"])
    if output is not None and all(t.isfinite().all() for t in step.values() if isinstance(t, torch.Tensor)):
        assert all(tensor.isfinite().all() for tensor in (output if isinstance(output, tuple) else output.values()))


def call_respacing(data):
    call = arguments(data, {"spacing": "10"}, {"num_train_timesteps": st.sampled_from([1000, 10])})
    kept = promise(lambda: space_timesteps(**call), [*call, "timesteps"])
    assert kept is None or kept == sorted(set(kept), reverse=True)


# -- models -----------------------------------------------------------------------------------------------------------


IDS = torch.zeros(2, CONTEXT, dtype=torch.int64)
PIXELS, TIMES = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
HIDDEN = torch.zeros(2, CONTEXT, WIDTH)
MODELS = {
    "text encoder": (tiny_text_encoder, "forward", {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
    "unet": (tiny_unet, "forward", {"sample": PIXELS, "timestep": 5, "encoder_hidden_states": HIDDEN}),
    "upsampler": (
        lambda: tiny_unet(6, 32),
        "forward",
        {"sample": torch.zeros(2, 3, 32, 32), "timestep": TIMES, "encoder_hidden_states": HIDDEN, "low_res": PIXELS},
    ),
    "inpainter": (
        lambda: tiny_unet(7),
        "forward",
        {
            "sample": PIXELS,
            "timestep": TIMES,
            "encoder_hidden_states": HIDDEN,
            "image": PIXELS,
            "mask": torch.zeros(2, 1, 8, 8),
        },
    ),
    "clip text": (tiny_clip, "get_text_features", {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}),
    "clip image": (tiny_clip, "get_image_features", {"sample": PIXELS, "timesteps": TIMES}),
    "clip similarity": (
        tiny_clip,
        "similarity",
        {"sample": PIXELS, "timesteps": TIMES, "text_features": torch.ones(2, WIDTH)},
    ),
}


@functools.cache
def model_of(name):
    return MODELS[name][0]()


@torch.no_grad()
def call_model(name, data):
    _, method, given_values = MODELS[name]
    call = arguments(data, given_values, {})
    result = promise(lambda: getattr(model_of(name), method)(**call), [*call, "class_labels"])
    given = [t for t in call.values() if isinstance(t, torch.Tensor) and t.is_floating_point() and not t.is_meta]
    if result is not None and all(not t.numel() or t.abs().max() < 1e3 for t in given):
        output = result if isinstance(result, torch.Tensor) else result[0]
        assert output.isfinite().all()


TARGETS = {
    **{name: functools.partial(call_pipeline, name) for name in PIPELINES},
    "GLIDEDDPMScheduler": functools.partial(call_scheduler, GLIDEDDPMScheduler),
    "GLIDEDDIMScheduler": functools.partial(call_scheduler, GLIDEDDIMScheduler),
    "respacing": call_respacing,
    **{name: functools.partial(call_model, name) for name in MODELS},
}


@pytest.mark.parametrize("target", TARGETS)
def test_a_few_calls(target):
    fuzz_a_little(TARGETS[target])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_calls(target, capsys):
    fuzz_a_lot(TARGETS[target], target, capsys)
