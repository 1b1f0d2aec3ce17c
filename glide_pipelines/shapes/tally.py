"""The judge's answers over many images: accuracy by attribute, and diversity of what captions leave unstated."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.statistics import entropy, rate
from ..markdown import markdown_table
from .captions import Caption
from .judge import judge
from .scene import BACKGROUNDS, COLOURS, SHAPES, SIZES


Figures = dict[str, dict[str, dict[str, float]]]

ATTRIBUTES: tuple[str, ...] = (
    "background",
    "colour",
    "shape",
    "size",
    "place",
    "relation",
    "place and relation",
    "count",
)
WHOLE: tuple[str, ...] = (
    "whole caption",
    "whole caption, one object",
    "whole caption, two objects",
    "whole caption, three objects",
    "whole caption, two objects without a relation",
)
# What a caption may leave unstated (the quarter is the one of the image in which an object lies), and how many values.
UNSTATED: dict[str, int] = {
    "background": len(BACKGROUNDS),
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "size": len(SIZES),
    "quarter": 4,
}


class Tally:
    """The judge's answers, gathered image by image."""

    def __init__(self) -> None:
        self.answers: dict[str, list[bool]] = defaultdict(list)
        self.unstated: dict[str, Counter[str]] = defaultdict(Counter)

    def add(self, image: Image.Image | np.ndarray, caption: Caption) -> None:
        """Judge one more image.

        Args:
            image (`PIL.Image.Image` or `np.ndarray`): As `judge` takes it.
            caption (`Caption`): What it should show.
        """
        verdict = judge(image, caption)
        for name, answers in verdict.attributes().items():
            self.answers[name] += answers
            if name in ("place", "relation"):
                self.answers["place and relation"] += answers
        rows = [WHOLE[0], WHOLE[len(caption.objects)]]
        if len(caption.objects) == 2 and caption.relation is None:
            rows.append(WHOLE[-1])
        for name in rows:
            self.answers[name].append(verdict.correct)

        if caption.background is None:
            self._count("background", verdict.detection.background)
        for said, answer in zip(caption.objects, verdict.objects, strict=True):
            if answer.found is None:
                continue
            for name in ("colour", "shape", "size"):
                if getattr(said, name) is None:
                    self._count(name, getattr(answer.found, name))
            if said.place is None and caption.relation is None:
                sides = "bottom" if answer.found.y > 0.5 else "top", "right" if answer.found.x > 0.5 else "left"
                self._count("quarter", " ".join(sides))

    def _count(self, name: str, value: str | None) -> None:
        if value is not None:  # the judge could not tell
            self.unstated[name][value] += 1

    def figures(self) -> Figures:
        """Returns:
        `dict`: `"accuracy"`: a row of `ATTRIBUTES` and `WHOLE` to what [`rate`] gives. `"diversity"`: a row of
        `UNSTATED` to the entropy in `bits` and the `cases`. Rows without a case are left out.
        """
        accuracy = {name: rate(answers) for name in (*ATTRIBUTES, *WHOLE) if (answers := self.answers.get(name))}
        diversity = {
            name: {"bits": entropy(self.unstated[name].values()), "cases": self.unstated[name].total()}
            for name in UNSTATED
            if name in self.unstated
        }
        return {"accuracy": accuracy, "diversity": diversity}


def judged_table(rows: Mapping[str, Figures]) -> str:
    """Many settings' figures as Markdown, a row for each: accuracy in per cent, spread of unstated attributes in bits.

    Args:
        rows (`Mapping`): A setting's name to its figures, as [`Tally.figures`] gives them; one or more.
    """

    def section(kind: str, title: str, names: Sequence[str], cell: Callable[[dict[str, Any]], str]) -> str:
        cells = (
            [setting, *(cell(figures[kind][name]) if name in figures[kind] else "" for name in names)]
            for setting, figures in rows.items()
        )
        return markdown_table([title, *names], cells)

    accuracy = section("accuracy", "right, per cent", (*ATTRIBUTES, *WHOLE), lambda rate: f"{100 * rate['share']:.1f}")
    spread = section(
        "diversity", "spread of unstated attributes, bits", tuple(UNSTATED), lambda spread: f"{spread['bits']:.2f}"
    )
    return f"{accuracy}\n\n{spread}"
