"""Atomic writes: a file or a folder appears whole, or stays as it was.

Everything is written beside its place under a temporary name, flushed to the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes its place only when the block ends without an error.

    Args:
        path (`Path`): The file's place. An existing file is replaced.

    Yields:
        `Path`: A name in the same folder with the same ending, by which Pillow and matplotlib choose the format.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write a JSON file atomically."""
    write_text(json.dumps(data, indent=2) + "\n", path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes its place only when the block ends without an error.

    Args:
        path (`Path`): The folder's place. An existing folder is replaced with all that it holds.

    Yields:
        `Path`: An empty folder beside it.
    """
    with _temporary_folder(path) as temporary:
        yield temporary
        replace_folder(temporary, path)


@contextmanager
def updated_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, whose entries replace those of the same names when the block ends without an error.

    Each entry is replaced whole, one after the other.

    Args:
        path (`Path`): The folder to update; made if missing. Its other entries stay.

    Yields:
        `Path`: An empty folder beside it.
    """
    with _temporary_folder(path) as temporary:
        yield temporary
        path.mkdir(parents=True, exist_ok=True)
        for entry in temporary.iterdir():
            if entry.is_dir():
                replace_folder(entry, path / entry.name)
            else:
                _flush(entry)
                entry.replace(path / entry.name)
        _flush(path)


def partial_path(path: Path) -> Path:
    """The temporary name of a folder, which every process of a run can tell."""
    return path.with_name(f"{path.name}.partial")


def replace_folder(temporary: Path, path: Path) -> None:
    """Flush a folder to the disk and move it to its place. What was there is deleted once the new folder is in place.

    Args:
        temporary (`Path`): The whole folder, on the same disk.
        path (`Path`): Its place.
    """
    for folder, _, names in os.walk(temporary):
        for name in names:
            _flush(Path(folder, name))
        _flush(Path(folder))
    old = path.with_name(f"{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)  # left by a process that was killed
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    temporary = partial_path(path)
    shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    """Have the system write a file's contents, or a folder's list of entries, to the disk."""
    with suppress(PermissionError):  # Windows does not open folders
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
