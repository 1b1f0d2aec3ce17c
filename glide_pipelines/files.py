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
    """A file to write, which takes its place, and that of an existing one, only when the block ends without an error.

    It has the same ending, by which Pillow and matplotlib choose the format.
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
    """An empty folder to fill, which takes its place only when the block ends without an error. An existing folder is
    replaced with all that it holds."""
    with _temporary_folder(path) as temporary:
        yield temporary
        replace_folder(temporary, path)


@contextmanager
def updated_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, whose entries replace those of the same names when the block ends without an error,
    whole and one after the other. Other entries stay; the folder to update is made if missing."""
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
    """Flush a folder to the disk and move it to its place on the same disk. What was there is deleted once the new
    folder is in place."""
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
