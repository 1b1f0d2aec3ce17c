"""Random masks, for training to inpaint."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw


SHARES = {"rectangles": 0.5, "strokes": 0.35, "whole": 0.1, "none": 0.05}


def random_mask(
    rng: np.random.Generator, height: int, width: int, proportion_whole: float = SHARES["whole"]
) -> torch.Tensor:
    """A random mask of the part of an image that is to be repainted.

    The paper erases "random regions" (arXiv 2112.10741, section 3.2) and says no more; this is the package's choice:

    | kind | share | what is repainted |
    |---|---|---|
    | rectangles | 50 % | one or two, anywhere, each side a fifth to seven tenths of the image's |
    | strokes | 35 % | one to three through two to five points, 1/16 to 1/4 of the image wide |
    | whole | 10 % | everything: text to image |
    | none | 5 % | nothing |

    Args:
        rng (`np.random.Generator`): Source of the randomness.
        height, width (`int`): Size of the mask, in pixels.
        proportion_whole (`float`, defaults to 0.1): Share of the masks that repaint everything, 0 to 1; the others keep
            their shares of the rest. A model that is to make images from text as well as it did needs a half or so.

    Returns:
        `torch.Tensor` of shape `[1, height, width]`: 1 = repaint, 0 = keep.
    """
    shares = np.array(list(SHARES.values()))
    is_whole = np.array([kind == "whole" for kind in SHARES])
    shares[~is_whole] *= (1 - proportion_whole) / shares[~is_whole].sum()
    shares[is_whole] = proportion_whole
    kind = rng.choice(list(SHARES), p=shares)
    mask = Image.new("L", (width, height), 1 if kind == "whole" else 0)
    if kind == "rectangles":
        _draw_rectangles(ImageDraw.Draw(mask), rng, mask.size)
    elif kind == "strokes":
        _draw_strokes(ImageDraw.Draw(mask), rng, mask.size)
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None]


def _draw_rectangles(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: tuple[int, int]) -> None:
    for _ in range(rng.integers(1, 3)):
        sides = [max(1, round(rng.uniform(0.2, 0.7) * side)) for side in size]
        start = [int(rng.integers(whole - side + 1)) for whole, side in zip(size, sides, strict=True)]
        draw.rectangle((*start, start[0] + sides[0] - 1, start[1] + sides[1] - 1), fill=1)


def _draw_strokes(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: tuple[int, int]) -> None:
    for _ in range(rng.integers(1, 4)):
        points = [tuple(rng.uniform(0, side) for side in size) for _ in range(rng.integers(2, 6))]
        brush = max(1, round(rng.uniform(1 / 16, 1 / 4) * min(size)))
        draw.line(points, fill=1, width=brush, joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - brush / 2, y - brush / 2, x + brush / 2, y + brush / 2), fill=1)
