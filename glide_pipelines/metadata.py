"""Images that remember how they were generated: a record in the file, for people, viewers and programs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from typing import Any

import torch
from diffusers import SchedulerMixin
from PIL import Image, PngImagePlugin


# Where the record stands in a PNG file: as text that viewers of other programs read too, and as JSON.
TEXT_CHUNK, JSON_CHUNK = "parameters", "glide"
# And in EXIF, in files of other formats: the JSON is the description, the text the comment.
IMAGE_DESCRIPTION, EXIF_IFD, USER_COMMENT = 0x010E, 0x8769, 0x9286
USER_COMMENT_ENCODING = b"UNICODE\0"
EXIF_FORMATS = ("JPEG", "WEBP", "TIFF", "AVIF")
# JPEG holds EXIF in one segment.
MAX_EXIF_BYTES = 65_000
PACKAGE = "glide-pipelines"


class MetadataError(ValueError):
    """A file has no record of how it was generated, or cannot take one."""


def save_options(record: dict[str, Any], image_format: str) -> dict[str, Any]:
    """What `PIL.Image.Image.save` takes to write a record into the file.

    Args:
        record (`dict`): Of values that JSON knows. [`parameters_text`] says which ones viewers are told of.
        image_format (`str`): Pillow's name of the file's format.

    Returns:
        `dict`: keyword arguments.

    Raises:
        MetadataError: if a file of that format cannot hold the record.
    """
    texts = text_chunks(record)
    if image_format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for name, text in texts.items():
            chunks.add_text(name, text)
        return {"pnginfo": chunks}
    if image_format not in EXIF_FORMATS:
        raise MetadataError(f"a {image_format} file cannot hold how it was generated; PNG, JPEG and WebP can")
    exif = Image.Exif()
    exif[IMAGE_DESCRIPTION] = texts[JSON_CHUNK]
    exif.get_ifd(EXIF_IFD)[USER_COMMENT] = USER_COMMENT_ENCODING + texts[TEXT_CHUNK].encode("utf-16-be")
    if image_format == "JPEG" and len(exif.tobytes()) > MAX_EXIF_BYTES:
        raise MetadataError("how it was generated is too long for a JPEG file; PNG and WebP can hold it")
    return {"exif": exif}


def text_chunks(record: dict[str, Any]) -> dict[str, str]:
    """The texts of a PNG file that hold a record, by name. In `info` of an image they are there for whatever saves it.

    Args:
        record (`dict`): As [`save_options`] takes it.
    """
    record = {"package": PACKAGE, **record}
    return {TEXT_CHUNK: parameters_text(record), JSON_CHUNK: json.dumps(record)}


def read_metadata(image: str | os.PathLike | Image.Image) -> dict[str, Any]:
    """The record that an image was saved with.

    Args:
        image (`str`, `os.PathLike` or `PIL.Image.Image`): A file, or an image as `PIL.Image.open` returns it.

    Returns:
        `dict`: The record, in which `package` is `"glide-pipelines"`.

    Raises:
        MetadataError: if it holds none.
        OSError: if it is no image.

    Examples:
        ```py
        >>> from glide_pipelines.metadata import read_metadata

        >>> read_metadata("image.png")["seed"]
        7
        ```
    """
    if not isinstance(image, Image.Image):
        with Image.open(image) as opened:
            return read_metadata(opened)
    data = getattr(image, "text", image.info).get(JSON_CHUNK) or image.getexif().get(IMAGE_DESCRIPTION, "")
    try:
        record = json.loads(data)
        if record["package"] == PACKAGE:
            return record
    except (TypeError, KeyError, ValueError, RecursionError):
        pass
    raise MetadataError(f"the image does not say how {PACKAGE} generated it")


def parameters_text(record: dict[str, Any]) -> str:
    """A record in the form that viewers of generated images read: the prompt, what to avoid, and the settings.

    Args:
        record (`dict`): It may have `prompt` (`str` or `list[str]`), `negative_prompt`, `steps` and `super_res_steps`
            (a number or a spacing), `scheduler` and `super_res_scheduler`, `guidance_scale`, `seed`, `num_images`,
            `size` (width and height), `model`, `fingerprints` (`dict`; its `model` is shown), `dtype` and `version`.

    Returns:
        `str`: two lines and a third with the negative prompt between them, if there is one.
    """
    prompts = record.get("prompt") or []
    settings = {
        "Steps": _count(record.get("steps")),
        "Sampler": record.get("scheduler") or record.get("scheduler_class"),
        "CFG scale": record.get("guidance_scale"),
        "Seed": record.get("seed"),
        "Size": "x".join(map(str, record["size"])) if record.get("size") else None,
        "Model hash": (record.get("fingerprints") or {}).get("model"),
        "Model": record.get("model"),
        "Hires steps": _count(record.get("super_res_steps")),
        "Hires sampler": record.get("super_res_scheduler") or record.get("super_res_scheduler_class"),
        "Denoising strength": record.get("strength"),
        "Batch size": record.get("num_images"),
        "Dtype": record.get("dtype"),
        "Version": f"{PACKAGE} {record.get('version', '')}".strip(),
    }
    lines = [prompts] if isinstance(prompts, str) else list(prompts)
    if record.get("negative_prompt"):
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items() if value is not None))
    # What is no text, or ends one in a PNG file, cannot be written.
    return "\n".join(lines).encode(errors="replace").decode().replace("\0", " ")


def _count(steps: int | str | None) -> int | None:
    """Steps of a number or a spacing: 27 of `"fast27"` and of `"10,10,3,2,2"`."""
    return None if steps is None else sum(map(int, re.findall(r"\d+", str(steps))))


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text) if re.search(r'[,:\n"]', text) else text


def fingerprint(components: Iterable[Any]) -> str:
    """A short name for what networks compute: other weights, or another noise schedule, have another one.

    It reads 64 values of each tensor, so that it takes no time; training changes them all.

    Args:
        components (`Iterable`): Of a pipeline: networks and schedulers count, in their order. The dtype of the weights
            counts too, as rounding changes them.

    Returns:
        `str`: ten hexadecimal digits.
    """
    digest = hashlib.sha256()
    for component in components:
        if isinstance(component, torch.nn.Module):
            for name, tensor in component.state_dict().items():
                values = tensor.flatten()
                places = torch.linspace(0, len(values) - 1, min(64, len(values)), dtype=torch.float64)
                picked = values[places.long()]
                digest.update(f"{name}{list(tensor.shape)}".encode())
                digest.update(picked.to("cpu", torch.float32).numpy().tobytes())
        elif isinstance(component, SchedulerMixin):
            # Names that begin with an underscore tell of versions and files.
            settings = {name: value for name, value in component.config.items() if not name.startswith("_")}
            for younger in ("trained_timesteps", "default_timesteps"):  # names that were given before them last
                if settings.get(younger) is None:
                    settings.pop(younger, None)
            digest.update(json.dumps([type(component).__name__, settings], sort_keys=True, default=str).encode())
    return digest.hexdigest()[:10]
