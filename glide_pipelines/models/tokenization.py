"""Prompts to token ids, as the models were trained on them, and tokenizers for new models."""

from __future__ import annotations

import html
import itertools
import json
import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import ftfy
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BatchEncoding, CLIPTokenizer, PreTrainedTokenizerBase

from ..files import updated_folder


logger = logging.getLogger(__name__)
END = "<|endoftext|>"

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

    Raises:
        ValueError: if a prompt is no valid Unicode text.
    """
    for prompt in prompts:
        check_text(warn_as or "prompt", prompt)
    prompts = [_prepare(tokenizer, prompt) for prompt in prompts]
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


def prompt_lengths(tokenizer: PreTrainedTokenizerBase, prompts: Iterable[str]) -> Iterator[int]:
    """How many tokens each prompt has, before the text context cuts it.

    Raises:
        ValueError: if a prompt is no valid Unicode text.
    """
    prompts = iter(prompts)
    while batch := list(itertools.islice(prompts, 1000)):
        for prompt in batch:
            check_text("prompt", prompt)
        with _LOCK:
            ids = tokenizer([_prepare(tokenizer, prompt) for prompt in batch], verbose=False).input_ids
        yield from map(len, ids)


def check_text(name: str, text: str) -> None:
    """`text` must be valid Unicode, which half of a surrogate pair is not.

    Raises:
        ValueError: naming the argument and the character.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"`{name}` must be Unicode text, but has {text[error.start : error.start + 1]!r}, half of a character, "
            f"at position {error.start}."
        ) from error


def _prepare(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    if isinstance(tokenizer, CLIPTokenizer):
        prompt = _mend(prompt)
    # Python's lower(), not the tokenizer's: they differ on some letters (final sigma).
    return prompt.lower()


def _mend(text: str) -> str:
    """Text as OpenAI's CLIP reads it: encoding errors mended, HTML entities resolved (twice), white space folded."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def train_tokenizer(
    folder: str | Path, captions: Iterable[str], vocab_size: int = 8192, model_max_length: int = 128
) -> int:
    """Train a byte-level BPE tokenizer, of the same class as GLIDE's, on captions in lower case.

    It is saved for `transformers.GPT2Tokenizer.from_pretrained(folder)`. Any text can be encoded, from the 256 byte
    symbols. The same arguments give the same files.

    Args:
        folder (`str` or `Path`): Where to write `vocab.json`, `merges.txt` and `tokenizer_config.json`; made if
            missing. Its other files stay.
        captions (`Iterable[str]`): What to train on.
        vocab_size (`int`, defaults to 8192): Upper limit of the vocabulary, at least 257 (the bytes and
            `<|endoftext|>`). It stops growing earlier where every word of the captions has become one token.
        model_max_length (`int`, defaults to 128): Context of the text encoder, in tokens.

    Returns:
        `int`: entries in the vocabulary.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if vocab_size < 257:
        raise ValueError(f"`vocab_size` must be at least 257, got {vocab_size}.")
    if model_max_length < 1:
        raise ValueError(f"`model_max_length` must be at least 1, got {model_max_length}.")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((caption.lower() for caption in captions), trainer)
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), END),
        "add_prefix_space": False,
        "model_max_length": model_max_length,
        # A prompt that spells <|endoftext|> is text, not the end of it.
        "split_special_tokens": True,
    }
    with updated_folder(Path(folder)) as temporary:
        tokenizer.model.save(str(temporary))
        (temporary / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()
