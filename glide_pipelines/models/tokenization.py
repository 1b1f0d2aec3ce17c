"""Prompts to token ids, as GLIDE was trained on them."""

from __future__ import annotations

from transformers import BatchEncoding, PreTrainedTokenizerBase


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> BatchEncoding:
    """Lower case, cut and padded to the text context, without special tokens inside the text.

    Args:
        tokenizer (`GPT2Tokenizer`): GLIDE's byte-level BPE; its `model_max_length` is the text context `L`.
        prompts (`list[str]`): `B` prompts.

    Returns:
        `BatchEncoding`: `input_ids` and `attention_mask` of shape `[B, L]`, the mask being 1 on text.
    """
    return tokenizer(
        # Python's lower(), not the tokenizer's: they differ on some letters (final sigma).
        [prompt.lower() for prompt in prompts],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
        verbose=False,
    )
