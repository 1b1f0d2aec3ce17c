"""Prompts to token ids, as the models were trained on them."""

from __future__ import annotations

import html
import logging
import threading

import ftfy
from transformers import BatchEncoding, CLIPTokenizer, PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

# A fast tokenizer keeps padding and truncation as its own state, which two threads cannot set at the same time.
_LOCK = threading.Lock()


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], warn_as: str | None = None
) -> BatchEncoding:
    """Lower case, cut and padded to the text context.

    Args:
        tokenizer (`GPT2Tokenizer` or `CLIPTokenizer`): GLIDE's byte-level BPE, or that of CLIP, which mends the text
            first and adds a start and an end token; its `model_max_length` is the text context `L`.
        prompts (`list[str]`): `B` prompts.
        warn_as (`str`, *optional*): What a prompt that had to be cut is called in a warning; by default none is given.

    Returns:
        `BatchEncoding`: `input_ids` and `attention_mask` of shape `[B, L]`, the mask being 1 on text.
    """
    if isinstance(tokenizer, CLIPTokenizer):
        prompts = [_mend(prompt) for prompt in prompts]
    # Python's lower(), not the tokenizer's: they differ on some letters (final sigma).
    prompts = [prompt.lower() for prompt in prompts]
    context = tokenizer.model_max_length
    with _LOCK:
        tokens = tokenizer(
            prompts, padding="max_length", max_length=context, truncation=True, return_tensors="pt", verbose=False
        )
    if warn_as is not None:
        full = tokens.attention_mask.all(dim=1)
        for text in (text for text, is_full in zip(prompts, full, strict=True) if is_full):
            with _LOCK:
                length = len(tokenizer(text, verbose=False).input_ids)
            if length > context:
                logger.warning(f"The {warn_as} has {length} tokens; what is beyond the first {context} is not seen.")
    return tokens


def _mend(text: str) -> str:
    """Text as OpenAI's CLIP reads it: encoding errors mended, HTML entities resolved (twice), white space folded."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
