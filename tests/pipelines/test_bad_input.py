"""Every bad argument is named, with what was given and what is allowed, before any network runs."""

import numpy as np
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback, SDXLCFGCutoffCallback
from diffusers.guiders import ClassifierFreeGuidance
from tiny import CONTEXT, WIDTH, tiny_pipeline
from transformers.modeling_outputs import BaseModelOutput


EMBEDS = torch.zeros(1, CONTEXT, WIDTH)
CUTOFF = SDCFGCutoffCallback(cutoff_step_ratio=0.5)


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny_pipeline()

    def refuse(*_):
        raise AssertionError("a network ran before the arguments were checked")

    for network in (pipe.unet, pipe.text_encoder, pipe.super_res_unet, pipe.super_res_text_encoder):
        network.register_forward_pre_hook(refuse)
    return pipe


@pytest.mark.parametrize(
    ("given", "shown"), [(BaseModelOutput(EMBEDS.repeat(1, 9, 9)), r"BaseModelOutput\("), ("x" * 5000, "'xxxx")]
)
def test_an_error_shows_the_beginning_of_what_was_given(pipe, given, shown):
    with pytest.raises(TypeError, match=rf"`prompt_embeds` must be a torch\.Tensor, got {shown}") as error:
        pipe(prompt_embeds=given)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": None}, ValueError, "`prompt` or `prompt_embeds`"),
        ({"prompt_embeds": EMBEDS}, ValueError, "either `prompt` or `prompt_embeds`, not both"),
        ({"negative_prompt": "x", "negative_prompt_embeds": EMBEDS}, ValueError, "`negative_prompt_embeds`, not both"),
        ({"prompt": 5}, TypeError, r"`prompt` must be a string .* got 5 \(int\)"),
        ({"prompt": ["a", 5]}, TypeError, r"`prompt` .* got a list of \['int', 'str'\]"),
        ({"prompt": []}, ValueError, "`prompt` must not be an empty list"),
        ({"negative_prompt": ["a", "b"]}, ValueError, "`negative_prompt` .* list of 1.* got 2"),
        ({"negative_prompt": torch.zeros(0)}, TypeError, "`negative_prompt` must be"),
        ({"prompt": None, "prompt_embeds": "a"}, TypeError, "`prompt_embeds` must be a torch.Tensor"),
        ({"prompt": None, "prompt_embeds": EMBEDS[..., :5]}, ValueError, r"`prompt_embeds` .* got \[1, 12, 5\]"),
        ({"prompt": None, "prompt_embeds": EMBEDS}, ValueError, "needs `super_res_prompt_embeds`"),
        (
            {"prompt": None, "prompt_embeds": EMBEDS[:, :5]},
            ValueError,
            "`prompt_embeds` must have the 12 tokens .* got 5",
        ),
        (
            {"negative_prompt_embeds": EMBEDS[:, :5]},
            ValueError,
            "`negative_prompt_embeds` must have the 12 tokens .* got 5",
        ),
        ({"negative_prompt_embeds": EMBEDS.expand(2, -1, -1)}, ValueError, "`negative_prompt_embeds` .* batch of 1"),
        ({"super_res_prompt_embeds": EMBEDS.expand(2, -1, -1)}, ValueError, "`super_res_prompt_embeds` .* batch of 1"),
        ({"super_res_prompt_embeds": EMBEDS[..., :5]}, ValueError, "`super_res_prompt_embeds`"),
        ({"height": 33}, ValueError, "`height` must be a multiple of 8, got 33"),
        ({"width": 12}, ValueError, "`width` must be a multiple of 8, got 12"),
        ({"height": -8}, ValueError, "`height` must be 1 or more"),
        ({"width": 32.0}, TypeError, "`width` must be an integer"),
        ({"num_images_per_prompt": 0}, ValueError, "`num_images_per_prompt` must be 1 or more, got 0"),
        ({"num_images_per_prompt": True}, TypeError, "`num_images_per_prompt` must be an integer, got True"),
        ({"num_images_per_prompt": np.True_}, TypeError, "`num_images_per_prompt` must be an integer"),
        ({"num_images_per_prompt": np.int64(0)}, ValueError, "`num_images_per_prompt` must be 1 or more, got 0"),
        ({"generator": [torch.Generator()] * 2}, ValueError, "`generator` is a list of 2, but 1 images"),
        ({"generator": 0}, TypeError, "`generator` must be a torch.Generator"),
        ({"prompt": None, "prompt_embeds": EMBEDS[:0]}, ValueError, r"`prompt_embeds` must not be empty, .* \[0, 12"),
        ({"super_res_prompt_embeds": EMBEDS[:, :0]}, ValueError, "`super_res_prompt_embeds` must not be empty"),
        ({"timesteps": 50}, ValueError, "`timesteps` must be a respacing string or a list of integers, got 50"),
        ({"super_res_timesteps": 5}, ValueError, "`super_res_timesteps` must be a respacing string or a list"),
        ({"timesteps": "quick"}, ValueError, "timesteps='quick' is not a respacing"),
        ({"timesteps": "1001"}, ValueError, "timesteps='1001'"),
        ({"timesteps": [1, 2, 3]}, ValueError, "`timesteps` .* descending"),
        ({"num_inference_steps": 1001}, ValueError, "`num_inference_steps` .* 1000 steps of training, got 1001"),
        ({"num_inference_steps": "5"}, ValueError, "`num_inference_steps` must be an integer"),
        ({"super_res_timesteps": "slow"}, ValueError, "super_res_timesteps='slow'"),
        ({"super_res_timesteps": [1, 1]}, ValueError, "`super_res_timesteps` .* descending"),
        ({"super_res_num_inference_steps": 0}, ValueError, "`super_res_num_inference_steps` .* got 0"),
        ({"guidance_scale": "3"}, TypeError, "`guidance_scale` must be a number, got '3'"),
        ({"guidance_scale": True}, TypeError, "`guidance_scale` must be a number, got True"),
        ({"guidance_scale": np.float32("nan")}, ValueError, "`guidance_scale` must be finite"),
        ({"guidance_scale": float("nan")}, ValueError, "`guidance_scale` must be finite"),
        ({"eta": 2.0}, ValueError, "`eta` must lie between 0 and 1, got 2.0"),
        ({"upsample_temperature": -1}, ValueError, "`upsample_temperature`"),
        ({"output_type": "jpg"}, ValueError, "`output_type` must be one of 'pil', 'np', 'pt', 'latent', got 'jpg'"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, ValueError, r"`latents` .*\[1, 3, 8, 8\], got \[1, 3, 4, 4\]"),
        ({"super_res_latents": torch.zeros(1, 3, 8, 8)}, ValueError, r"`super_res_latents` .*\[1, 3, 32, 32\]"),
        ({"latents": [0]}, TypeError, "`latents` must be a torch.Tensor"),
        ({"latents": torch.full((1, 3, 8, 8), torch.nan)}, ValueError, "`latents` holds NaN or infinity"),
        ({"super_res_latents": torch.full((1, 3, 32, 32), torch.inf)}, ValueError, "`super_res_latents` holds NaN"),
        ({"prompt": None, "prompt_embeds": EMBEDS.log() * 0}, ValueError, "`prompt_embeds` holds NaN"),
        ({"negative_prompt_embeds": EMBEDS.log()}, ValueError, "`negative_prompt_embeds` holds NaN or infinity"),
        ({"super_res_prompt_embeds": EMBEDS.log()}, ValueError, "`super_res_prompt_embeds` holds NaN or infinity"),
        ({"callback_on_step_end_tensor_inputs": ["images"]}, ValueError, "`callback_on_step_end_tensor_inputs`"),
        ({"callback_on_step_end_tensor_inputs": None}, TypeError, "`callback_on_step_end_tensor_inputs` .* got None"),
        ({"callback_on_step_end": 3}, TypeError, "`callback_on_step_end` must be callable, got 3"),
        ({"callback_on_step_end": CUTOFF}, ValueError, "`callback_on_step_end` .* `pipe._guidance_scale = 1.0`"),
        (
            {"callback_on_step_end": MultiPipelineCallbacks([SDXLCFGCutoffCallback()])},
            ValueError,
            "`callback_on_step_end` must not be diffusers' SDXLCFGCutoffCallback",
        ),
        ({"super_res_prompt_embeds": EMBEDS[:, :5]}, ValueError, "`super_res_prompt_embeds` must have the 12 tokens"),
        (
            {"super_res_prompt_embeds": EMBEDS.to(torch.complex64)},
            TypeError,
            "`super_res_prompt_embeds` must be .*complex64",
        ),
        (
            {"negative_prompt_embeds": EMBEDS.to("meta")},
            TypeError,
            "`negative_prompt_embeds` must have values, got .* meta",
        ),
        ({"latents": torch.zeros(1, 3, 8, 8, dtype=torch.int64)}, TypeError, "`latents` must be .* torch.int64"),
        ({"latents": torch.zeros(1, 3, 8, 8, dtype=torch.bool)}, TypeError, "`latents` must be .* torch.bool"),
        ({"latents": torch.zeros(1, 3, 8, 8).to_sparse()}, TypeError, "`latents` must be a dense .* torch.sparse_coo"),
        ({"cross_attention_kwargs": 5}, TypeError, "`cross_attention_kwargs` must be a dict"),
        (
            {"cross_attention_kwargs": {"scale": "1"}},
            TypeError,
            r"`cross_attention_kwargs\['scale'\]` must be a number",
        ),
        ({"cond_fn": 3}, TypeError, "`cond_fn` must be callable, got 3"),
        ({"cond_fn": [None, 3]}, TypeError, "`cond_fn` must be callable, got 3"),
    ],
)
def test_bad_arguments_are_named(pipe, arguments, error, message):
    with pytest.raises(error, match=message):
        pipe(**{"prompt": "a red circle"} | arguments)


def test_a_pipeline_without_text_encoders_needs_embeddings():
    pipe = tiny_pipeline()
    pipe.text_encoder = None
    with pytest.raises(ValueError, match="`prompt` needs a tokenizer and `text_encoder`"):
        pipe("a red circle")
    embeds = {"prompt_embeds": EMBEDS, "super_res_prompt_embeds": EMBEDS}
    for guidance in ({}, {"guidance_scale": 1.0, "guider": ClassifierFreeGuidance()}):
        with pytest.raises(ValueError, match="`negative_prompt_embeds`"):
            pipe(**embeds, **guidance)
    with pytest.raises(ValueError, match="`negative_prompt_embeds`"):
        pipe.encode_prompt(prompt_embeds=EMBEDS)
    unguided = pipe.encode_prompt(prompt_embeds=EMBEDS, do_classifier_free_guidance=False)
    assert torch.equal(unguided[0], EMBEDS) and unguided[1] is None


def test_an_upsampler_without_its_scheduler_is_named():
    pipe = tiny_pipeline()
    pipe.super_res_scheduler = None
    with pytest.raises(ValueError, match="`super_res_unet` needs `super_res_scheduler`"):
        pipe("a red circle")


def test_a_pipeline_without_a_tokenizer_needs_embeddings():
    pipe = tiny_pipeline()
    pipe.tokenizer = None
    with pytest.raises(ValueError, match="`negative_prompt_embeds`"):
        pipe(prompt_embeds=EMBEDS, super_res_prompt_embeds=EMBEDS)


def test_an_upsampler_without_its_text_encoder_is_named():
    pipe = tiny_pipeline()
    pipe.super_res_text_encoder = None
    with pytest.raises(ValueError, match="`super_res_text_encoder`"):
        pipe("a red circle")
