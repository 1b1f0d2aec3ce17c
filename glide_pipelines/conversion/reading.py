"""Reading checkpoints that are not trusted: only tensors, nothing damaged, nothing larger than its file."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors.torch
import torch
from diffusers.utils import logging

from .detection import KINDS
from .errors import ConversionError
from .unwrapping import choose_state_dict, find_state_dicts, unread_averages


logger = logging.get_logger(__name__)

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint that was found whole: its kind, one of `KINDS`, and where in the file the state dict is, such as
    `"ema"`; empty for the whole content."""

    path: Path
    kind: str
    key: str = ""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors under GLIDE's names, on the CPU.

        The file is mapped into memory, so that a tensor takes memory only once it is used. Files from before PyTorch
        1.6 are read as a whole.
        """
        return find_state_dicts(_load(self.path))[self.key]


def open_checkpoint(path: str | Path, kinds: tuple[str, ...] = KINDS) -> CheckpointFile:
    """Check a file, and find GLIDE's state dict in it.

    The state dict may be the whole content or stand beside others, under keys such as `state_dict`, `model` or `ema`.
    Of several of the wanted kinds, an exponential moving average is taken; the choice is logged.

    Args:
        path (`str` or `Path`): A file that `torch.save` or safetensors wrote.
        kinds (`tuple[str, ...]`, defaults to all of `KINDS`): What it may be.

    Raises:
        ConversionError: if the file is missing, damaged or of another kind, or holds anything but tensors. Nothing in
            it is run, and no memory is taken for tensors that the file is too short for.
    """
    path = Path(path)
    _check_file(path)
    content = _load(path)
    if not isinstance(content, Mapping) or not content:
        raise ConversionError(f"a state dict is needed (names and tensors), the file holds a {type(content).__name__}")
    found = find_state_dicts(content)
    key, kind = choose_state_dict(content, found, kinds)
    for name, tensor in found[key].items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ConversionError(f"{name!r} is not an ordinary dense tensor")
    # Strides of 0 make a tensor of any size out of one number.
    if sum(tensor.nbytes for tensor in found[key].values()) > path.stat().st_size:
        raise ConversionError("the tensors would take more memory than the whole file has bytes")
    if key:
        others = [repr(other) for other in [*found, *unread_averages(content, found)] if other != key]
        beside = f", and left out {', '.join(others)}" if others else ""
        logger.log(logging.WARNING if others else logging.INFO, f"{path}: took the weights under {key!r}{beside}.")
    return CheckpointFile(path, kind, key)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_file(path: Path) -> None:
    """Find damage, and archives that would grow when they are unpacked, before anything is read into memory."""
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise ConversionError(f"the file cannot be read: {error.strerror}") from error
    if not _is_safetensors(head) and not head.startswith((_ZIP, _PICKLE)):
        raise ConversionError("this is not a checkpoint of PyTorch or safetensors")
    if _is_safetensors(head) or not head.startswith(_ZIP):
        return
    # The index of a zip file stands at its end.
    if not zipfile.is_zipfile(path):
        raise ConversionError("the file is cut short: its end is missing")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_records(archive.infolist(), path.stat().st_size)
            damaged = archive.testzip()
    except ConversionError:
        raise
    except Exception as error:  # what a damaged archive makes zipfile raise depends on the damage
        raise ConversionError(f"the file is damaged ({' '.join(str(error).split())})") from error
    if damaged is not None:
        raise ConversionError(f"the file is damaged: the checksum of {damaged!r} is not that of its bytes")


def _check_records(records: list[zipfile.ZipInfo], size: int) -> None:
    """An archive of so many bytes holds a state dict, and nothing that grows when it is unpacked."""
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise ConversionError("this is a TorchScript archive, which holds code; a state dict is needed")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ConversionError("it is compressed, which torch.save never does, and could unpack to any size")
    if sum(record.file_size for record in records) > size:
        raise ConversionError("its parts are larger than the file")


def _is_safetensors(head: bytes) -> bool:
    """Such a file begins with the length of a JSON object, eight bytes that may look like any other beginning, then the
    object; `torch.save` writes no brace there."""
    return head[8:9] == b"{"


def _load(path: Path) -> Any:
    """What a file holds, once [`_check_file`] has accepted it."""
    with open(path, "rb") as file:
        head = file.read(9)
    try:
        if _is_safetensors(head):
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=head.startswith(_ZIP))
    except UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+) (was not an allowed global|whose module)", str(error))
        raise ConversionError(
            f"the file holds something other than tensors{f' ({what.group(1)})' if what else ''}; it was not loaded, "
            "since that could run code; load it with the code that it is from, and save its state dict alone"
        ) from error
    except Exception as error:  # what a damaged file makes torch and safetensors raise depends on the damage
        raise ConversionError("the file is cut short or damaged, or not a state dict of PyTorch") from error
