"""The captioned folder: pictures on plain backgrounds, captions, and the part that is kept from training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import atomic_folder
from .captions import Emoji, captions
from .colours import BACKGROUNDS, name_of_colour
from .held_out import HELD_OUT
from .sources import Package, picture_names, read_emoji, read_picture


# Licence and attribution of the images.
NOTICE = (Path(__file__).parent / "NOTICE.md").read_text(encoding="utf-8")
CANVAS = 256  # width and height of the set's pictures, and of what is composed here before it is reduced
SKIN_TONE_CHOICES = ("default", "all")
SYMBOL_CHOICES = ("out", "apart", "train")

# What Microsoft has not released, whatever the package holds: flags of countries, families and couples, and the designs
# that show a trademark.
_UNRELEASED_GROUPS = frozenset({"country-flag", "subdivision-flag", "family"})
_UNRELEASED = frozenset(
    {"1f46a", "1f4ce", "1f3ae"}  # the family, the paperclip, the video game
    | {f"{person}-200d-1f4bb" for person in ("1f9d1", "1f468", "1f469")}  # technologists
)
# Letters and signs; the plain circles, squares and diamonds of the category are pictures of things as good as any.
_NO_SIGNS = frozenset({"geometric"})


@dataclass(frozen=True)
class Summary:
    """How much was written: pictures by folder, and entries of the emoji data without a picture."""

    pictures: dict[str, int]
    missing: tuple[str, ...]


def build(
    output: str | Path,
    pictures: Package,
    names: Package,
    *,
    size: int = 128,
    copies: int = 4,
    smallest_scale: float = 0.8,
    skin_tones: str = "default",
    symbols: str = "out",
    seed: int = 0,
    progress: Callable[[Iterable[Emoji]], Iterable[Emoji]] = iter,
) -> Summary:
    """Writes the set as folders of PNG files, each with a `metadata.jsonl`.

    The columns are `file_name`; `text`, a list of captions that are all true; `name`, the plainest of them without its
    background; `codepoint`; `category`; `group`, the subcategory; `background`; `colour`, empty for things of several;
    and `combination`, what is held out with it, empty in `train`.

    Args:
        output (`str` or `Path`): Folder to make: `train`, `held_out`, `NOTICE.md`, and by `symbols` also `symbols`.
        pictures ([`Package`]): The 3D pictures.
        names ([`Package`]): The emoji data.
        size (`int`): Width and height of the pictures, a divisor of 256.
        copies (`int`): Training pictures of each emoji: the first as it is, on white; the others moved and scaled, on
            white; of two or more the last on another background, which its captions name. In the other folders each
            stands once, as it is.
        smallest_scale (`float`): How far the others are scaled down, above 0, at most 1. At 1 they are not moved
            either, and a caption without a background names one picture.
        skin_tones (`str`): `"default"` leaves out all but the yellow ones, which differ in nothing else; `"all"` keeps
            them, and their captions name the skin.
        symbols (`str`): What becomes of letters and signs: `"out"` leaves them out, `"apart"` puts them into a folder
            of their own, `"train"` into `train`.
        seed (`int`): Of places, scales and backgrounds, 0 or larger.
        progress (`Callable`): Goes through the emoji, such as `tqdm`.

    Returns:
        [`Summary`]: how many pictures each folder holds.

    Raises:
        ValueError: if an argument is out of its range, a folder that holds something already, or a damaged package.
    """
    if size < 1 or CANVAS % size:
        raise ValueError(f"`size` must divide {CANVAS}, got {size}.")
    if copies < 1:
        raise ValueError(f"`copies` must be at least 1, got {copies}.")
    if not 0 < smallest_scale <= 1:
        raise ValueError(f"`smallest_scale` must be above 0 and at most 1, got {smallest_scale}.")
    if skin_tones not in SKIN_TONE_CHOICES:
        raise ValueError(f"`skin_tones` must be one of {', '.join(SKIN_TONE_CHOICES)}, got {skin_tones!r}.")
    if symbols not in SYMBOL_CHOICES:
        raise ValueError(f"`symbols` must be one of {', '.join(SYMBOL_CHOICES)}, got {symbols!r}.")
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0, got {seed}.")
    output = Path(output).absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"`output` must be a new or empty folder, got {str(output)!r}.")

    files = picture_names(pictures)
    chosen = choose(read_emoji(names), skin_tones, symbols)
    missing = tuple(emoji.codepoint for emoji, _ in chosen if emoji.codepoint not in files)
    folders = {emoji: folder for emoji, folder in chosen if emoji.codepoint in files}
    if not folders:
        raise ValueError(f"`pictures` {pictures.source} holds none of the emoji of `names` {names.source}.")

    rows: dict[str, list[dict[str, object]]] = {folder: [] for folder in dict.fromkeys(folders.values())}
    with atomic_folder(output) as aside:
        for folder in rows:
            (aside / folder).mkdir()
        for emoji in progress(folders):
            folder = folders[emoji]
            picture = read_picture(pictures, files[emoji.codepoint])
            count = copies if folder == "train" else 1
            for number, (image, row) in enumerate(_examples(emoji, picture, count, smallest_scale, seed)):
                file_name = f"{emoji.codepoint}{f'_{number}' if number else ''}.png"
                image.reduce(CANVAS // size).save(aside / folder / file_name)
                rows[folder].append({"file_name": file_name, **row})
        for folder, lines in rows.items():
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (aside / folder / "metadata.jsonl").write_text(text, encoding="utf-8")
        (aside / "NOTICE.md").write_text(NOTICE, encoding="utf-8")
    return Summary({folder: len(lines) for folder, lines in rows.items()}, missing)


def choose(entries: Iterable[Emoji], skin_tones: str = "default", symbols: str = "out") -> list[tuple[Emoji, str]]:
    """Which emoji belong to the set, and into which folder each goes.

    Args:
        entries (`Iterable[Emoji]`): Of the emoji data, with skin tones.
        skin_tones, symbols (`str`): As in [`build`].

    Returns:
        `list[tuple[Emoji, str]]`: Emoji with `"train"`, `"held_out"` or `"symbols"`.
    """
    chosen = []
    for emoji in entries:
        base = emoji.untoned
        if emoji.skin_tone is not None and skin_tones == "default":
            continue
        if emoji.subcategory in _UNRELEASED_GROUPS or base in _UNRELEASED or emoji.category == "Component":
            continue
        if base in HELD_OUT:
            chosen.append((emoji, "held_out"))
        elif emoji.category != "Symbols" or emoji.subcategory in _NO_SIGNS or symbols == "train":
            chosen.append((emoji, "train"))
        elif symbols == "apart":
            chosen.append((emoji, "symbols"))
    return chosen


def place(
    picture: Image.Image, background: tuple[int, int, int], scale: float = 1.0, shift: tuple[float, float] = (0.5, 0.5)
) -> Image.Image:
    """A picture on a plain background.

    Args:
        picture (`PIL.Image.Image`): With transparency, of any size.
        background (`tuple[int, int, int]`): Red, green and blue, 0 to 255.
        scale (`float`): Its width, of the whole; above 0, at most 1.
        shift (`tuple[float, float]`): Where it stands, of the room that is left: 0 is left and top, 1 right and bottom.

    Returns:
        `PIL.Image.Image`: RGB, 256 pixels wide and high.
    """
    side = round(CANVAS * scale)
    canvas = Image.new("RGBA", (CANVAS, CANVAS), (*background, 255))
    if picture.size != (side, side):
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
    left, top = (round((CANVAS - side) * part) for part in shift)
    canvas.alpha_composite(picture, (left, top))
    return canvas.convert("RGB")


def _examples(
    emoji: Emoji, picture: Image.Image, copies: int, smallest_scale: float, seed: int
) -> Iterator[tuple[Image.Image, dict[str, object]]]:
    """The pictures of one emoji and what `metadata.jsonl` says of each."""
    # From the code point, so that the pictures of one do not depend on which others there are.
    rng = np.random.default_rng([seed, *emoji.codepoint.encode()])
    colour = name_of_colour(picture)
    for number in range(copies):
        background = None
        scale, shift = 1.0, (0.5, 0.5)
        if number:
            scale = float(rng.uniform(smallest_scale, 1))
            shift = float(rng.random()), float(rng.random())
            if number == copies - 1:
                background = str(rng.choice([name for name in BACKGROUNDS if name != colour]))
        image = place(picture, BACKGROUNDS[background] if background else (255, 255, 255), scale, shift)
        yield (
            image,
            {
                "text": captions(emoji, colour, background),
                "name": captions(emoji)[0],
                "codepoint": emoji.codepoint,
                "category": emoji.category,
                "group": emoji.subcategory,
                "background": background or "white",
                "colour": colour or "",
                "combination": HELD_OUT.get(emoji.untoned, ""),
            },
        )
