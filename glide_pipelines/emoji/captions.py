"""What is said of an emoji: several true wordings, as a person would write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from .wordings import WORDINGS


# What every emoji of a group is, for captions like "a fox, an animal".
KINDS: dict[str, str] = {
    "animal-mammal": "an animal",
    "animal-bird": "a bird",
    "animal-amphibian": "an animal",
    "animal-reptile": "an animal",
    "animal-marine": "a sea animal",
    "animal-bug": "a small animal",
    "plant-flower": "a flower",
    "plant-other": "a plant",
    "food-fruit": "a fruit",
    "food-vegetable": "a vegetable",
    "food-prepared": "food",
    "food-asian": "asian food",
    "food-sweet": "something sweet",
    "drink": "a drink",
    "place-religious": "a religious building",
    "musical-instrument": "a musical instrument",
}
# Those that are not, though they stand in the group: a pig nose, paw prints, a feather, a wing, a spiral shell, coral,
# a spider web, a microbe, nests, peanuts, a chestnut, a salt shaker, a baby bottle, pouring liquid, an ice cube.
_OF_NO_KIND = frozenset(
    {
        *("1f43d", "1f43e", "1fab6", "1fabd", "1f41a", "1fab8", "1f578", "1f9a0", "1fab9", "1faba"),
        *("1f95c", "1f330", "1f9c2", "1f37c", "1fad7", "1f9ca"),
    }
)

# What the first words of a caption are, around "{}".
FRAMES = ("a picture of {}", "an emoji of {}", "a 3d emoji of {}")

SKIN_TONES: dict[str, str] = {
    "1f3fb": "light skin",
    "1f3fc": "medium-light skin",
    "1f3fd": "medium skin",
    "1f3fe": "medium-dark skin",
    "1f3ff": "dark skin",
}

_HOURS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
# Words of the Unicode names that say nothing of the picture, or are wrong of it.
_NOISE = re.compile(r"\b(symbol|sign)\b$")
_NO_ARTICLE = frozenset(
    {
        *("bacon", "bread", "broccoli", "butter", "camping", "dango", "dna", "fog", "garlic", "luggage", "oden"),
        *("popcorn", "rice", "soap", "spaghetti", "sushi", "vhs", "water", "wood", "money", "coral", "ginger"),
        *("people", "women", "men"),
    }
)
_COLOUR_WORDS = frozenset(
    {
        *("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "dark"),
        *("gold", "golden", "silver", "bronze"),
    }
)
# Short names that name something else, or only a part.
_MISLEADING = frozenset(["birthday", "tada", "art", "clapper", "house buildings", "office", "lacrosse"])
_PREPOSITIONS = re.compile(r" (?:with|of|on|in|at|from|to|and|over|behind|without|showing|making) ")


@dataclass(frozen=True)
class Emoji:
    """An entry of the emoji data.

    Args:
        codepoint (`str`): Code points in lower case hexadecimal, joined by "-", without the variation selector fe0f.
        name (`str`): The Unicode name, in lower case.
        short_names (`tuple[str, ...]`): What people type, such as `"red_car"`.
        category (`str`): Such as `"Food & Drink"`.
        subcategory (`str`): Such as `"food-fruit"`.
        skin_tone (`str`, *optional*): One of the keys of `SKIN_TONES`; `None` is the yellow default.
    """

    codepoint: str
    name: str
    short_names: tuple[str, ...]
    category: str
    subcategory: str
    skin_tone: str | None = None

    @property
    def untoned(self) -> str:
        """The code point of the yellow default."""
        return self.codepoint.replace(f"-{self.skin_tone}", "") if self.skin_tone else self.codepoint


def plain_codepoint(codepoint: str) -> str:
    """A sequence of code points as it is written here: lower case, without the variation selector."""
    return "-".join(part for part in codepoint.lower().split("-") if part != "fe0f")


def with_article(phrase: str) -> str:
    """A noun phrase with "a" or "an" before it, where it needs one.

    Args:
        phrase (`str`): Such as `"slice of pizza"`, in lower case.

    Returns:
        `str`: Such as `"a slice of pizza"`; plurals and what cannot be counted stay as they are.
    """
    if re.match(r"(a|an|the|two|three) ", phrase):
        return phrase
    head = _PREPOSITIONS.split(phrase)[0].split(" ")[-1]
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    if (plural or head in _NO_ARTICLE) and not re.match(r"(man|woman|person) ", phrase):
        return phrase
    article = "an" if re.match(r"[ai]|e(?!u)|o(?!ne\b)|u(?!ni|kulele)|hour", phrase) else "a"
    return f"{article} {phrase}"


def phrases(emoji: Emoji) -> list[str]:
    """What the picture shows, as noun phrases; the plainest first.

    Args:
        emoji ([`Emoji`]): The entry.

    Returns:
        `list[str]`: One phrase or more, in lower case, without doubles.
    """
    if emoji.codepoint in WORDINGS:
        return list(WORDINGS[emoji.codepoint])
    clock = re.fullmatch(r"clock face (\w+)(-thirty| oclock)", emoji.name)
    if clock:
        hour, half = clock[1], clock[2] == "-thirty"
        number = _HOURS.index(hour) + 1
        if half:
            return [f"a clock at half past {hour}", f"a clock at {hour} thirty", f"a clock at {number}:30"]
        return [f"a clock at {hour} o'clock", f"a clock face at {hour} o'clock", f"a clock at {number}:00"]
    name = _NOISE.sub("", emoji.name.replace("’", "'")).strip()
    found = [name]
    for short in emoji.short_names:
        words = re.sub(r"[-_]+", " ", short).strip()
        # A single letter or a number names nothing; of a face the short names say only how it feels.
        if not re.fullmatch(r"[a-z][a-z ']{2,}", words) or words in _MISLEADING:
            continue
        if emoji.subcategory.startswith("face-") and "face" not in words:
            continue
        if words.replace(" ", "") != re.sub(r"[- ]", "", name):
            found.append(words)
    return _unique(with_article(phrase) for phrase in found)


def captions(emoji: Emoji, colour: str | None = None, background: str | None = None) -> list[str]:
    """Several true captions of one picture, from which training draws one each time.

    Args:
        emoji ([`Emoji`]): What the picture shows.
        colour (`str`, *optional*): The colour of nearly all of it, such as `"red"`, if it has one.
        background (`str`, *optional*): The colour behind it, where that is not white; then every caption names it.

    Returns:
        `list[str]`: Captions in lower case, without doubles.
    """
    said = phrases(emoji)
    if emoji.skin_tone is not None:
        said = [f"{phrase} with {SKIN_TONES[emoji.skin_tone]}" for phrase in said]
    plain = said[0]
    found = list(said)
    coloured = None if colour is None or _names_colour(said) else _coloured(plain, colour)
    if coloured is not None:
        found.append(coloured)
    if background is not None:
        # Two ways to say it; the frames would only make it longer.
        named = [f"{phrase} on a {background} background" for phrase in found]
        return _unique([*named, f"{plain}, {background} background"])
    bare = re.sub(r"^(a|an|the) ", "", plain)
    found.append(bare)
    kind = None if emoji.codepoint in _OF_NO_KIND else KINDS.get(emoji.subcategory)
    if kind is not None and kind.split(" ")[-1] not in plain:
        found.append(f"{plain}, {kind}")
    found.extend(frame.format(plain) for frame in FRAMES)
    return _unique(found)


def _coloured(phrase: str, colour: str) -> str | None:
    """ "a car" and "red" make "a red car"; `None` where the colour would stand wrongly."""
    bare = re.sub(r"^(a|an) ", "", phrase)
    if phrase.startswith(("the ", "two ", "three ")) or _PREPOSITIONS.search(bare):
        return None
    has_article = bare != phrase
    return with_article(f"{colour} {bare}") if has_article else f"{colour} {bare}"


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def _names_colour(said: Iterable[str]) -> bool:
    return any(word in _COLOUR_WORDS for phrase in said for word in phrase.split(" "))
