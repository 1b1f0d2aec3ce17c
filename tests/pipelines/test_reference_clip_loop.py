"""CLIP guidance equals the original: the base stage, with DDIM and with ancestral steps."""

import pytest
import torch
from recorded import recorded_clip, recorded_networks
from safetensors.torch import load_file

from glide_pipelines import CLIPGuidedPipeline, GLIDEDDIMScheduler, GLIDEDDPMScheduler
from glide_pipelines.schedulers import scheduling_glide_ddpm


@pytest.fixture(scope="module")
def recorded(recordings):
    return load_file(recordings / "clip-loop.safetensors")


@pytest.fixture(scope="module")
def pipe(recordings):
    unet, text_encoder = recorded_networks(recordings, "base")
    pipe = CLIPGuidedPipeline(
        tokenizer=None,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=None,
        clip_model=recorded_clip(recordings),
        clip_tokenizer=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def run(pipe, recorded, **kwargs):
    """The recorded call, with its CLIP vectors at another length: unit length is the pipeline's business."""
    return pipe(
        prompt_embeds=pipe.text_encoder(recorded["tokens"], recorded["mask"]).last_hidden_state,
        clip_prompt_embeds=5 * recorded["clip_text_embeds"],
        clip_guidance_scale=recorded["guidance_scale"].item(),
        latents=recorded["base_noise"],
        output_type="pt",
        **kwargs,
    ).images


def check(pictures, expected):
    torch.testing.assert_close(2 * pictures - 1, expected.clamp(-1, 1), atol=5e-3, rtol=0)


def test_ddim(pipe, recorded):
    pipe.scheduler = GLIDEDDIMScheduler(beta_schedule="squaredcos_cap_v2")
    check(run(pipe, recorded, timesteps="ddim25"), recorded["ddim_sample"])


def test_ancestral(pipe, recorded, monkeypatch):
    drawn = iter(recorded["ddpm_noise"])
    monkeypatch.setattr(scheduling_glide_ddpm, "randn_tensor", lambda *_, **__: next(drawn))
    pipe.scheduler = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    check(run(pipe, recorded, timesteps="25"), recorded["ddpm_sample"])
    assert next(drawn, None) is None
