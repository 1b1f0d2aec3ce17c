"""The tokenizers: GPT-2's byte-level BPE without special tokens inside a prompt, and that of CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import CLIPTokenizer, GPT2Tokenizer, PreTrainedTokenizerBase

from .errors import ConversionError, first_line


_END = "<|endoftext|>"
# What a tokenizer may consist of: the original's files, or the single one that transformers saves.
_FILES = (["vocab.json", "merges.txt"], ["tokenizer.json"])


def load_tokenizer(
    name_or_path: str | Path | PreTrainedTokenizerBase, context: int, vocab_size: int
) -> PreTrainedTokenizerBase:
    """Load the tokenizer and set it up as GLIDE's.

    Lower-casing is left to the pipeline: a normalizer would be lost when the tokenizer is loaded again, and the
    tokenizers library lower-cases some letters differently than the original did.

    Args:
        name_or_path (`str`, `Path` or `PreTrainedTokenizerBase`): A folder with `vocab.json` and `merges.txt`, or a
            repository on the Hub. A tokenizer is taken as it is.
        context, vocab_size (`int`): Of the text encoder; longer prompts are cut.

    Raises:
        ConversionError: if it cannot be loaded, or its vocabulary is not that of the embedding.
    """
    if isinstance(name_or_path, PreTrainedTokenizerBase):
        tokenizer = _check_context(name_or_path, context)
    else:
        tokenizer = _load(
            GPT2Tokenizer,
            name_or_path,
            "GPT-2",
            **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _END),
            model_max_length=context,
            # A prompt that spells <|endoftext|> is text, not the end of it.
            split_special_tokens=True,
        )
    if len(tokenizer) != vocab_size:
        raise ConversionError(
            f"the tokenizer has {len(tokenizer)} entries, but the checkpoint's token embedding has {vocab_size} rows"
        )
    return tokenizer


def load_clip_tokenizer(
    name_or_path: str | Path | PreTrainedTokenizerBase, context: int, vocab_size: int
) -> PreTrainedTokenizerBase:
    """Load the noised CLIP's tokenizer.

    It pads with its end token where the original pads with 0: nothing that follows the end of a text has an effect.

    Args:
        name_or_path, context: As in [`load_tokenizer`].
        vocab_size (`int`): Of the text tower; the released one has more than the tokenizer has entries.

    Raises:
        ConversionError: if it cannot be loaded, is not that of a CLIP, or has more entries than the embedding rows.
    """
    if isinstance(name_or_path, PreTrainedTokenizerBase):
        tokenizer = _check_context(name_or_path, context)
    else:
        tokenizer = _load(CLIPTokenizer, name_or_path, "CLIP", model_max_length=context)
    # What the vocabulary lacks has been added behind it; GPT-2 has one token for both.
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if start is None or end is None or start == end or max(start, end) >= tokenizer.vocab_size:
        raise ConversionError("the files are no CLIP tokenizer (there is no start or no end token among the entries)")
    if len(tokenizer) > vocab_size:
        raise ConversionError(
            f"the tokenizer has {len(tokenizer)} entries, but the text tower's embedding has only {vocab_size} rows"
        )
    return tokenizer


def _check_context(tokenizer: PreTrainedTokenizerBase, context: int) -> PreTrainedTokenizerBase:
    if tokenizer.model_max_length != context:
        raise ConversionError(
            f"its `model_max_length` must be the text context of the checkpoint, {context}, "
            f"got {tokenizer.model_max_length}"
        )
    return tokenizer


def _load(
    cls: type[PreTrainedTokenizerBase], name_or_path: str | Path, kind: str, **options: Any
) -> PreTrainedTokenizerBase:
    folder = _folder(name_or_path)
    # Without its files transformers would build a vocabulary of one token, and say nothing.
    if not any(all((folder / file).is_file() for file in files) for files in _FILES):
        raise ConversionError("there are no vocab.json and merges.txt")
    try:
        return cls.from_pretrained(folder, **options)
    except Exception as error:  # what a broken file raises depends on how it is broken
        raise ConversionError(f"the files are no {kind} tokenizer ({first_line(error)})") from error


def _folder(name_or_path: str | Path) -> Path:
    folder = Path(name_or_path).expanduser()
    if folder.exists():
        return folder
    try:
        # These two are all that is needed. Left to itself, transformers asks for a dozen files, each with retries.
        return Path(snapshot_download(str(name_or_path), allow_patterns=_FILES[0]))
    except Exception as error:  # no such repository, no network, no valid name
        raise ConversionError(
            "there is no such folder, and it cannot be fetched from the Hugging Face Hub; give a folder with "
            f"vocab.json and merges.txt, or a repository on the Hub ({first_line(error)})"
        ) from error
