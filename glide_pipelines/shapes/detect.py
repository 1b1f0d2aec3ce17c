"""Finds the objects of an image: background, regions, colours, and the shape that fits each region best."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .render import draw_shape
from .scene import BACKGROUNDS, COLOURS, SHAPES, SIZES


_BACKGROUND_REACH = 60.0  # of 255, distance in RGB up to which a background counts
_COLOUR_REACH = 80.0
_FOREGROUND = 50.0  # distance from the background from which a pixel is part of an object
_ONE_COLOUR = 40.0  # distance from the mixtures of background and object colour from which it is another object's
MIN_SIZE = 32  # pixels: the least width and height of an image
_MIN_AREA = 0.008  # 8 pixels of 32x32; the smallest object, a small star, covers 0.022
_MAX_MISFIT = 0.35  # share of a region by which the best shape may miss it
_SIZE_BORDER = (SIZES["small"][1] + SIZES["large"][0]) / 2
_TEMPLATE = 256


@dataclass(frozen=True)
class Found:
    """An object found in an image.

    Args:
        shape (`str`, *optional*): The best of `SHAPES`; `None` if none fits.
        colour (`str`, *optional*): The nearest of `COLOURS`; `None` if none is near.
        size (`str`): `"small"` or `"large"`.
        x, y (`float`): Middle of the bounding box of the shape, in units of the image's width and height.
        width (`float`): Side of that box, in units of the image's shorter side.
        area (`float`): What it covers, in units of the square of that side.
        misfit (`float`): Share of the region by which the best shape misses it; 0 is a perfect fit.
    """

    shape: str | None
    colour: str | None
    size: str
    x: float
    y: float
    width: float
    area: float
    misfit: float


@dataclass(frozen=True)
class Detection:
    """What an image shows.

    Args:
        background (`str`, *optional*): The one of `BACKGROUNDS` within 60 of 255 in RGB; `None` if there is none.
        objects (`tuple[Found, ...]`): The objects, from the left; specks with an area below 0.008 are left out.
    """

    background: str | None
    objects: tuple[Found, ...]


def detect(image: Image.Image | np.ndarray) -> Detection:
    """Finds the objects of an image.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): 32 pixels wide and high or more; arrays [H, W, 3] are uint8, or
            floating point in [0, 1].

    Raises:
        ValueError: if the image is of another kind.
    """
    pixels = _pixels(image)
    side = min(pixels.shape[:2])
    ring = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(ring, axis=0)
    name, distance = _nearest(ground, BACKGROUNDS)
    smallest = _MIN_AREA * side * side
    regions = []
    for region in _connected(np.linalg.norm(pixels - ground, axis=2) > _FOREGROUND, smallest):
        regions += _split_colours(pixels, region, ground, smallest)
    taken = np.zeros(pixels.shape[:2], dtype=int)
    for index, (region, _) in enumerate(regions, 1):
        taken[region] = index
    found = []
    for index, (region, colour) in enumerate(regions, 1):
        # Soft edges reach beyond the region, but not into another one.
        around = _grow(region, max(1, side // 32)) & ((taken == 0) | (taken == index))
        coverage = _coverage(pixels, ground, colour) * around
        found.append(_fit(coverage if coverage.sum() >= smallest / 2 else region.astype(float), colour))
    return Detection(
        name if distance <= _BACKGROUND_REACH else None, tuple(sorted(found, key=lambda item: (item.x, item.y)))
    )


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """Check an image and return its pixels [H, W, 3] as floats from 0 to 255, its shorter side 32 to 63."""
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    else:
        pixels = np.asarray(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"`image` must be an array of shape [H, W, 3], got {list(pixels.shape)}.")
        if pixels.dtype == np.uint8:
            pixels = pixels.astype(np.float32)
        elif np.issubdtype(pixels.dtype, np.floating):
            if not (pixels.min() >= -1e-3 and pixels.max() <= 1 + 1e-3):  # NaN fails too
                raise ValueError(f"`image` of floats must be in [0, 1], got {pixels.min()} to {pixels.max()}.")
            pixels = pixels.astype(np.float32) * 255
        else:
            raise ValueError(f"`image` must be of uint8 or floating point, got {pixels.dtype}.")
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"`image` must be at least {MIN_SIZE} pixels wide and high, got {width}x{height}.")
    factor = min(height, width) // 32
    if factor > 1:  # coverage is measured in shades, so that 32 pixels are enough, and averaging takes noise away
        rows, columns = height // factor, width // factor
        pixels = pixels[: rows * factor, : columns * factor]
        pixels = pixels.reshape(rows, factor, columns, factor, 3).mean(axis=(1, 3))
    return pixels


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> tuple[str, float]:
    distances = np.linalg.norm(np.array(list(palette.values())) - colour, axis=1)
    return list(palette)[distances.argmin()], float(distances.min())


def _connected(mask: np.ndarray, smallest: float) -> list[np.ndarray]:
    """The 8-connected regions of a mask [H, W] of at least `smallest` pixels, each a mask."""
    stride = mask.shape[1] + 2
    left = set(np.flatnonzero(np.pad(mask, 1)).tolist())
    steps = (-stride - 1, -stride, -stride + 1, -1, 1, stride - 1, stride, stride + 1)
    regions = []
    while left:
        waiting = [left.pop()]
        reached = waiting.copy()
        while waiting:
            here = waiting.pop()
            for step in steps:
                if here + step in left:
                    left.remove(here + step)
                    waiting.append(here + step)
                    reached.append(here + step)
        if len(reached) >= smallest:
            region = np.zeros((mask.shape[0] + 2) * stride, dtype=bool)
            region[reached] = True
            regions.append(region.reshape(-1, stride)[1:-1, 1:-1])
    return regions


def _split_colours(
    pixels: np.ndarray, region: np.ndarray, ground: np.ndarray, smallest: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Splits a region where objects of different colours touch. Gives (region, colour) pairs.

    Pixels at an edge mix object and background, and such a mixture can look like a third colour (red on white like
    pink), so a pixel belongs to another object only if no mixture explains it, and enough of them hang together.
    """
    values = pixels[region]
    away = np.linalg.norm(values - ground, axis=1)
    inner = values[away >= 0.8 * np.quantile(away, 0.9)]
    palette = np.array(list(COLOURS.values()))
    votes = np.linalg.norm(inner[:, None] - palette, axis=2).argmin(axis=1)
    colour = np.median(inner[votes == np.bincount(votes).argmax()], axis=0)
    mixture = ground + _coverage(pixels, ground, colour)[:, :, None] * (colour - ground)
    other = region & (np.linalg.norm(pixels - mixture, axis=2) > _ONE_COLOUR)
    others = _connected(other, smallest)
    if not others:
        return [(region, colour)]
    rest = region & ~np.any(others, axis=0)
    parts = [(part, colour) for part in _connected(rest, smallest)]
    for part in others:
        parts += _split_colours(pixels, part, ground, smallest) if part.sum() < region.sum() else [(part, colour)]
    return parts


def _coverage(pixels: np.ndarray, ground: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """How much of each pixel [H, W] an object of a colour covers, 0 to 1."""
    direction = colour - ground
    coverage = ((pixels - ground) @ direction / max(direction @ direction, 1.0)).clip(0, 1)
    coverage[coverage < 0.08] = 0  # noise
    return coverage


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * steps + 1))) > 0


def _fit(coverage: np.ndarray, colour: np.ndarray) -> Found:
    """Fits each shape by area and centre of mass, and takes the one that misses the coverage [H, W] least."""
    rows, columns = coverage.shape
    side = min(rows, columns)
    total = float(coverage.sum())
    mean_x = coverage.sum(axis=0) @ (np.arange(columns) + 0.5) / side / total
    mean_y = coverage.sum(axis=1) @ (np.arange(rows) + 0.5) / side / total
    area = total / side**2
    fits = []
    for shape in SHAPES:
        _, fill, (shift_x, shift_y) = _template(shape)
        width = (area / fill) ** 0.5
        x, y = mean_x - shift_x * width, mean_y - shift_y * width
        misfit = float(np.abs(coverage - _rendered(shape, x, y, width, coverage.shape)).sum()) / total
        fits.append((misfit, shape, float(x), float(y), float(width)))
    misfit, shape, x, y, width = min(fits, key=lambda fit: fit[0])
    name, distance = _nearest(colour, COLOURS)
    return Found(
        shape=shape if misfit <= _MAX_MISFIT else None,
        colour=name if distance <= _COLOUR_REACH else None,
        size="small" if width < _SIZE_BORDER else "large",
        x=x * side / columns,
        y=y * side / rows,
        width=width,
        area=area,
        misfit=misfit,
    )


@cache
def _template(shape: str) -> tuple[np.ndarray, float, tuple[float, float]]:
    """Summed image [T + 1, T + 1] of a shape that fills its box, the share of the box covered, the centre of mass."""
    canvas = Image.new("L", (_TEMPLATE, _TEMPLATE))
    draw_shape(ImageDraw.Draw(canvas), shape, _TEMPLATE / 2, _TEMPLATE / 2, _TEMPLATE, fill=1)
    mask = np.asarray(canvas, dtype=np.float64)
    middles = (np.arange(_TEMPLATE) + 0.5) / _TEMPLATE - 0.5
    centre = mask.sum(axis=0) @ middles / mask.sum(), mask.sum(axis=1) @ middles / mask.sum()
    return np.pad(mask.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0))), mask.mean(), centre


def _rendered(shape: str, x: float, y: float, width: float, size: tuple[int, int]) -> np.ndarray:
    """Coverage [H, W] of a shape, exactly averaged over each pixel from the summed template."""
    sums, _, _ = _template(shape)
    side = min(size)

    def between(middle: float, length: int) -> tuple[np.ndarray, np.ndarray]:
        at = (((np.arange(length + 1) / side - middle) / width + 0.5) * _TEMPLATE).clip(0, _TEMPLATE)
        lower = np.minimum(at.astype(int), _TEMPLATE - 1)
        return lower, at - lower

    row, row_share = between(y, size[0])
    rows = sums[row] * (1 - row_share[:, None]) + sums[row + 1] * row_share[:, None]
    column, column_share = between(x, size[1])
    corners = rows[:, column] * (1 - column_share) + rows[:, column + 1] * column_share
    return np.diff(np.diff(corners, axis=0), axis=1) * (side * width / _TEMPLATE) ** 2
