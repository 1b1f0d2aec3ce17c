"""Files that are whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes its place only when the block ends without an error.

    Args:
        path (`Path`): Where the file is wanted; one that is there is replaced.

    Yields:
        `Path`: A name beside it with the same ending, by which Pillow and matplotlib choose the format.
    """
    aside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(text: str, path: Path) -> None:
    """Write a text: the file is whole, or as it was before."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write JSON, whole or not at all."""
    write_whole(json.dumps(data, indent=2) + "\n", path)
