"""Prompts to token ids, as the models were trained on them."""

from __future__ import annotations

import html

import ftfy
from transformers import BatchEncoding, CLIPTokenizer, PreTrainedTokenizerBase


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> BatchEncoding:
    """Lower case, cut and padded to the text context.

    Args:
        tokenizer (`GPT2Tokenizer` or `CLIPTokenizer`): GLIDE's byte-level BPE, or that of CLIP, which mends the text
            first and adds a start and an end token; its `model_max_length` is the text context `L`.
        prompts (`list[str]`): `B` prompts.

    Returns:
        `BatchEncoding`: `input_ids` and `attention_mask` of shape `[B, L]`, the mask being 1 on text.
    """
    if isinstance(tokenizer, CLIPTokenizer):
        prompts = [_mend(prompt) for prompt in prompts]
    return tokenizer(
        # Python's lower(), not the tokenizer's: they differ on some letters (final sigma).
        [prompt.lower() for prompt in prompts],
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
        verbose=False,
    )


def _mend(text: str) -> str:
    """Text as OpenAI's CLIP reads it: encoding errors mended, HTML entities resolved (twice), white space folded."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
