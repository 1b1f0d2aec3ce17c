"""The shapes world as a source of training examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .captions import describe_fully
from .dataset import ShapesWorld
from .render import render
from .scene import NUM_OBJECTS_SHARES


class ShapesSource:
    """Images and captions of the shapes world, by number, without end.

    Args:
        resolution (`int`): Width and height of the images, in pixels.
        seed (`int`): Which sequence of scenes.
        proportion_full_captions (`float`, defaults to 0): Share of captions that state every attribute except positions
            ([`describe_fully`]).
        num_objects_shares (`Sequence[float]`, *optional*): Shares of scenes with one, two and three objects, as in
            [`ShapesWorld`]; by default the world's own.

    Raises:
        ValueError: if `proportion_full_captions` or `num_objects_shares` is out of its range.
    """

    # The setting of a pipeline that was trained on it: prompts outside the world get a warning.
    prompt_domain = "shapes"

    def __init__(
        self,
        resolution: int,
        seed: int,
        proportion_full_captions: float = 0.0,
        num_objects_shares: Sequence[float] | None = None,
    ) -> None:
        if not 0 <= proportion_full_captions <= 1:
            raise ValueError(f"`proportion_full_captions` must lie between 0 and 1, got {proportion_full_captions}.")
        self.resolution = resolution
        self.world = ShapesWorld(seed, num_objects_shares=num_objects_shares or NUM_OBJECTS_SHARES)
        self.proportion_full_captions = proportion_full_captions

    def __call__(self, index: int, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """The image and the caption of the scene with this number."""
        scene, caption = self.world.example(index)
        # Only a real choice takes a random number, so that the numbers after it stay the same.
        if self.proportion_full_captions and rng.random() < self.proportion_full_captions:
            caption = describe_fully(scene)
        return render(scene, self.resolution), str(caption)
