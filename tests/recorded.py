"""The small models and the vocabularies of the recordings, as the library loads them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from recorded_weights import recorded_state_dict
from tokenizers.pre_tokenizers import ByteLevel

from glide_pipelines import GLIDETextEncoder, GLIDEUNet2DConditionModel, NoisedCLIPModel
from glide_pipelines.conversion.clip import RELEASED_LOGIT_SCALE, build_clip, clip_correspondences, tower_config
from glide_pipelines.conversion.detection import build_stage
from glide_pipelines.conversion.state_dicts import correspondences, read_weights


# A state dict shows neither: see recordings/configs.json.
ATTENTION_HEAD_DIM = 16
TEXT_HEADS = 4
CLIP_HEAD_DIM = 16
# In the order of their ids: the printable bytes, then the others, under the letters that stand for them.
BYTES = sorted(ByteLevel.alphabet(), key=ord)


def recorded_networks(recordings: Path, name: str) -> tuple[GLIDEUNet2DConditionModel, GLIDETextEncoder]:
    """UNet and text encoder of the model of that name, in evaluation mode."""
    state_dict = recorded_state_dict(recordings, name)
    stage = build_stage(
        state_dict, ATTENTION_HEAD_DIM, TEXT_HEADS, sample_size=64 if name.startswith("upsample") else 16
    )
    table = correspondences(stage.unet, stage.text_encoder)
    for component in ("unet", "text_encoder"):
        getattr(stage, component).load_state_dict(read_weights(state_dict, table, component), assign=True)
    return stage.unet, stage.text_encoder


def recorded_clip(recordings: Path) -> NoisedCLIPModel:
    """The noised CLIP, in evaluation mode."""
    files = {kind: recorded_state_dict(recordings, kind) for kind in ("clip-text-enc", "clip-image-enc")}
    clip = build_clip(*(tower_config(state_dict, kind, CLIP_HEAD_DIM) for kind, state_dict in files.items()))
    weights = {"logit_scale": torch.tensor(RELEASED_LOGIT_SCALE)}
    for kind, state_dict in files.items():
        weights |= read_weights(state_dict, clip_correspondences(clip), kind)
    clip.load_state_dict(weights, assign=True)
    return clip.eval()


def write_recorded_checkpoint(recordings: Path, name: str, folder: Path) -> Path:
    """`<name>.pt` in the released layout."""
    torch.save(recorded_state_dict(recordings, name), folder / f"{name}.pt")
    return folder / f"{name}.pt"


def recorded_tokens(recordings: Path) -> dict:
    """The prompts with their ids, and per tokenizer (`glide`, `clip`) its sizes and the merges that the prompts use."""
    return json.loads((recordings / "tokens.json").read_text(encoding="utf-8"))


def write_glide_vocabulary(folder: Path, size: int, merges: dict[str, str]) -> Path:
    """A folder with `vocab.json` and `merges.txt`: bytes, merges, end."""
    return _write_vocabulary(folder, size, BYTES, merges, ["<|endoftext|>"])


def write_clip_vocabulary(folder: Path, size: int, merges: dict[str, str]) -> Path:
    """A folder with `vocab.json` and `merges.txt`: bytes, bytes that end a word, merges, start and end."""
    letters = [*BYTES, *(f"{letter}</w>" for letter in BYTES)]
    return _write_vocabulary(folder, size, letters, merges, ["<|startoftext|>", "<|endoftext|>"])


def _write_vocabulary(folder: Path, size: int, first: list[str], merges: dict[str, str], last: list[str]) -> Path:
    """Every token has its original id; merges that no recorded prompt needs are left out, their ids taken by fillers.

    Byte pair encoding applies the merge of the lowest id that fits. Without merges that it would never have applied,
    it takes the same way.
    """
    tokens = [*first, *(f"<unused {i}>" for i in range(len(first), size - len(last))), *last]
    for token_id, pair in merges.items():
        tokens[int(token_id)] = pair.replace(" ", "")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges.values()]) + "\n")
    return folder
