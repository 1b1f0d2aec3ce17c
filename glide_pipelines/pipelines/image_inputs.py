"""Pictures and masks of every kind that users hold, made alike before anything is resized.

Everything becomes 8-bit PIL first: the same picture then gives the same result as a file, an array or a tensor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps


def load_images(name: str, images: Any) -> list[Image.Image]:
    """Pictures as 8-bit RGB.

    Args:
        name (`str`): Of the argument, for error messages.
        images: A picture or a list of them: PIL of any mode (transparent pixels become white, EXIF rotation is
            applied); numpy arrays `[H, W, 3]` or `[B, H, W, 3]`, uint8 or floats in [0, 1]; tensors `[3, H, W]` or
            `[B, 3, H, W]`, uint8 or floats in [0, 1] or [-1, 1].

    Returns:
        `list[PIL.Image.Image]`

    Raises:
        TypeError, ValueError: naming the argument.
    """
    return [_to_rgb(name, image) for image in _as_list(name, images, dims=3)]


def load_masks(name: str, masks: Any) -> list[Image.Image]:
    """Masks as 8-bit grey pictures; white (0.5 and above) means repaint.

    Args:
        name (`str`): Of the argument, for error messages.
        masks: A mask or a list of them: PIL of any mode; numpy arrays `[H, W]` or `[B, H, W]`; tensors `[H, W]`,
            `[1, H, W]`, or `[B, 1, H, W]`; bool, uint8, or floats in [0, 1].

    Returns:
        `list[PIL.Image.Image]` of mode `"L"`.

    Raises:
        TypeError, ValueError: naming the argument; also if one of the masks has nothing to repaint.
    """
    loaded = [_to_grey(name, mask) for mask in _as_list(name, masks, dims=2)]
    for index, mask in enumerate(loaded):
        if not (np.asarray(mask) >= 128).any():
            raise ValueError(f"`{name}` {index} of {len(loaded)} has nothing to repaint: white is what is repainted.")
    return loaded


def to_tensor(images: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """RGB pictures, resized bicubically to `(height, width)`, as floats in [-1, 1] of shape `[B, 3, height, width]`."""
    height, width = size
    resized = [np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_mask_tensor(masks: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """Grey masks, resized bicubically and thresholded at 0.5, as 0 and 1 of shape `[B, 1, height, width]`."""
    height, width = size
    resized = [np.asarray(mask.resize((width, height), Image.Resampling.BICUBIC)) for mask in masks]
    return (torch.from_numpy(np.stack(resized))[:, None] >= 128).float()


def _as_list(name: str, given: Any, dims: int) -> list[Any]:
    """Single pictures out of one, a batch, or a list of pictures; `dims` is how many dimensions one array has."""
    if isinstance(given, list | tuple):
        if not given:
            raise ValueError(f"`{name}` must not be an empty list.")
        return [single for entry in given for single in _as_list(name, entry, dims)]
    if isinstance(given, Image.Image):
        return [given]
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        if dims == 2 and given.ndim >= 3 and given.shape[-3] == 1:
            given = given.squeeze(-3)
    elif not isinstance(given, np.ndarray):
        raise TypeError(
            f"`{name}` must be a PIL image, a numpy array, a torch tensor or a list of them, got {given!r}."
        )
    elif dims == 2 and given.ndim >= 3 and given.shape[-1] == 1:
        given = given.squeeze(-1)
    if given.ndim == dims:
        return [given]
    if given.ndim == dims + 1:
        return list(given)
    raise ValueError(f"`{name}` must have {dims} dimensions, or {dims + 1} with a batch, got {list(given.shape)}.")


def _to_rgb(name: str, image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            return _sixteen_bit_to_grey(image).convert("RGB")
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return image.convert("RGB")
    if isinstance(image, torch.Tensor):
        if image.shape[0] != 3:
            raise ValueError(f"`{name}` as a tensor must have 3 channels first, got the shape {list(image.shape)}.")
        # As in diffusers: a tensor may be in [-1, 1] too, told by its negative values.
        if image.is_floating_point() and image.min() < 0:
            image = (image + 1) / 2
        image = (
            image.permute(1, 2, 0).numpy() if image.dtype != torch.bfloat16 else image.permute(1, 2, 0).float().numpy()
        )
    if image.shape[-1] != 3:
        raise ValueError(f"`{name}` as an array must have 3 channels last, got the shape {list(image.shape)}.")
    return Image.fromarray(_to_bytes(name, image))


def _to_grey(name: str, mask: Any) -> Image.Image:
    if isinstance(mask, Image.Image):
        mask = ImageOps.exif_transpose(mask)
        return _sixteen_bit_to_grey(mask) if mask.mode.startswith(("I", "F")) else mask.convert("RGB").convert("L")
    values = mask.float().numpy() if isinstance(mask, torch.Tensor) and mask.dtype != torch.uint8 else np.asarray(mask)
    return Image.fromarray(_to_bytes(name, values.astype(np.float32) if values.dtype == bool else values))


def _sixteen_bit_to_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    # 16-bit files arrive as modes I;16 and I; floats are taken as [0, 1].
    values = values * 255 if image.mode == "F" else values / 257
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _to_bytes(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"`{name}` must hold uint8 or floating-point values, got {values.dtype}.")
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` holds NaN or infinity.")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"`{name}` must lie in [0, 1], got values from {values.min():.3g} to {values.max():.3g}.")
    return (values * 255).round().astype(np.uint8)


def pad_to(images: list[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    """Pictures (or masks) grown to `(height, width)` by repeating their right and lower edges."""
    height, width = size

    def pad(image: Image.Image) -> Image.Image:
        missing = [(0, height - image.height), (0, width - image.width)]
        values = np.asarray(image)
        return Image.fromarray(np.pad(values, missing + [(0, 0)] * (values.ndim - 2), mode="edge"))

    return [pad(image) for image in images]


def common_size(name: str, images: list[Image.Image]) -> tuple[int, int]:
    """`(height, width)` of pictures that must all have the same.

    Raises:
        ValueError: if they differ.
    """
    sizes = sorted({(image.height, image.width) for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"`{name}` holds pictures of different sizes ({', '.join(f'{h} x {w}' for h, w in sizes)}); "
            "pass `height` and `width`, or one size."
        )
    return sizes[0]
