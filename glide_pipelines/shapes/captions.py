"""Captions of the shapes world: what is said of a scene, how it is worded, and how a text is read back."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .scene import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    check_choice,
    is_at,
    is_related,
)


@dataclass(frozen=True)
class Mention:
    """What a caption says of one object; `None` is unstated.

    Args:
        shape (`str`, *optional*): One of `SHAPES`.
        colour (`str`, *optional*): One of `COLOURS`.
        size (`str`, *optional*): One of `SIZES`.
        place (`str`, *optional*): One of `PLACES`.
    """

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES), ("place", PLACES)):
            check_choice(name, getattr(self, name), (None, *allowed))


@dataclass(frozen=True)
class Caption:
    """What is said of a scene. The number of objects is always said, by naming each.

    Args:
        objects (`tuple[Mention, ...]`): One to three objects, in the order of the text.
        relation (`str`, *optional*): One of `RELATIONS`, from the first object to the second.
        background (`str`, *optional*): One of `BACKGROUNDS`.
        text (`str`, *optional*): The wording; by default the plainest one. Not part of what captions are compared by.
    """

    objects: tuple[Mention, ...]
    relation: str | None = None
    background: str | None = None
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(self.objects))
        if not 1 <= len(self.objects) <= 3:
            raise ValueError(f"`objects` must hold one to three mentions, got {len(self.objects)}.")
        check_choice("relation", self.relation, (None, *RELATIONS))
        check_choice("background", self.background, (None, *BACKGROUNDS))
        if self.relation and len(self.objects) == 1:
            raise ValueError(f"`relation` needs two objects, got {self.relation!r} with one.")
        if not self.text:
            object.__setattr__(self, "text", _word(self))

    def __str__(self) -> str:
        return self.text


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """Samples a caption that is clearly true of the scene, with some attributes left unstated.

    Args:
        scene (`Scene`): What to describe.
        rng (`np.random.Generator`): Decides what is said, in which order and how it is worded.
    """
    objects = [scene.objects[index] for index in rng.permutation(len(scene.objects))]
    relation = None
    if len(objects) > 1 and rng.random() < 0.65:
        first, second = ((item.x, item.y) for item in objects[:2])
        relation = next((name for name in RELATIONS if is_related(name, first, second)), None)
    background = scene.background if rng.random() < 0.6 else None
    # Places come without a relation, and once at most among three objects: it keeps the captions short.
    place_chance = (0.5, 0.35, 0.15)[len(objects) - 1] if relation is None else 0.0
    mentions, places = [], 0
    for item in objects:
        place = None
        if rng.random() < place_chance and not (len(objects) == 3 and places):
            place = _sample_place(item, rng)
            places += place is not None
        colour, shape = item.colour, item.shape
        choice = rng.random()  # at least one of the two is said
        if choice < 0.1:
            colour = None
        elif choice < 0.2:
            shape = None
        mentions.append(Mention(shape, colour, item.size if rng.random() < 0.4 else None, place))
    plain = Caption(tuple(mentions), relation, background)
    return Caption(plain.objects, plain.relation, plain.background, _word(plain, rng))


def describe_fully(scene: Scene) -> Caption:
    """The caption that states every attribute except positions: shape, colour and size of every object, in alphabetical
    order, and the background. Scenes with the same objects and background share it, and it is true of no others.

    Args:
        scene (`Scene`): What to describe.
    """
    objects = sorted((item.colour, item.shape, item.size) for item in scene.objects)
    mentions = tuple(Mention(shape, colour, size) for colour, shape, size in objects)
    return Caption(mentions, None, scene.background)


def parse(text: str) -> Caption | None:
    """Reads a text of the captions' grammar, whatever its case, articles and commas.

    Args:
        text (`str`): For example `"A red circle to the left of the blue square, on white"`.

    Returns:
        `Caption`, *optional*: its `text` is the one given; `None` where the text is not about the shapes world.

    Raises:
        TypeError: if `text` is not a string.
    """
    if not isinstance(text, str):
        raise TypeError(f"`text` must be a string, got {type(text).__name__}.")
    plain = " ".join(re.sub(r"([,;])", " , ", text.lower()).replace("-", " ").split()).rstrip(" .!")
    mentions, relation, position = [], None, 0
    while True:
        match = _MENTION.match(plain, position)
        if match is None:
            return None
        mentions.append(_mention(**match.groupdict()))
        link = _LINK.match(plain, match.end())
        if link is None:
            break
        position = link.end()
        if link["relation"]:
            if len(mentions) > 1:
                return None  # a relation holds between the first object and the second
            relation = link["relation"]
    ground = _BACKGROUND.fullmatch(plain, match.end())
    if ground is None or not _in_world(mentions):
        return None
    background = ground["name"] and ground["name"].replace("grey", "gray")
    return Caption(tuple(mentions), relation, background, text)


def knows(text: str) -> bool:
    """Whether a text is a caption of the shapes world, that is, one that `parse` can read."""
    return parse(text) is not None


def prompt_warning(text: str) -> str | None:
    """What a checkpoint of this world says of a prompt that is outside it; None of any other one."""
    if not text or knows(text):
        return None
    return (
        f"This checkpoint knows only its world of coloured shapes; the prompt {text!r} is outside it. "
        'Try one such as "a red circle above a blue square on a white background".'
    )


def _sample_place(item: Object, rng: np.random.Generator) -> str | None:
    true = [name for name in PLACES if is_at(name, item.x, item.y)]
    if not true:
        return None
    if len(true) > 1 and rng.random() < 0.6:
        return true[0]  # a corner, which says more than the two sides that hold with it
    return true[rng.integers(len(true))]


def _word(caption: Caption, rng: np.random.Generator | None = None) -> str:
    """The text of a caption: the plainest wording, or with a generator one of several."""

    def either(*choices: str) -> str:
        return choices[0 if rng is None else int(rng.integers(len(choices)))]

    phrases = []
    for item in caption.objects:
        words = " ".join(filter(None, (item.size, item.colour, item.shape or "shape")))
        phrase = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
        if item.place in ("left", "right"):
            phrase += f" on the {item.place}"
        elif item.place in ("top", "bottom"):
            phrase += f" at the {item.place}"
        elif item.place:
            phrase += f" in the {either('centre', 'center', 'middle') if item.place == 'centre' else item.place}"
        phrases.append(phrase)
    if caption.relation:
        link = caption.relation
        if link in ("left of", "right of"):
            link = either(f"to the {link}", link)
        phrases[:2] = [f"{phrases[0]} {link} {phrases[1]}"]
        # The comma tells "(A above B) and C" from "A above (B and C)".
        text = ", and ".join(phrases)
    elif len(phrases) == 3:
        text = f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
    else:
        text = " and ".join(phrases)
    if caption.background:
        name = either("gray", "grey") if caption.background == "gray" else caption.background
        text += either(f" on a {name} background", f" on {name}")
    return text


def _mention(shape: str, place: str | None, **said: str | None) -> Mention:
    named = None if shape in ("shape", "object") else shape
    return Mention(named, place="centre" if place in ("center", "middle") else place, **said)


def _in_world(mentions: list[Mention]) -> bool:
    """Whether `sample_scene` could give the objects that are mentioned."""
    whole = [(item.colour, item.shape) for item in mentions if item.colour and item.shape]
    return (
        len(mentions) <= 3
        and all(item.colour or item.shape for item in mentions)
        and len(set(whole)) == len(whole)
        and (len(mentions) < 3 or sum(item.size == "large" for item in mentions) <= 1)
    )


def _group(name: str, words: Iterable[str], before: str = "", after: str = "") -> str:
    return f"{before}(?P<{name}>{'|'.join(words)}){after}"


_MENTION = re.compile(
    r" ?(?:(?:an?|the|one) )?"
    + f"(?:{_group('size', SIZES, after=' ')})?(?:{_group('colour', COLOURS, after=' ')})?"
    + _group("shape", (*SHAPES, "shape", "object"))
    # "on the left of" begins a relation, not a place
    + f"(?: (?:in|at|on) (?:the )?{_group('place', (*PLACES, 'center', 'middle'))}(?: corner| side)?(?! of))?(?= |$)"
)
_LINK = re.compile(rf"(?: ,)? (?:(?:(?:to|on) )?(?:the )?{_group('relation', RELATIONS)}|and|with)(?= )| ,(?= (?!on ))")
_BACKGROUND = re.compile(f"(?:(?: ,)? on (?:an? |the )?{_group('name', (*BACKGROUNDS, 'grey'))}(?: background)?)?")
