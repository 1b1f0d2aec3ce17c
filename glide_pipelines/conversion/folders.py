"""The folder that a conversion writes: new, and whole or not there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..files import replace_folder
from .errors import ConversionError, blaming, first_line


@contextmanager
def new_folder(path: str | Path, argument: str) -> Iterator[Path]:
    """An empty folder to write into, which takes its place only when the block ends without an error. After one it is
    gone, and so are the parents that were made for it.

    Raises:
        ConversionError: naming the caller's argument, if there is something at `path`, or nothing can be written there.
    """
    path = Path(path).expanduser().resolve()
    missing_parents = [parent for parent in path.parents if not parent.exists()]
    with blaming(argument, path):
        if path.is_dir() and any(path.iterdir()):
            raise ConversionError("the folder exists and is not empty; name a new one")
        if path.exists() and not path.is_dir():
            raise ConversionError("this is a file; name a new folder")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConversionError(f"the folder cannot be made: {error.strerror}") from error
    try:
        # Of two conversions into the same folder each has its own.
        with writing(argument, path):
            temporary = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
        with temporary:
            folder = Path(temporary.name, path.name)
            folder.mkdir()
            yield folder
            with writing(argument, path):
                if path.exists():
                    path.rmdir()
                replace_folder(folder, path)
    except BaseException:
        for parent in missing_parents:
            with suppress(OSError):  # not empty: somebody else uses it by now
                parent.rmdir()
        raise


@contextmanager
def writing(argument: str, path: str | Path) -> Iterator[None]:
    """Say in one line that something could not be written, for instance because the disk is full, and which argument of
    the caller the path came from.

    Raises:
        ConversionError: for any error from inside.
    """
    try:
        yield
    except Exception as error:  # safetensors, torch and tokenizers each raise errors of their own
        # What torch says is about its format; what the system said came before.
        said = error.__context__ if isinstance(error.__context__, OSError) else error
        raise ConversionError(f"`{argument}` ({path}): the folder cannot be written ({first_line(said)})") from error
