"""The shapes world as captioned images that bring their judge, for [`run_sweep`]."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from PIL import Image

from .dataset import Example, ShapesWorld
from .render import render
from .tally import WHOLE, Tally


class ShapesImages:
    """[`JudgedImages`]: scenes whose combinations of objects and background were held out of training.

    Args:
        num_captions (`int`): How many.
        seed (`int`): Which sequence of scenes.
        first (`int`, defaults to 0): Where in the sequence they begin.
    """

    def __init__(self, num_captions: int, seed: int, first: int = 0) -> None:
        world = ShapesWorld(seed, held_out=True)
        self.seed, self.end = seed, first + num_captions
        self.examples: list[Example] = [world.example(first + index) for index in range(num_captions)]
        self.captions = [str(example.caption) for example in self.examples]

    def image(self, index: int, size: int) -> Image.Image:
        """The image of a scene."""
        return render(self.examples[index].scene, size)

    def others(self) -> ShapesImages:
        """As many scenes again: the next ones of the sequence."""
        return ShapesImages(len(self.examples), self.seed, self.end)

    def judge(self, images: Iterable[Image.Image]) -> dict[str, Any]:
        """How many images show all that their captions say, in per cent, and the figures of [`Tally`] as `judge`."""
        tally = Tally()
        for image, example in zip(images, self.examples, strict=True):
            tally.add(image, example.caption)
        figures = tally.figures()
        return {"whole_caption": 100 * figures["accuracy"][WHOLE[0]]["share"], "judge": figures}
