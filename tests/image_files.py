"""Folders of captioned images, and images as files."""

import io
import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, features


def captioned_folder(folder: Path, images: Iterable[Image.Image], **captions: Iterable[Any]) -> Path:
    """`0.png`, `1.png` and so on, and a `metadata.jsonl` with their captions in columns of these names."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index, (image, *values) in enumerate(zip(images, *captions.values(), strict=True)):
        image.save(folder / f"{index}.png")
        rows.append({"file_name": f"{index}.png", **dict(zip(captions, values, strict=True))})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def noise(spread: int = 40) -> Image.Image:
    """A small image that no other one is like."""
    return Image.effect_noise((24, 16), spread).convert("RGB")


def noise_folder(folder: Path, count: int = 6) -> Path:
    """A captioned folder of noise."""
    numbers = range(count)
    return captioned_folder(folder, [noise(40 + n) for n in numbers], text=[f"caption {n}" for n in numbers])


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it has millions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def damaged_exif() -> bytes:
    """A PNG whose EXIF is cut short; Pillow raises a struct.error for it."""
    file = io.BytesIO()
    noise().save(file, "PNG", exif=b"Exif\0\0II*\0")
    return file.getvalue()


def damaged_avif() -> bytes:
    """An AVIF whose headers are whole, and nothing else; Pillow raises a RuntimeError for its pixels."""
    if not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    file = io.BytesIO()
    noise().save(file, "AVIF")
    headers, marker, pixels = file.getvalue().partition(b"mdat")
    return headers + marker + bytes(len(pixels))
