"""Colours: those put behind a picture, and the one that a thing has."""

from __future__ import annotations

import colorsys
from itertools import product

import numpy as np
from PIL import Image


# Behind a picture, beside white; pale enough that most things stand out.
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "blue": (120, 170, 240),
    "green": (140, 205, 140),
    "yellow": (250, 225, 120),
    "pink": (250, 180, 205),
    "grey": (170, 170, 170),
    "black": (20, 20, 24),
}

# A thing has a colour when so much of it has.
_SHARE = 0.72


def name_of_colour(picture: Image.Image) -> str | None:
    """The colour of a thing, where it has one.

    Args:
        picture (`PIL.Image.Image`): The thing on transparent ground.

    Returns:
        `str`, *optional*: A colour that 72 % of the opaque pixels have; `None` for things of several colours, and for
        those between two.
    """
    pixels = np.asarray(picture.convert("RGBA").resize((64, 64), Image.Resampling.BOX)).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 200, :3]
    if len(opaque) == 0:
        return None
    names, counts = np.unique(_NAMES[tuple((opaque >> 3).T)], return_counts=True)
    most = int(counts.argmax())
    found = str(names[most])
    return found if found and counts[most] >= _SHARE * len(opaque) else None


def _name(red: float, green: float, blue: float) -> str:
    """The name of one colour of values from 0 to 1; empty where people would not agree."""
    hue, lightness, _ = colorsys.rgb_to_hls(red, green, blue)
    chroma = max(red, green, blue) - min(red, green, blue)
    degrees = 360 * hue
    if lightness < 0.17 or (lightness < 0.33 and chroma < 0.25):
        return "black"
    if chroma < 0.13:
        return "white" if lightness > 0.85 else "grey" if lightness < 0.72 else ""
    if degrees >= 335 or degrees < 14:
        return "pink" if lightness > 0.68 else "red" if chroma > 0.45 else "brown" if degrees < 14 else ""
    if degrees < 45 and (lightness < 0.38 or chroma < 0.5):
        return "brown" if lightness < 0.6 else ""
    for limit, name in (
        (20, ""),
        (36, "orange" if chroma > 0.65 else ""),
        (42, ""),
        (62, "yellow"),
        (75, ""),
        (165, "green"),
        (190, ""),
        (238, "blue"),
        (252, ""),
        (292, "purple"),
        (305, ""),
    ):
        if degrees < limit:
            return name
    return "pink"


# Names by the upper five bits of red, green and blue.
_NAMES = np.array([_name(*((v + 0.5) / 32 for v in rgb)) for rgb in product(range(32), repeat=3)]).reshape(32, 32, 32)
