"""An image that is not finite is an error that names stage and step; an attribute returns it anyway."""

import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance, MagnitudeAwareGuidance
from tiny import CONTEXT, WIDTH, tiny_call, tiny_clip_pipeline, tiny_pipeline

from glide_pipelines import CLIPGuidance, GLIDESuperResolutionPipeline


HUGE = torch.full((1, CONTEXT, WIDTH), 1e30)


@pytest.fixture
def pipe():
    return tiny_pipeline()


def spoil(step, value=torch.nan):
    """A callback that puts NaN into one pixel after a step."""

    def callback(pipe, index, timestep, tensors):
        if index == step:
            tensors["latents"][0, 0, 0, 0] = value
        return tensors

    return callback


@pytest.mark.parametrize(("step", "message"), [(0, "'base' .* at step 1"), (1, "'base' .* step 2"), (3, "'super_res'")])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_the_stage_and_the_step_are_named(pipe, step, message, output_type):
    with pytest.raises(FloatingPointError, match=message):
        pipe(**tiny_call(callback_on_step_end=spoil(step), output_type=output_type))


def test_the_first_step_counts(pipe):
    steps = []

    def count(unet, args, output):
        steps.append(None)
        output.sample[...] = torch.nan if len(steps) >= 2 else 0.0

    pipe.unet.register_forward_hook(count)
    with pytest.raises(FloatingPointError, match="step 2 of the 5 that were taken"):
        pipe(**tiny_call(num_inference_steps=5))


def test_an_attribute_returns_it_anyway(pipe):
    pipe.check_finite = False
    assert np.isnan(pipe(**tiny_call(callback_on_step_end=spoil(3))).images).any()


def test_embeddings_out_of_range(pipe):
    embeds = {"prompt": None, "prompt_embeds": HUGE, "super_res_prompt_embeds": HUGE}
    with pytest.raises(FloatingPointError, match="Stage 'base'"):
        pipe(**tiny_call(**embeds))


def test_whole_numbers_are_scales_too(pipe):
    """Beyond 64 bits torch takes no whole numbers."""
    assert np.isfinite(pipe(**tiny_call(guidance_scale=-(2**70))).images).all()


def test_the_upsampler_alone():
    pipe = GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline())
    call = {"image": np.zeros((8, 8, 3)), "num_inference_steps": 2, "callback_on_step_end": spoil(1)}
    with pytest.raises(FloatingPointError, match=r"Stage 'super_res' .* step 2"):
        pipe("a red circle", **call)


def test_a_score_gradient_that_is_not_finite(pipe):
    with pytest.raises(FloatingPointError, match=r"Stage 'base' .* step 1"):
        pipe(**tiny_call(cond_fn=lambda x_t, timestep: x_t / 0))


def test_the_check_waits_for_nothing_inside_the_loop(pipe, monkeypatch):
    """Asking a tensor for its values would wait for the device: once at the end of each stage, and no sooner."""
    waits, steps = [], []

    def watch(original):
        return lambda tensor: waits.append(len(steps)) or original(tensor)

    for name in ("__bool__", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, watch(getattr(torch.Tensor, name)))
    pipe(**tiny_call(callback_on_step_end=lambda *args: steps.append(None) or {}))
    assert [wait for wait in waits if wait > 0] == [2, 4]


# -- what used to fail in the middle of a run ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unrunnable():
    pipe = tiny_clip_pipeline()

    def refuse(*_):
        raise AssertionError("a network ran before the arguments were checked")

    for part in (pipe.unet, pipe.text_encoder, pipe.super_res_unet, pipe.super_res_text_encoder, pipe.clip_model):
        part.register_forward_pre_hook(refuse)
    return pipe


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"guider": ClassifierFreeGuidance(guidance_scale="3")},
            "`guider` ClassifierFreeGuidance fails at step 1 of 2",
        ),
        ({"guider": ClassifierFreeGuidance(float("nan"))}, "`guider` ClassifierFreeGuidance must give a finite"),
        ({"guider": MagnitudeAwareGuidance()}, "`guider` MagnitudeAwareGuidance fails at step 1"),
        ({"cross_attention_kwargs": {"gligen": 5}}, "`cross_attention_kwargs` may hold scale, got gligen"),
        ({"cross_attention_kwargs": {"attn": 5}}, "`cross_attention_kwargs` may hold scale, got attn"),
        ({"num_images_per_prompt": 2**70}, "`num_images_per_prompt` must be 1048576 or less"),
        ({"timesteps": torch.tensor(5)}, "`timesteps` must be a respacing string or a list of integers"),
        ({"timesteps": torch.ones(2, device="meta")}, "`timesteps` must be a respacing string or a list of integers"),
        ({"height": 2**70}, "`height` must be 1048576 or less"),
        ({"guidance_scale": 2**2000}, "`guidance_scale` must be finite"),
        ({"prompt": "a \ud800 circle"}, r"`prompt` must be Unicode text, but has '\\ud800'.* at position 2"),
        ({"negative_prompt": ["\udfff"]}, "`negative_prompt` must be Unicode text"),
        ({"clip_prompt": "\ud800"}, "`clip_prompt` must be Unicode text"),
        ({"clip_prompt": {"\ud800": 1.0}}, "`clip_prompt` must be Unicode text"),
    ],
)
def test_named_before_any_network_runs(unrunnable, arguments, message):
    with pytest.raises(ValueError, match=message):
        unrunnable(**tiny_call(**arguments))


def test_text_is_checked_wherever_it_is_tokenized():
    pipe = tiny_clip_pipeline()
    for encode in (pipe.encode_prompt, pipe.encode_clip_prompt, pipe.tokenize):
        with pytest.raises(ValueError, match="must be Unicode text"):
            encode("\ud800")
    with pytest.raises(ValueError, match="`prompt` must be Unicode text"):
        CLIPGuidance(pipe.clip_model, pipe.clip_tokenizer, ["\ud800"])
