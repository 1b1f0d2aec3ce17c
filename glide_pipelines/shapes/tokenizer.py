"""The byte-level BPE tokenizer of the shapes world, of the same class as GLIDE's."""

from __future__ import annotations

from pathlib import Path

from .. import models
from .dataset import ShapesWorld


_NUM_CAPTIONS = 20_000  # many times what it takes to learn every word of the world


def train_tokenizer(folder: str | Path, vocab_size: int = 512, model_max_length: int = 32) -> int:
    """Train a byte-level BPE tokenizer on captions of the shapes world: [`glide_pipelines.models.train_tokenizer`].

    Every word of the captions becomes one token.

    Args:
        folder (`str` or `Path`): Where to write it; made if missing.
        vocab_size (`int`, defaults to 512): Upper limit of the vocabulary, at least 257. The words of the world are all
            learned with fewer than 512 entries, and then the vocabulary stops growing.
        model_max_length (`int`, defaults to 32): Context of the text encoder, in tokens.

    Returns:
        `int`: entries in the vocabulary.

    Raises:
        ValueError: if an argument is out of its range.
    """
    world = ShapesWorld(seed=0)
    captions = (str(world.caption(index)) for index in range(_NUM_CAPTIONS))
    return models.train_tokenizer(folder, captions, vocab_size, model_max_length)
