"""Scenes of the shapes world: one to three coloured shapes on a plain background, and how they are sampled."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np


SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "star", "cross")
# Every pair of entries, backgrounds included, lies at least 90 of 255 apart in RGB, so that a colour can be judged.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 230),
    "yellow": (250, 225, 40),
    "orange": (255, 130, 0),
    "purple": (130, 40, 190),
    "cyan": (40, 210, 230),
    "pink": (255, 105, 200),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"white": (255, 255, 255), "black": (0, 0, 0), "gray": (128, 128, 128)}
# Widths in units of the image: 8.3 to 9.6 pixels and 11.8 to 13.4 pixels of a 32 pixel image.
SIZES: dict[str, tuple[float, float]] = {"small": (0.26, 0.30), "large": (0.37, 0.42)}
# Side of the middle on the horizontal and the vertical axis: -1, 0 (in the middle), 1, or None (anywhere).
PLACES: dict[str, tuple[int | None, int | None]] = {
    "top left": (-1, -1),
    "top right": (1, -1),
    "bottom left": (-1, 1),
    "bottom right": (1, 1),
    "top": (None, -1),
    "bottom": (None, 1),
    "left": (-1, None),
    "right": (1, None),
    "centre": (0, 0),
}
RELATIONS: tuple[str, ...] = ("above", "below", "left of", "right of")

BORDER = 0.03  # free space between an object and the border
GAP = 0.065  # free space between two objects: 2 pixels of 32, so that a background pixel always lies between them
HELD_OUT_SHARE = 10  # one combination in this many is kept from training
NUM_OBJECTS_SHARES = (0.4, 0.4, 0.2)  # of scenes of one, two and three objects
_CENTRED_SHARE = 0.12  # of the scenes with one object, which would otherwise hardly ever be in the centre


@dataclass(frozen=True)
class Object:
    """One shape of a scene.

    Args:
        shape (`str`): One of `SHAPES`.
        colour (`str`): One of `COLOURS`.
        size (`str`): `"small"` or `"large"`.
        x (`float`): Middle of the bounding box from the left, in units of the image, 0 to 1.
        y (`float`): Middle of the bounding box from the top, in units of the image, 0 to 1.
        width (`float`, *optional*): Side of the square bounding box, in units of the image; within `SIZES[size]`,
            by default its middle.

    Raises:
        ValueError: if a name is unknown, or the object leaves the image.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    width: float = cast(float, None)  # the middle of its range, set below

    def __post_init__(self) -> None:
        for name, allowed in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES)):
            check_choice(name, getattr(self, name), allowed)
        low, high = SIZES[self.size]
        if self.width is None:
            object.__setattr__(self, "width", (low + high) / 2)
        if not low <= self.width <= high:
            raise ValueError(f"`width` of a {self.size} object must be between {low} and {high}, got {self.width}.")
        for name, value in (("x", self.x), ("y", self.y)):
            if not self.width / 2 <= value <= 1 - self.width / 2:
                raise ValueError(f"`{name}` must keep the object of width {self.width} in the image, got {value}.")


@dataclass(frozen=True)
class Scene:
    """An image's content.

    Args:
        objects (`tuple[Object, ...]`): One to three objects.
        background (`str`): One of `BACKGROUNDS`.

    Raises:
        ValueError: if the background is unknown, or there is another number of objects.
    """

    objects: tuple[Object, ...]
    background: str = "white"

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        check_choice("background", self.background, BACKGROUNDS)
        if not 1 <= len(self.objects) <= 3:
            raise ValueError(f"`objects` must hold one to three objects, got {len(self.objects)}.")

    @property
    def combination(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What decides the split: the background and the sorted (colour, shape) pairs of the objects."""
        return self.background, tuple(sorted((item.colour, item.shape) for item in self.objects))

    @property
    def held_out(self) -> bool:
        """Whether the combination is one of the one in ten that training never sees."""
        return is_held_out(self.combination)


def check_shares(argument: str, shares: Sequence[float]) -> None:
    """Raises a `ValueError` that names the argument, unless it holds three shares that make up the whole."""
    if len(shares) != 3 or min(shares) < 0 or not np.isclose(sum(shares), 1):
        raise ValueError(f"`{argument}` must be three shares whose sum is 1, got {tuple(shares)}.")


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    """Raises a `ValueError` that names the argument unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def is_held_out(combination: tuple[str, tuple[tuple[str, str], ...]]) -> bool:
    """Whether a combination is held out: the same answer in every process, on every machine, for good."""
    background, pairs = combination
    text = ";".join([background, *(" ".join(pair) for pair in pairs)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0


def is_at(place: str, x: float, y: float, slack: float = 0.0) -> bool:
    """Whether a position is clearly at a place.

    Args:
        place (`str`): One of `PLACES`.
        x, y (`float`): The position, in units of the image.
        slack (`float`): How much less clear it may be. Captions use 0, the judge 0.03, where both still tell any
            two places apart.
    """
    for side, value in zip(PLACES[place], (x - 0.5, y - 0.5), strict=True):
        if side == 0 and abs(value) > 0.06 + slack:
            return False
        if side and side * value < 0.12 - slack:
            return False
    return True


def is_related(relation: str, first: tuple[float, float], second: tuple[float, float], clearly: bool = True) -> bool:
    """Whether the first position is above, below, left of or right of the second. At most one relation holds: the
    distance along its axis must be the larger one.

    Args:
        relation (`str`): One of `RELATIONS`.
        first, second (`tuple[float, float]`): Positions (x, y), in units of the image.
        clearly (`bool`): Asks for a distance of 0.2 that is 1.25 times that along the other axis (captions), rather
            than 0.1 and 1 (the judge).
    """
    dx, dy = second[0] - first[0], second[1] - first[1]
    along = {"above": dy, "below": -dy, "left of": dx, "right of": -dx}[relation]
    across = abs(dx if relation in ("above", "below") else dy)
    distance, ratio = (0.2, 1.25) if clearly else (0.1, 1.0)
    return along >= distance and along > ratio * across


def sample_scene(
    rng: np.random.Generator,
    held_out: bool | None = False,
    num_objects: int | None = None,
    num_objects_shares: Sequence[float] = NUM_OBJECTS_SHARES,
) -> Scene:
    """Samples a scene: objects of different (colour, shape) pairs that do not touch one another or the border. Of three
    objects at most one is large, since more would leave no choice of where to put them.

    Args:
        rng (`np.random.Generator`): Where the randomness comes from.
        held_out (`bool`, *optional*): `False` samples combinations for training, `True` those kept from training,
            `None` any.
        num_objects (`int`, *optional*): 1, 2 or 3; sampled by default.
        num_objects_shares (`Sequence[float]`, defaults to (0.4, 0.4, 0.2)): How often one, two and three are sampled.

    Raises:
        ValueError: if an argument is out of its range.
    """
    check_choice("held_out", held_out, (False, True, None))
    check_choice("num_objects", num_objects, (None, 1, 2, 3))
    check_shares("num_objects_shares", num_objects_shares)
    count = num_objects if num_objects is not None else int(rng.choice(3, p=num_objects_shares)) + 1
    colours, backgrounds = tuple(COLOURS), tuple(BACKGROUNDS)
    while True:
        background = backgrounds[rng.integers(len(backgrounds))]
        codes = [int(code) for code in rng.integers(len(colours) * len(SHAPES), size=count)]
        if len(set(codes)) < count:
            continue
        pairs = [(colours[code // len(SHAPES)], SHAPES[code % len(SHAPES)]) for code in codes]
        if held_out is None or is_held_out((background, tuple(sorted(pairs)))) == held_out:
            break
    large = rng.random(count) < 0.5
    if count == 3:
        large = np.arange(3) == rng.integers(6)  # no large one in half of the scenes
    sizes = ["large" if flag else "small" for flag in large]
    widths = np.array([rng.uniform(*SIZES[size]) for size in sizes])
    xs, ys = _place(rng, widths)
    objects = (
        Object(shape, colour, size, float(x), float(y), float(width))
        for (colour, shape), size, x, y, width in zip(pairs, sizes, xs, ys, widths, strict=True)
    )
    return Scene(tuple(objects), background)


def _place(rng: np.random.Generator, widths: np.ndarray) -> np.ndarray:
    """Sample centres [2, number of objects] whose bounding boxes keep `BORDER` and `GAP`."""
    if len(widths) == 1 and rng.random() < _CENTRED_SHARE:
        return 0.5 + rng.uniform(-0.06, 0.06, size=(2, 1))
    low = BORDER + widths / 2
    first, second = np.triu_indices(len(widths), 1)
    needed = (widths[first] + widths[second]) / 2 + GAP
    while True:  # many layouts at a time: for two large objects about one in twelve will do
        centres = low + (1 - 2 * low) * rng.random((48, 2, len(widths)))
        apart = (np.abs(centres[:, :, first] - centres[:, :, second]) >= needed).any(axis=1).all(axis=1)
        if apart.any():
            return centres[apart.argmax()]
