"""The error that a conversion ends in when what it was given cannot be converted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class ConversionError(ValueError):
    """Names the argument, what was given and what is allowed, in one line; the scripts print it and exit with 2."""


@contextmanager
def blaming(argument: str, value: str | Path) -> Iterator[None]:
    """Put the caller's argument and its value in front of what a [`ConversionError`] from inside says."""
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"`{argument}` ({value}): {error}") from error.__cause__


def first_line(error: Exception) -> str:
    """What an error of another library says, without its explanations."""
    return str(error).strip().split("\n")[0]


def check_variant(variant: str | None) -> None:
    """A variant goes into the names of files.

    Raises:
        ConversionError: if it cannot.
    """
    if variant is not None and not re.fullmatch(r"[\w.-]+", variant):
        raise ConversionError(
            f"`variant` must be a part of a file name, such as 'fp16' (letters, digits, '.', '_', '-'), got {variant!r}"
        )
