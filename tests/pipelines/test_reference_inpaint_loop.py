"""Inpainting equals the original, stage by stage."""

import pytest
import torch
from PIL import Image
from recorded import recorded_networks
from safetensors.torch import load_file

from glide_pipelines import GLIDEDDIMScheduler, GLIDEInpaintPipeline


@pytest.fixture(scope="module")
def recorded(recordings):
    return load_file(recordings / "inpaint-loop.safetensors")


@pytest.fixture(scope="module")
def pipe(recordings):
    unet, text_encoder = recorded_networks(recordings, "base-inpaint")
    super_res_unet, super_res_text_encoder = recorded_networks(recordings, "upsample-inpaint")
    pipe = GLIDEInpaintPipeline(
        tokenizer=None,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=GLIDEDDIMScheduler(beta_schedule="squaredcos_cap_v2"),
        super_res_text_encoder=super_res_text_encoder,
        super_res_unet=super_res_unet,
        super_res_scheduler=GLIDEDDIMScheduler(beta_schedule="linear"),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def run(pipe, recorded, base_override=None):
    """The recorded call, from the pictures' 8-bit files on; returns both stages' pictures."""
    results = {}

    def collect(pipe, step, timestep, tensors):
        if pipe.stage == "base" and step == 24 and base_override is not None:
            tensors["latents"] = base_override
        results[pipe.stage] = tensors["latents"]
        return tensors

    pipe(
        prompt_embeds=pipe.text_encoder(recorded["tokens"], recorded["mask"]).last_hidden_state,
        negative_prompt_embeds=pipe.text_encoder(recorded["uncond_tokens"], recorded["uncond_mask"]).last_hidden_state,
        super_res_prompt_embeds=pipe.super_res_text_encoder(recorded["tokens"], recorded["mask"]).last_hidden_state,
        image=[Image.fromarray(image.numpy()) for image in recorded["image_uint8"]],
        mask_image=1 - recorded["keep_mask_up"],
        timesteps="ddim25",
        super_res_timesteps="fast27",
        guidance_scale=5.0,
        latents=recorded["base_noise"],
        super_res_latents=recorded["up_noise"] / 0.997,
        output_type="pt",
        callback_on_step_end=collect,
    )
    return results


def test_base_stage(pipe, recorded):
    torch.testing.assert_close(run(pipe, recorded)["base"], recorded["base_sample"], atol=2e-3, rtol=0)


def test_upsampler_from_the_recorded_small_picture(pipe, recorded):
    result = run(pipe, recorded, base_override=recorded["low_res"])["super_res"]
    torch.testing.assert_close(result, recorded["sample"], atol=2e-3, rtol=0)
