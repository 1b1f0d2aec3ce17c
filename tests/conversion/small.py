"""Small checkpoints in the released layout, made by the way back, and the scripts to convert them with."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import torch
from tiny import tiny_tokenizer

from glide_pipelines import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel
from glide_pipelines.conversion.state_dicts import to_glide


ROOT = Path(__file__).resolve().parents[2]
CONTEXT = 12
VOCAB = 258
HEAD_DIM = 8
TEXT_HEADS = 4
# What a state dict of these sizes does not show.
OPTIONS = {
    "attention_head_dim": HEAD_DIM,
    "text_num_attention_heads": TEXT_HEADS,
    "image_size": 16,
    "super_res_image_size": 32,
}
CHANNELS = {"base": 3, "upsample": 6, "base-inpaint": 7, "upsample-inpaint": 10}
PAIRS = [("base", "upsample"), ("base-inpaint", "upsample-inpaint")]


def small_networks(
    kind: str = "base",
    seed: int = 0,
    channels: tuple[int, ...] = (32, 64),
    attention_levels: tuple[int, ...] = (1,),
    layers: int = 1,
    width: int = 32,
    context: int = CONTEXT,
    vocab: int = VOCAB,
) -> tuple[GLIDEUNet2DConditionModel, GLIDETextEncoder]:
    """UNet and text encoder, every tensor random."""
    config = GLIDEUNet2DConditionModel.glide_config(
        channels,
        attention_levels,
        layers,
        text_hidden_size=width,
        in_channels=CHANNELS[kind],
        attention_head_dim=HEAD_DIM,
        sample_size=32 if kind.startswith("upsample") else 16,
    )
    text_config = GLIDETextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=TEXT_HEADS,
        max_position_embeddings=context,
        pad_token_id=None,
        eos_token_id=None,
    )
    networks = GLIDEUNet2DConditionModel(**config).eval(), GLIDETextEncoder(text_config).eval()
    generator = torch.Generator().manual_seed(seed)
    for network in networks:
        for parameter in network.parameters():
            parameter.data.normal_(generator=generator).mul_(0.1)
    return networks


def small_state_dict(kind: str = "base", **kwargs) -> OrderedDict[str, torch.Tensor]:
    """In GLIDE's layout."""
    return OrderedDict((key, tensor.clone()) for key, tensor in to_glide(*small_networks(kind, **kwargs)).items())


def write_checkpoint(folder: Path, kind: str = "base", **kwargs) -> Path:
    """`<kind>.pt`, as released."""
    torch.save(small_state_dict(kind, **kwargs), folder / f"{kind}.pt")
    return folder / f"{kind}.pt"


def write_tokenizer(folder: Path) -> Path:
    """A tokenizer of 258 entries."""
    tiny_tokenizer(CONTEXT).save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def script(name: str) -> ModuleType:
    """One of the scripts in `conversion/`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "conversion" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(**options) -> list[str]:
    """As on the command line."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
