"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
