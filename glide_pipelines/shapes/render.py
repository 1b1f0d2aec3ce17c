"""Renders scenes."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .scene import BACKGROUNDS, COLOURS, Scene


_CANVAS = 512  # rendered without anti-aliasing at this size or above, and averaged down
_MAX_SIZE = 2048


def _star() -> np.ndarray:
    angles = np.pi * (np.arange(10) / 5 - 0.5)
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - (low + high) / 2) / (high - low)


# Corners in units of the bounding box, whose middle is (0, 0); each outline fills its box from side to side.
_OUTLINES: dict[str, np.ndarray] = {
    "square": np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]),
    "triangle": np.array([(0.0, -0.5), (0.5, 0.5), (-0.5, 0.5)]),
    "diamond": np.array([(0.0, -0.5), (0.5, 0.0), (0.0, 0.5), (-0.5, 0.0)]),
    "star": _star(),
    "cross": np.array(
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
    )
    / 6,
}


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, width: float, fill: int | tuple[int, int, int]
) -> None:
    """Draw one filled shape; the middle `x`, `y` and the `width` of its bounding box are in pixels."""
    # Pillow counts pixel centres from 0 and fills both ends of an outline, hence the half pixels.
    if shape == "circle":
        reach = width / 2 - 0.5
        x, y = x - 0.5, y - 0.5
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)
    else:
        points = _OUTLINES[shape] * (width - 1) + (x - 0.5, y - 0.5)
        draw.polygon([tuple(point) for point in points.tolist()], fill=fill)


def render(scene: Scene, size: int = 128) -> Image.Image:
    """Render a scene, anti-aliased.

    Args:
        scene (`Scene`): What to render.
        size (`int`): Width and height in pixels, 8 to 2048.

    Returns:
        `PIL.Image.Image`: RGB.

    Raises:
        ValueError: if `size` is out of its range.
    """
    return render_sizes(scene, (size,))[0]


def render_sizes(scene: Scene, sizes: Sequence[int] = (32, 128)) -> tuple[Image.Image, ...]:
    """Render a scene once and reduce the result to several sizes, so that a smaller image is the box average of a
    larger one, up to rounding, wherever its size divides the larger size.

    Args:
        scene (`Scene`): What to render.
        sizes (`Sequence[int]`): Widths in pixels, 8 to 2048 each.

    Returns:
        `tuple[PIL.Image.Image, ...]`: RGB, one for each size.

    Raises:
        ValueError: if one of `sizes` is out of its range.
    """
    for size in sizes:
        if not isinstance(size, int) or not 8 <= size <= _MAX_SIZE:
            raise ValueError(f"`size` must be a whole number from 8 to {_MAX_SIZE}, got {size!r}.")
    # A canvas that every size divides, if that is not too large; at least four samples a pixel on each axis.
    common = math.lcm(*sizes)
    common = common if common <= _MAX_SIZE else max(sizes)
    side = common * math.ceil(max(_CANVAS, 4 * max(sizes)) / common)
    canvas = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    draw = ImageDraw.Draw(canvas)
    for item in scene.objects:
        draw_shape(draw, item.shape, item.x * side, item.y * side, item.width * side, COLOURS[item.colour])
    return tuple(_reduce(canvas, size) for size in sizes)


def _reduce(canvas: Image.Image, size: int) -> Image.Image:
    if canvas.width % size == 0:
        return canvas.reduce(canvas.width // size)
    return canvas.resize((size, size), Image.Resampling.BOX)
