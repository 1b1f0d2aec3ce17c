"""Images: load every kind that users have, resize them alike, and scale pixels for the networks.

Every image becomes 8-bit PIL first, so that the same image gives the same result as a file, an array or a tensor.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.utils import logging
from PIL import Image, ImageOps


logger = logging.get_logger(__name__)

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def scale_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """From 0 to 255 to -1 to 1."""
    return pixels / 127.5 - 1


def unscale_pixels(sample: torch.Tensor) -> torch.Tensor:
    """From -1 to 1 to 0 to 255, not rounded."""
    return (sample + 1) * 127.5


def round_pixels(sample: torch.Tensor) -> torch.Tensor:
    """A sample in [-1, 1] as it would come back from an 8-bit image."""
    return scale_pixels(unscale_pixels(sample).round())


def images_to_tensor(images: Sequence[Image.Image | np.ndarray]) -> torch.Tensor:
    """RGB images of one size, with values from 0 to 255, as floats in [-1, 1] of shape `[B, 3, H, W]`."""
    return scale_pixels(torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).float())


def load_images(name: str, images: Any) -> list[Image.Image]:
    """Images as 8-bit RGB.

    Args:
        name (`str`): Of the argument, for error messages.
        images: An image or a list of them: PIL of any mode (transparent pixels become white, EXIF rotation is
            applied; `"F"` holds [0, 1], `"I"` and `"I;16"` hold 0 to 65535); numpy arrays `[H, W]`, `[H, W, C]` or
            `[B, H, W, C]`, uint8, uint16 or floats in [0, 1]; tensors `[C, H, W]` or `[B, C, H, W]`, of the same types
            or floats in [-1, 1]. `C` is 1 (grey), 3 or 4 (with alpha).

    Returns:
        `list[PIL.Image.Image]`

    Raises:
        TypeError, ValueError: naming the argument; also if an image has a single pixel.
    """
    singles = _as_list(name, images, _split_images)
    # As in diffusers: tensors may be in [-1, 1] too, told by a negative value anywhere among them.
    floats = [single for single in singles if isinstance(single, torch.Tensor) and single.is_floating_point()]
    signed = any(single.min() < 0 for single in floats)
    loaded = [_to_rgb(_to_pil(name, single, signed)) for single in singles]
    if any(image.size == (1, 1) for image in loaded):
        raise ValueError(f"`{name}` has a single pixel: there is nothing to see in it.")
    return loaded


def load_masks(name: str, masks: Any) -> list[Image.Image]:
    """Masks as 8-bit grey images; white (0.5 and above) means repaint.

    Args:
        name (`str`): Of the argument, for error messages.
        masks: A mask or a list of them: PIL of any mode, as in `load_images`; numpy arrays `[H, W]`, `[H, W, C]`,
            `[B, H, W]` or `[B, H, W, C]`; tensors `[H, W]`, `[B, H, W]` or `[B, 1, H, W]`; bool, uint8, uint16, or
            floats in [0, 1]. `C` is 1, 3 or 4 (alpha is ignored, as diffusers does, with a warning where that makes a
            hole of what is transparent).

    Returns:
        `list[PIL.Image.Image]` of mode `"L"`.

    Raises:
        TypeError, ValueError: naming the argument; also if one of the masks has nothing to repaint.
    """
    given = [_to_pil(name, single) for single in _as_list(name, masks, _split_masks)]
    loaded = [mask.convert("RGB").convert("L") for mask in given]
    for index, (mask, grey) in enumerate(zip(given, loaded, strict=True)):
        if _has_alpha(mask):
            alpha = np.asarray(mask.convert("RGBA"))[..., 3]
            if is_white(grey)[0][alpha == 0].any():
                logger.warning(
                    f"`{name}` {index} of {len(loaded)} is white where it is transparent, and is repainted there: its "
                    "colours count, its transparency does not."
                )
    _check_holes(name, loaded, "white, 255 of uint8 and 1 of floats, is what is repainted")
    return loaded


def resize_masks(name: str, masks: list[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    """Grey masks resized bicubically to `(height, width)`.

    Raises:
        ValueError: naming the argument, if one of them has nothing to repaint at that size.
    """
    height, width = size
    resized = [mask.resize((width, height), Image.Resampling.BICUBIC) for mask in masks]
    _check_holes(name, resized, f"what is white in it vanishes at the image's size of {height} x {width}")
    return resized


def check_mask_aspects(name: str, masks: list[Image.Image], images: list[Image.Image]) -> None:
    """A mask may have another size than its image, and is then stretched to it, but not another aspect ratio.

    Raises:
        ValueError: naming the argument, if the ratios differ by more than the rounding of a side to whole pixels.
    """
    for index, (mask, image) in enumerate(zip(masks, images, strict=True)):
        rounding = max(*mask.size, *image.size)
        if abs(image.width * mask.height - image.height * mask.width) > rounding:
            raise ValueError(
                f"`{name}` {index} of {len(masks)} must have the aspect ratio of its image, which has {image.height} x "
                f"{image.width} pixels, got {mask.height} x {mask.width}."
            )


def is_white(mask: Image.Image) -> torch.Tensor:
    """Where a grey mask is white, 0.5 and above, as booleans of shape `[1, H, W]`."""
    return torch.from_numpy(np.asarray(mask) >= 128)[None]


def _check_holes(name: str, masks: list[Image.Image], reason: str) -> None:
    for index, mask in enumerate(masks):
        if not is_white(mask).any():
            raise ValueError(f"`{name}` {index} of {len(masks)} has nothing to repaint: {reason}.")


def to_tensor(images: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """RGB images, resized bicubically to `(height, width)`, as floats in [-1, 1] of shape `[B, 3, height, width]`."""
    height, width = size
    return images_to_tensor([image.resize((width, height), Image.Resampling.BICUBIC) for image in images])


def to_mask_tensor(masks: list[Image.Image], size: tuple[int, int]) -> torch.Tensor:
    """Grey masks, resized bicubically and thresholded at 0.5, as 0 and 1 of shape `[B, 1, height, width]`.

    A mask whose holes are all too small for that keeps every cell that holds a part of them.
    """
    height, width = size

    def shrink(mask: Image.Image) -> torch.Tensor:
        shrunk = is_white(mask.resize((width, height), Image.Resampling.BICUBIC))
        # A base stage that repaints nothing would leave the hole to the upsampler.
        return shrunk.float() if shrunk.any() else F.adaptive_max_pool2d(is_white(mask).float(), size)

    return torch.stack([shrink(mask) for mask in masks])


def _as_list(name: str, given: Any, split: Callable[[str, Any], list[Any]]) -> list[Any]:
    """Single images out of one, a batch, or a list of them; `split` takes arrays and tensors apart."""
    if isinstance(given, list | tuple):
        if not given:
            raise ValueError(f"`{name}` must not be an empty list.")
        return [single for entry in given for single in _as_list(name, entry, split)]
    if isinstance(given, Image.Image):
        if 0 in given.size:
            raise ValueError(f"`{name}` has no pixels: its size is {given.width} x {given.height}.")
        return [given]
    if not isinstance(given, np.ndarray | torch.Tensor):
        hint = " `diffusers.utils.load_image` opens a file or a URL." if isinstance(given, str | os.PathLike) else ""
        raise TypeError(
            f"`{name}` must be a PIL image, a numpy array, a torch tensor or a list of them, got {given!r}.{hint}"
        )
    if 0 in given.shape:
        raise ValueError(f"`{name}` has no pixels: its shape is {list(given.shape)}.")
    return split(name, given.detach().cpu() if isinstance(given, torch.Tensor) else given)


def _split_images(name: str, given: np.ndarray | torch.Tensor) -> list[Any]:
    is_tensor = isinstance(given, torch.Tensor)
    if given.ndim == 2 and not is_tensor:
        return [given]
    if given.ndim not in (3, 4):
        raise ValueError(f"`{name}` must have 3 dimensions, or 4 with a batch, got {list(given.shape)}.")
    if given.shape[-3 if is_tensor else -1] not in _CHANNELS:
        where = "as a tensor must have 1, 3 or 4 channels first" if is_tensor else "must have 1, 3 or 4 channels last"
        raise ValueError(f"`{name}` {where}, got the shape {list(given.shape)}.")
    return [given] if given.ndim == 3 else list(given)


def _split_masks(name: str, given: np.ndarray | torch.Tensor) -> list[Any]:
    if isinstance(given, torch.Tensor):
        has_channels = given.ndim == 4 and given.shape[1] == 1
        given = given.squeeze(1) if has_channels else given
    else:
        # [H, W, 3] is a coloured mask; a batch of masks 3 pixels wide is none that anybody holds.
        has_channels = given.ndim > 2 and given.shape[-1] in _CHANNELS
        if has_channels and given.ndim in (3, 4):
            return [given] if given.ndim == 3 else list(given)
    if given.ndim not in (2, 3):
        raise ValueError(f"`{name}` must have 2 dimensions, or 3 with a batch, got {list(given.shape)}.")
    return [given] if given.ndim == 2 else list(given)


def _to_pil(name: str, image: Any, signed: bool = False) -> Image.Image:
    """One image in memory, upright, as 8-bit. `signed`: floating-point tensors are in [-1, 1]."""
    if isinstance(image, Image.Image):
        try:
            image = ImageOps.exif_transpose(image)
        except Exception as error:  # a file is read only now, and its decoder raises what it likes
            raise ValueError(f"`{name}` cannot be read: {error}") from error
        if image.mode in ("La", "RGBa"):  # premultiplied colours, which must become plain ones first
            return image.convert(image.mode.upper())
        if not image.mode.startswith(("I", "F")):
            return image
        image = np.asarray(image) if image.mode == "F" else _to_sixteen_bit(name, image)
    if isinstance(image, torch.Tensor):
        if image.is_floating_point():
            image = image.float()
            if signed:
                low, high = image.min().item(), image.max().item()
                if low < -1 or high > 1:
                    raise ValueError(
                        f"`{name}` must lie in [0, 1] or, as negative values say, in [-1, 1], got values from "
                        f"{low:.3g} to {high:.3g}."
                    )
                image = (image + 1) / 2
        image = (image.permute(1, 2, 0) if image.ndim == 3 else image).numpy()
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    return Image.fromarray(_to_bytes(name, image))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _to_rgb(image: Image.Image) -> Image.Image:
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_sixteen_bit(name: str, image: Image.Image) -> np.ndarray:
    """The values of a 16-bit file, which arrives as mode I;16 or, with room for more, as I."""
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if low < 0 or high > 65535:
        raise ValueError(f"`{name}` of mode {image.mode} must lie in [0, 65535], got values from {low} to {high}.")
    return values.astype(np.uint16)


def _to_bytes(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values / 257).round().astype(np.uint8)
    if values.dtype == bool:
        return values * np.uint8(255)
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"`{name}` must hold uint8, uint16 or floating-point values, got {values.dtype}.")
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` holds NaN or infinity.")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"`{name}` must lie in [0, 1], got values from {values.min():.3g} to {values.max():.3g}.")
    return (values * 255).round().astype(np.uint8)


def pad_to(images: list[Image.Image], size: tuple[int, int]) -> list[Image.Image]:
    """Images (or masks) grown to `(height, width)` by repeating their right and lower edges."""
    height, width = size

    def pad(image: Image.Image) -> Image.Image:
        missing = [(0, height - image.height), (0, width - image.width)]
        values = np.asarray(image)
        return Image.fromarray(np.pad(values, missing + [(0, 0)] * (values.ndim - 2), mode="edge"))

    return [pad(image) for image in images]


def common_size(
    name: str, images: list[Image.Image], advice: str = "pass `height` and `width`, or one size"
) -> tuple[int, int]:
    """`(height, width)` of images that must all have the same; `advice` ends the error if they do not.

    Raises:
        ValueError: if they differ.
    """
    sizes = sorted({(image.height, image.width) for image in images})
    if len(sizes) > 1:
        raise ValueError(
            f"`{name}` holds images of different sizes ({', '.join(f'{h} x {w}' for h, w in sizes)}); {advice}."
        )
    return sizes[0]


def one_per_sample(
    name: str, images: list[Image.Image], batch_size: int, num_images_per_prompt: int = 1
) -> list[Image.Image]:
    """One given image for each that is generated: a single one serves all prompts.

    Raises:
        ValueError: if there is neither one image nor one for each prompt.
    """
    if len(images) not in (1, batch_size):
        allowed = "as there is one prompt" if batch_size == 1 else f"or {batch_size}, as the prompts are"
        raise ValueError(f"`{name}` must be one image, {allowed}, got {len(images)}.")
    each = images * batch_size if len(images) == 1 else images
    return [image for image in each for _ in range(num_images_per_prompt)]


def crop_square(image: Image.Image, size: int, rng: np.random.Generator | None = None) -> Image.Image:
    """Scale an image until its shorter side is `size`, and crop a square: at random, or without `rng` the centre."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    left, top = (free // 2 if rng is None else int(rng.integers(free + 1)) for free in (width - size, height - size))
    return image.crop((left, top, left + size, top + size))
