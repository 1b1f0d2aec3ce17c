"""Small checkpoints in the released layout, made by the way back, and the scripts to convert them with."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import torch
from scripts import load_script
from tiny import tiny_tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from glide_pipelines import (
    GLIDETextConfig,
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
    NoisedCLIPConfig,
    NoisedCLIPModel,
)
from glide_pipelines.conversion.clip import clip_to_glide
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
CLIP_HEAD_DIM = 8
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


def small_clip(seed: int = 2, image_size: int = 16, timesteps: int = 1000) -> NoisedCLIPModel:
    """A noised CLIP, every tensor random; its embedding has more rows than its tokenizer has entries."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    config = NoisedCLIPConfig(
        text_config=shape | {"vocab_size": 600, "hidden_size": 32, "max_position_embeddings": CONTEXT},
        vision_config=shape | {"image_size": image_size, "hidden_size": 32, "num_train_timesteps": timesteps},
        projection_dim=24,
        logit_scale_init_value=math.log(100),
    )
    clip = NoisedCLIPModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in clip.named_parameters():
        if name != "logit_scale":
            parameter.data.normal_(generator=generator).mul_(0.1)
    return clip


def write_clip(folder: Path, **kwargs) -> dict[str, Path]:
    """`clip-text-enc.pt` and `clip-image-enc.pt`, as released, and CLIP's tokenizer: the converter's arguments."""
    state_dicts = clip_to_glide(small_clip(**kwargs))
    for kind, state_dict in state_dicts.items():
        torch.save(OrderedDict((key, tensor.clone()) for key, tensor in state_dict.items()), folder / f"{kind}.pt")
    return {
        "clip_text_checkpoint_path": folder / "clip-text-enc.pt",
        "clip_image_checkpoint_path": folder / "clip-image-enc.pt",
        "clip_tokenizer": write_clip_tokenizer(folder),
    }


def write_clip_tokenizer(folder: Path) -> Path:
    """Bytes, bytes that end a word, one merge, start and end: 515 entries."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "re", "<|startoftext|>", "<|endoftext|>"]
    (folder / "clip-tokenizer").mkdir(exist_ok=True)
    (folder / "clip-tokenizer" / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "clip-tokenizer" / "merges.txt").write_text("#version: 0.2\nr e\n")
    return folder / "clip-tokenizer"


def script(name: str) -> ModuleType:
    """One of the scripts in `conversion/`."""
    return load_script(name, "conversion")


def arguments(**options) -> list[str]:
    """As on the command line."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]
