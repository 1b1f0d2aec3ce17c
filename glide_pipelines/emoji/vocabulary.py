"""The words that the emoji checkpoint has read."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path


FILE = Path(__file__).parent / "words.txt"


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case; "o'clock" is one, "heart-shaped" are two."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower().replace("’", "'"))


def prompt_warning(text: str) -> str | None:
    """What the checkpoint of this world says of a prompt with words that it has never read; None of any other one."""
    unknown = [word for word in dict.fromkeys(words_of(text)) if word not in _known()]
    if not unknown:
        return None
    return (
        f"This checkpoint knows emoji by their names, and of the prompt {text!r} it has never read "
        f'{", ".join(map(repr, unknown))}. Try one such as "a slice of pizza" or "a red car on a blue background".'
    )


@cache
def _known() -> frozenset[str]:
    return frozenset(FILE.read_text(encoding="utf-8").split())
