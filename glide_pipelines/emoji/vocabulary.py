"""The words that the emoji checkpoint has read."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


FILE = Path(__file__).parent / "words.txt"


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; "o'clock" is one, "heart-shaped" are two."""
    return re.findall(r"[^\W_]+(?:'[a-z]+)?", text.lower().replace("’", "'"))


def prompt_warning(text: str) -> str | None:
    """What the checkpoint of this world says of a prompt with words that it has never read, or without any."""
    words = list(dict.fromkeys(words_of(text)))
    unknown = [repr(word) for word in words if word not in _known()]
    if not unknown and (words or not text.strip()):
        return None
    return (
        f"This checkpoint knows emoji by their names, and of the prompt {text!r} it has never read "
        f"{', '.join(unknown) or 'a word'}. "
        'Try one such as "a slice of pizza" or "a red car on a blue background".'
    )


@cache
def _known() -> frozenset[str]:
    return frozenset(FILE.read_text(encoding="utf-8").split())
