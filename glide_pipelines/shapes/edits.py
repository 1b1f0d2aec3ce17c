"""Edits of scenes: another object asked for in the place of one, and a judge of the resulting image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .captions import Caption, Mention
from .dataset import ShapesWorld
from .detect import Found, detect
from .judge import judge
from .scene import BORDER, COLOURS, SHAPES, Object, Scene


# How far the mask reaches beyond the object: to the border at most, and not half way to another object. A pixel of 32
# that the mask cuts is still between them.
MARGIN = BORDER
_NEAR = 0.05  # distance along an axis, in units of the image, up to which an object is where it was


@dataclass(frozen=True)
class Edit:
    """An edit that a model is asked for: one object of a scene gives way to another.

    Args:
        scene (`Scene`): What the image shows before.
        index (`int`): Which of its objects is replaced.
        new (`Object`): What is asked for there.
    """

    scene: Scene
    index: int
    new: Object

    @property
    def after(self) -> Scene:
        """What the image shows after a perfect edit."""
        objects = list(self.scene.objects)
        objects[self.index] = self.new
        return replace(self.scene, objects=tuple(objects))

    @property
    def caption(self) -> Caption:
        """The whole image afterwards: colour and shape of each object, the new one first, and the background."""
        others = self.scene.objects[: self.index] + self.scene.objects[self.index + 1 :]
        mentions = (Mention(item.shape, item.colour) for item in (self.new, *others))
        return Caption(tuple(mentions), background=self.scene.background)

    def mask(self, size: int) -> Image.Image:
        """A square around the object that is replaced, `MARGIN` larger on each side and rounded up to whole pixels.

        Args:
            size (`int`): Width and height of the mask in pixels.

        Returns:
            `PIL.Image.Image`: of mode `"L"`, white inside.
        """
        mask = Image.new("L", (size, size))
        old = self.scene.objects[self.index]
        reach = old.width / 2 + MARGIN
        left, top = (max(math.floor((middle - reach) * size), 0) for middle in (old.x, old.y))
        right, lower = (min(math.ceil((middle + reach) * size), size) for middle in (old.x, old.y))
        mask.paste(255, (left, top, right, lower))
        return mask

    def covers(self, found: Found) -> bool:
        """Whether the middle of an object lies in the mask."""
        old = self.scene.objects[self.index]
        return max(abs(found.x - old.x), abs(found.y - old.y)) <= old.width / 2 + MARGIN


@dataclass(frozen=True)
class EditVerdict:
    """The answer of `judge_edit`.

    Args:
        colour, shape (`bool`): Whether the (largest) object in the mask has the one that is asked for.
        new_object (`bool`): Whether it has both, and no other object is in the mask.
        caption (`bool`): Whether the whole image is as the caption says, wherever the objects are.
        others (`tuple[bool, ...]`): For each object that the mask leaves out: whether it is judged as before, in
            colour, shape, size and position.
        untouched (`bool`): Whether every pixel outside the mask is the same, to the bit.
        difference (`float`): Mean absolute difference of the pixels outside the mask, 0 to 1.
    """

    colour: bool
    shape: bool
    new_object: bool
    caption: bool
    others: tuple[bool, ...]
    untouched: bool
    difference: float


def sample_edits(count: int, seed: int = 0) -> list[Edit]:
    """Samples edits of held-out scenes. One object, chosen at random, is replaced by one of another colour and another
    shape, of the same size and in the same place; the resulting scene is held out too.

    Args:
        count (`int`): How many; a longer list begins as a shorter one does.
        seed (`int`): Of the scenes and of the edits.
    """
    world = ShapesWorld(seed, held_out=True)
    rng = np.random.default_rng((seed, 1))
    edits: list[Edit] = []
    number = 0
    while len(edits) < count:
        choices = _choices(world.scene(number), rng)
        if choices:  # in a few scenes no replacement is held out
            edits.append(choices[rng.integers(len(choices))])
        number += 1
    return edits


def _choices(scene: Scene, rng: np.random.Generator) -> list[Edit]:
    index = int(rng.integers(len(scene.objects)))
    old = scene.objects[index]
    present = {(item.colour, item.shape) for item in scene.objects}
    edits = [
        Edit(scene, index, replace(old, colour=colour, shape=shape))
        for colour in COLOURS
        for shape in SHAPES
        if colour != old.colour and shape != old.shape and (colour, shape) not in present
    ]
    return [edit for edit in edits if edit.after.held_out]


def judge_edit(edit: Edit, before: Image.Image, after: Image.Image) -> EditVerdict:
    """Judges what a model made of an edit.

    Args:
        edit (`Edit`): What was asked for.
        before, after (`PIL.Image.Image`): The image that was given and the one that came back: of the same size, 32
            pixels wide and high or more. In one that is not square the scene is what [`framed`] makes of it: the
            caption and what is untouched are judged on the whole image, objects and their places in its middle.

    Raises:
        ValueError: if the images' sizes differ, or `judge` does not take them.
    """
    if before.size != after.size:
        raise ValueError(f"`after` must have the size of `before`, {before.size}, got {after.size}.")
    middle = _middle(*before.size)
    found = detect(after.crop(middle)).objects
    inside = [item for item in found if edit.covers(item)]
    largest = max(inside, key=lambda item: item.area, default=None)
    colour = largest is not None and largest.colour == edit.new.colour
    shape = largest is not None and largest.shape == edit.new.shape
    left_out = np.asarray(framed(edit.mask(min(before.size)), *before.size, 0)) == 0
    difference = np.abs(_pixels(after) - _pixels(before))[left_out]
    return EditVerdict(
        colour=colour,
        shape=shape,
        new_object=colour and shape and len(inside) == 1,
        caption=judge(after, edit.caption).correct,
        others=tuple(_is_among(item, found) for item in detect(before.crop(middle)).objects if not edit.covers(item)),
        untouched=not difference.any(),
        difference=float(difference.mean()) / 255,
    )


def framed(image: Image.Image, width: int, height: int, colour: int | tuple[int, int, int]) -> Image.Image:
    """A square image in the middle of one of one colour, whose shorter side is as long."""
    frame = Image.new(image.mode, (width, height), colour)
    frame.paste(image, _middle(width, height))
    return frame


def _middle(width: int, height: int) -> tuple[int, int, int, int]:
    """The box of the largest square in the middle of an image: left, top, right, lower."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


def _is_among(item: Found, found: Sequence[Found]) -> bool:
    """Whether an object is found again: of the same colour, shape and size, and in the same place."""
    return any(
        (other.colour, other.shape, other.size) == (item.colour, item.shape, item.size)
        and max(abs(other.x - item.x), abs(other.y - item.y)) <= _NEAR
        for other in found
    )
