"""The byte-level BPE tokenizer of the emoji's captions, of the same class as GLIDE's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path


_END = "<|endoftext|>"


def train_tokenizer(
    texts: Iterable[str], folder: str | Path, vocab_size: int = 2048, model_max_length: int = 32
) -> int:
    """Trains a byte-level BPE on captions and saves it for `transformers.GPT2Tokenizer.from_pretrained(folder)`.

    Any text can be encoded, from the 256 byte symbols. The same arguments give the same files.

    Args:
        texts (`Iterable[str]`): Captions.
        folder (`str` or `Path`): Where to write `vocab.json`, `merges.txt` and the settings; made if missing.
        vocab_size (`int`): Upper limit of the vocabulary, at least 257 (the bytes and `<|endoftext|>`).
        model_max_length (`int`): Context of the text encoder, in tokens.

    Returns:
        `int`: entries in the vocabulary.

    Raises:
        `ValueError`: an argument out of its range.
    """
    if vocab_size < 257:
        raise ValueError(f"`vocab_size` must be at least 257, got {vocab_size}.")
    if model_max_length < 1:
        raise ValueError(f"`model_max_length` must be at least 1, got {model_max_length}.")
    # Loaded here: making the set does without it.
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _END),
        "add_prefix_space": False,
        "model_max_length": model_max_length,
        # A prompt that spells <|endoftext|> is text, not the end of it.
        "split_special_tokens": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    return tokenizer.get_vocab_size()
