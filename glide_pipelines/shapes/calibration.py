"""Measures the judge: on clean and rough images of scenes, with true captions and with captions made false."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..markdown import markdown_table
from .captions import Caption, Mention
from .dataset import ShapesWorld
from .judge import judge
from .render import render_sizes
from .scene import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Object, Scene, is_at, is_related


# The attributes that a caption may say, and their values.
VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "place": tuple(PLACES),
    "relation": RELATIONS,
    "background": tuple(BACKGROUNDS),
}
ALTERATIONS: tuple[str, ...] = (*VALUES, "count")


def alter(caption: Caption, scene: Scene, attribute: str, rng: np.random.Generator) -> Caption | None:
    """Makes a true caption false by changing one said attribute.

    Args:
        caption (`Caption`): True of the scene.
        scene (`Scene`): What the image shows.
        attribute (`str`): One of `ALTERATIONS`; `"count"` adds an object or leaves the last one out.
        rng (`np.random.Generator`): Chooses the object and the new value.

    Returns:
        `Caption`, *optional*: `None` where the attribute is unstated, or where the changed caption would still be true
        (or nearly: a place is changed to one that is clearly elsewhere).
    """
    objects = caption.objects
    if attribute == "count":
        if len(objects) == 3 or (len(objects) == 2 and rng.random() < 0.5):
            return Caption(objects[:-1], caption.relation if len(objects) == 3 else None, caption.background)
        there = {(item.colour, item.shape) for item in scene.objects}
        new = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in there]
        colour, shape = new[rng.integers(len(new))]
        return Caption((*objects, Mention(shape, colour)), caption.relation, caption.background)
    of_caption = attribute in ("relation", "background")
    holder: Caption | Mention = caption if of_caption else objects[rng.integers(len(objects))]
    old = getattr(holder, attribute)
    if old is None:
        return None
    others = [name for name in VALUES[attribute] if name != old]
    other: dict[str, Any] = {attribute: others[rng.integers(len(others))]}
    if of_caption:
        changed = replace(caption, **other, text="")
    else:
        mentions = [replace(item, **other) if item is holder else item for item in objects]
        changed = Caption(tuple(mentions), caption.relation, caption.background)
    return None if is_true(changed, scene, place_slack=0.05) else changed


def is_true(caption: Caption, scene: Scene, place_slack: float = 0.0) -> bool:
    """Whether a caption is true of a scene, told by the scene itself and not by an image.

    Args:
        caption (`Caption`): What is said.
        scene (`Scene`): What there is.
        place_slack (`float`): How much less clear a place may be, in units of the image.
    """

    def fits(said: Mention, item: Object) -> bool:
        names = ("colour", "shape", "size")
        return all(getattr(said, name) in (None, getattr(item, name)) for name in names) and (
            said.place is None or is_at(said.place, item.x, item.y, place_slack)
        )

    return (
        len(caption.objects) == len(scene.objects)
        and caption.background in (None, scene.background)
        and any(
            all(fits(said, item) for said, item in zip(caption.objects, items, strict=True))
            and (not caption.relation or is_related(caption.relation, *_ends(items)))
            for items in permutations(scene.objects)
        )
    )


def _ends(items: Sequence[Object]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Where the two objects lie that a relation is about."""
    first, second = items[:2]
    return (first.x, first.y), (second.x, second.y)


def roughen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blur an image, shift its colours, add noise and two specks, about as a generative model might."""
    side = image.width
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6 * side / 32)), dtype=np.float64)
    pixels = pixels + rng.uniform(-15, 15, size=3) + rng.normal(0, 10, size=pixels.shape)
    for _ in range(2):
        x, y = rng.integers(1, 30, size=2) * side // 32
        pixels[y : y + side // 32, x : x + 2 * side // 32] = rng.uniform(0, 255, size=3)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def calibrate(
    num_scenes: int = 2000, sizes: Iterable[int] = (32, 128), seed: int = 0, show: int = 0
) -> dict[str, dict[str, tuple[float, int]]]:
    """Measures how often the judge is right.

    Args:
        num_scenes (`int`): Scenes, of trained and held-out combinations alike.
        sizes (`Iterable[int]`): Widths of the images, in pixels.
        seed (`int`): Seed of the scenes.
        show (`int`): How many of the mistakes to print.

    Returns:
        `dict`: a column (such as `"clean 32"`) to a row (such as `"true: colour"`) to the share of right answers and
        the number of cases. Rows `true: ...` are of true captions: the attribute must be right. Rows `false: ...` are
        of captions with that attribute made false: the attribute must be judged wrong. `whole` is the whole verdict.
    """
    sizes = tuple(sizes)
    world = ShapesWorld(seed, held_out=None)
    tallies: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for index in range(num_scenes):
        scene, caption = world.example(index)
        rng = np.random.default_rng((seed, index))
        false = {name: alter(caption, scene, name, rng) for name in ALTERATIONS}
        for size, clean in zip(sizes, render_sizes(scene, sizes), strict=True):
            for kind, image in (("clean", clean), ("rough", roughen(clean, rng))):
                rows = tallies[f"{kind} {size}"]
                verdict = judge(image, caption)
                rows["true: whole"].append(verdict.correct)
                for name, answers in verdict.attributes().items():
                    rows[f"true: {name}"] += answers
                if not verdict.correct and show > 0:
                    show -= 1
                    print(f"{kind} {size}, scene {index}: {caption!s}\n  {scene}\n  {verdict.detection}")
                for name, changed in false.items():
                    if changed is not None:
                        verdict = judge(image, changed)
                        rows["false: whole"].append(not verdict.correct)
                        rows[f"false: {name}"].append(not all(verdict.attributes()[name]))
    return {
        column: {row: (float(np.mean(values)), len(values)) for row, values in rows.items()}
        for column, rows in tallies.items()
    }


def calibration_table(results: dict[str, dict[str, tuple[float, int]]]) -> str:
    """The results of `calibrate` as a Markdown table: right answers in per cent, and the number of cases."""
    rows = []
    for name in (f"{kind}: {name}" for kind in ("true", "false") for name in ("whole", *ALTERATIONS)):
        if cells := [columns[name] for columns in results.values() if name in columns]:
            rows.append([name, cells[0][1], *(f"{100 * share:.2f}" for share, _ in cells)])
    return markdown_table(["caption: answer", "cases", *results], rows)
