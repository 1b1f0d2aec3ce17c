"""The byte-level BPE tokenizer of the shapes world, of the same class as GLIDE's."""

import json
from collections.abc import Iterator
from pathlib import Path

from .dataset import ShapesWorld


_END = "<|endoftext|>"
_NUM_CAPTIONS = 20_000  # many times what it takes for every word of the world to be learned


def train_tokenizer(folder: str | Path, vocab_size: int = 512, model_max_length: int = 32) -> int:
    """
    Trains a byte-level BPE on captions of the shapes world and saves it for
    `transformers.GPT2Tokenizer.from_pretrained(folder)`. Every word of the captions becomes one token; any other text
    can be encoded too, from the 256 byte symbols. The same arguments give the same files.

    Args:
        folder (`str` or `Path`): Where to write `vocab.json`, `merges.txt` and the settings; made if missing.
        vocab_size (`int`): Upper limit of the vocabulary, at least 257 (the bytes and `<|endoftext|>`). The words of
            the world are all learned with fewer than 512 entries, and then the vocabulary stops growing.
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
    # Loaded here: scenes, captions, images and the judge do without it.
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
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


def _texts() -> Iterator[str]:
    world = ShapesWorld(seed=0)
    return (str(world.caption(index)) for index in range(_NUM_CAPTIONS))
