"""Judges an image against a caption: finds the objects, fits shapes to them and compares them with what is said."""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
from PIL import Image

from .captions import Caption, Mention, parse
from .detect import Detection, Found, detect
from .scene import is_at, is_related


_PLACE_SLACK = 0.03
_MAX_COMPARED = 6  # of more objects than this, the largest are compared with those that are said


@dataclass(frozen=True)
class ObjectVerdict:
    """Whether each said attribute of one object is right; `None` is unstated.

    Args:
        found (`Found`, *optional*): The object of the image that was taken for it; `None` if there is none left,
            and then every said attribute is wrong.
        colour, shape, size, place (`bool`, *optional*): Whether the attribute is right.
    """

    found: Found | None
    colour: bool | None
    shape: bool | None
    size: bool | None
    place: bool | None


@dataclass(frozen=True)
class Verdict:
    """The answer of `judge`, attribute by attribute; `None` is unstated.

    Args:
        background (`bool`, *optional*): Whether the background is within 60 of 255 in RGB of the one that is said.
        count (`bool`): Whether there are as many objects as are said.
        objects (`tuple[ObjectVerdict, ...]`): One for each object of the caption, in its order.
        relation (`bool`, *optional*): Whether the first object is on the said side of the second.
        detection (`Detection`): All that was found in the image.
    """

    background: bool | None
    count: bool
    objects: tuple[ObjectVerdict, ...]
    relation: bool | None
    detection: Detection

    @property
    def correct(self) -> bool:
        """Whether everything that the caption says is right."""
        return all(all(answers) for answers in self.attributes().values())

    def attributes(self) -> dict[str, list[bool]]:
        """The answers of the attributes that are said, for tallies: for instance `{"colour": [True, False], ...}`."""
        answers = {
            name: [getattr(item, name) for item in self.objects] for name in ("colour", "shape", "size", "place")
        }
        answers.update(relation=[self.relation], background=[self.background], count=[self.count])
        said = {name: [value for value in values if value is not None] for name, values in answers.items()}
        return {name: values for name, values in said.items() if values}


def judge(image: Image.Image | np.ndarray, caption: Caption | str) -> Verdict:
    """Judges an image against a caption. Objects of the image are matched to those of the caption in the way that
    makes most of their attributes right, and among such ways in one that makes the relation right.

    Args:
        image (`PIL.Image.Image` or `np.ndarray`): 32 pixels wide and high or more; arrays [H, W, 3] are uint8, or
            floating point in [0, 1].
        caption (`Caption` or `str`): What should be seen.

    Raises:
        ValueError: if the image is of another kind, or `parse` cannot read the text.
        TypeError: if `caption` is neither a caption nor a string.
    """
    wanted = caption if isinstance(caption, Caption) else parse(caption)
    if wanted is None:
        raise ValueError(f"`caption` must be about the shapes world, got {caption!r}.")
    detection = detect(image)
    candidates: list[Found | None] = []
    candidates += sorted(detection.objects, key=lambda item: -item.area)[:_MAX_COMPARED]
    candidates += [None] * (len(wanted.objects) - len(candidates))
    matches = []
    for chosen in permutations(candidates, len(wanted.objects)):
        objects = tuple(_compare(mention, found) for mention, found in zip(wanted.objects, chosen, strict=True))
        relation = None
        if wanted.relation:
            ends = [(found.x, found.y) for found in chosen[:2] if found]
            relation = len(ends) == 2 and is_related(wanted.relation, ends[0], ends[1], clearly=False)
        right = sum(answer is True for item in objects for answer in (item.colour, item.shape, item.size, item.place))
        # What an object is tells more about which one is meant than where it is.
        matches.append((2 * right + (relation is True), objects, relation))
    _, objects, relation = max(matches, key=lambda match: match[0])
    return Verdict(
        background=None if wanted.background is None else detection.background == wanted.background,
        count=len(detection.objects) == len(wanted.objects),
        objects=objects,
        relation=relation,
        detection=detection,
    )


def _compare(said: Mention, found: Found | None) -> ObjectVerdict:
    answers = {
        name: None if getattr(said, name) is None else found is not None and getattr(found, name) == getattr(said, name)
        for name in ("colour", "shape", "size")
    }
    place = None
    if said.place:
        place = found is not None and is_at(said.place, found.x, found.y, _PLACE_SLACK)
    return ObjectVerdict(found, **answers, place=place)
