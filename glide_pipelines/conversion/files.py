"""Reading files that are not trusted, and writing folders that are whole or not there."""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError

import torch

from .errors import ConversionError, blaming


_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict and nothing else: a file that would run code when unpickled is refused.

    Args:
        path (`str` or `Path`): A file that `torch.save` wrote. In the zip format (PyTorch 1.6 and later) it is mapped
            into memory, so that a tensor takes memory only once it is used; older files are read as a whole.

    Returns:
        `dict[str, torch.Tensor]`: tensors on the CPU, in the order of the file.

    Raises:
        ConversionError: if the file is missing, cut short, not of PyTorch, or holds anything but named tensors.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(_ZIP))
    except OSError as error:
        raise ConversionError(f"the file cannot be read: {error.strerror}") from error
    if not head.startswith((_ZIP, _PICKLE)):
        raise ConversionError("this is not a PyTorch checkpoint")
    # The index of a zip file stands at its end.
    if head == _ZIP and not zipfile.is_zipfile(path):
        raise ConversionError("the file is cut short: its end is missing")
    try:
        with warnings.catch_warnings(action="ignore"):
            state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=head == _ZIP)
    except UnpicklingError as error:
        raise ConversionError(
            "the file holds something other than tensors; it was not loaded, since that could run code"
        ) from error
    except Exception as error:  # what torch.load raises for a damaged file depends on the damage
        raise ConversionError("the file is cut short or damaged, or not a state dict of PyTorch") from error
    if not isinstance(state_dict, dict) or not state_dict:
        raise ConversionError(
            f"a state dict is needed (names and tensors), the file holds a {type(state_dict).__name__}"
        )
    for key, tensor in state_dict.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise ConversionError(
                f"a plain state dict is needed (names and tensors), the file holds a {type(tensor).__name__} "
                f"under {key!r}"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ConversionError(f"{key!r} is not an ordinary dense tensor")
    return state_dict


@contextmanager
def writing(argument: str, path: str | Path) -> Iterator[None]:
    """Say in one line that something could not be written, for instance because the disk is full.

    Args:
        argument (`str`): The caller's argument that the path came from.
        path (`str` or `Path`): What it was.

    Raises:
        ConversionError: for any error from inside.
    """
    try:
        yield
    except Exception as error:  # safetensors, torch and tokenizers each raise errors of their own
        # What torch says is about its format; what the system said came before.
        said = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = str(said).strip().split("\n")[0]
        raise ConversionError(f"`{argument}` ({path}): the folder cannot be written ({reason})") from error


@contextmanager
def new_folder(path: str | Path, argument: str) -> Iterator[Path]:
    """A folder to write into, which takes its place only when the block ends without an error.

    Args:
        path (`str` or `Path`): Where the folder is wanted: it must be empty or not exist. Missing parents are made.
        argument (`str`): The caller's argument that the path came from, for messages.

    Yields:
        `Path`: an empty folder beside it, on the same disk, renamed to `path` at the end. After an error it is gone.

    Raises:
        ConversionError: if there is something at `path`, or nothing can be written there.
    """
    path = Path(path).expanduser().resolve()
    with blaming(argument, path):
        if path.is_dir() and any(path.iterdir()):
            raise ConversionError("the folder exists and is not empty; name a new one")
        if path.exists() and not path.is_dir():
            raise ConversionError("this is a file; name a new folder")
        missing_parents = [parent for parent in path.parents if not parent.exists()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            raise ConversionError(f"the folder cannot be made: {error.strerror}") from error
    try:
        with aside:
            folder = Path(aside.name) / path.name
            folder.mkdir()
            yield folder
            if path.exists():
                path.rmdir()
            folder.rename(path)
    except BaseException:
        for parent in missing_parents:
            with suppress(OSError):  # not empty: somebody else uses it by now
                parent.rmdir()
        raise
