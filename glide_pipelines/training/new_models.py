"""Untrained models of given sizes."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from ..models import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel, NoisedCLIPConfig, NoisedCLIPModel
from ..sampling import Stage
from ..schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler


# As in the released notebooks: ancestral sampling for the base, DDIM for the upsampler. Training is the same for both.
SCHEDULERS = {"base": GLIDEDDPMScheduler, "super_res": GLIDEDDIMScheduler}


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, context: int) -> None:
    """Set the text context of a tokenizer, in tokens, and its padding token: the end token, as in GLIDE, unless it has
    one (GPT-2's own has none)."""
    tokenizer.model_max_length = context
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


def new_text_encoder(tokenizer: PreTrainedTokenizerBase, **sizes: Any) -> GLIDETextEncoder:
    """An untrained text encoder for the vocabulary of a tokenizer; `sizes` are those of [`GLIDETextConfig`]."""
    end = tokenizer.eos_token_id
    return GLIDETextEncoder(GLIDETextConfig(vocab_size=len(tokenizer), pad_token_id=end, eos_token_id=end, **sizes))


def new_stage(name: str, tokenizer: PreTrainedTokenizerBase, sizes: dict[str, dict[str, Any]]) -> Stage:
    """An untrained stage.

    Args:
        name (`str`): `"base"` or `"super_res"`.
        tokenizer (`PreTrainedTokenizerBase`): What the text encoder reads.
        sizes (`dict[str, dict[str, Any]]`): `text_encoder`, of [`GLIDETextConfig`]; `unet`, of
            [`~GLIDEUNet2DConditionModel.glide_config`]; `scheduler`, of [`GLIDEDDPMScheduler`].

    Raises:
        ValueError: if a size has a name that the UNet does not know.
    """
    text_encoder = new_text_encoder(tokenizer, **sizes["text_encoder"])
    width = text_encoder.config.hidden_size
    try:
        config = GLIDEUNet2DConditionModel.glide_config(text_hidden_size=width, **sizes["unet"])
    except TypeError as error:
        raise ValueError(f"`sizes` of the UNet: {error}") from error
    head = config["attention_head_dim"]
    for channels, kind in zip(config["block_out_channels"], config["down_block_types"], strict=True):
        if "Attn" in kind and isinstance(head, int) and (head < 1 or channels % head):
            raise ValueError(
                f"`sizes` of the UNet: `attention_head_dim` must divide the channels of each level with attention, "
                f"got {head} for {channels}."
            )
    unet = GLIDEUNet2DConditionModel(**config)
    unet.zero_output_layers()
    return Stage(name, text_encoder, unet, SCHEDULERS[name](**sizes["scheduler"]))


def new_noised_clip(tokenizer: PreTrainedTokenizerBase, sizes: dict[str, Any]) -> NoisedCLIPModel:
    """An untrained noised CLIP for the vocabulary of a tokenizer; `sizes` are those of [`NoisedCLIPConfig`]."""
    text_config = {**sizes["text_config"], "vocab_size": len(tokenizer)}
    return NoisedCLIPModel(NoisedCLIPConfig(**{**sizes, "text_config": text_config}))
