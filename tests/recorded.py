"""The small models whose numbers were recorded from the original, loaded through the converter."""

from __future__ import annotations

from pathlib import Path

import torch

from glide_pipelines import GLIDETextEncoder, GLIDEUNet2DConditionModel, NoisedCLIPModel
from glide_pipelines.conversion.clip import RELEASED_LOGIT_SCALE, build_clip, clip_correspondences, tower_config
from glide_pipelines.conversion.detection import build_networks
from glide_pipelines.conversion.state_dicts import to_diffusers


# A state dict shows neither: see the reference's configs.json.
ATTENTION_HEAD_DIM = 16
TEXT_HEADS = 4
CLIP_HEAD_DIM = 16


def recorded_networks(reference: Path, name: str) -> tuple[GLIDEUNet2DConditionModel, GLIDETextEncoder]:
    """UNet and text encoder of `<name>.pt`, in evaluation mode."""
    state_dict = torch.load(reference / f"{name}.pt", weights_only=True)
    networks = build_networks(
        state_dict, ATTENTION_HEAD_DIM, TEXT_HEADS, sample_size=64 if name.startswith("upsample") else 16
    )
    for component in ("unet", "text_encoder"):
        weights = to_diffusers(state_dict, networks.table, component)
        getattr(networks, component).load_state_dict(weights, assign=True)
    return networks.unet.eval(), networks.text_encoder.eval()


def recorded_clip(reference: Path) -> NoisedCLIPModel:
    """The noised CLIP of `clip-text-enc.pt` and `clip-image-enc.pt`, in evaluation mode."""
    files = {kind: torch.load(reference / f"{kind}.pt") for kind in ("clip-text-enc", "clip-image-enc")}
    clip = build_clip(*(tower_config(state_dict, kind, CLIP_HEAD_DIM) for kind, state_dict in files.items()))
    weights = {"logit_scale": torch.tensor(RELEASED_LOGIT_SCALE)}
    for kind, state_dict in files.items():
        weights |= to_diffusers(state_dict, clip_correspondences(clip), kind)
    clip.load_state_dict(weights, assign=True)
    return clip.eval()
