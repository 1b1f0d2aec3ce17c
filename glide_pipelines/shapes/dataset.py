"""The endless, reproducible sequence of captioned scenes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .captions import Caption, describe
from .scene import NUM_OBJECTS_SHARES, Scene, check_choice, check_shares, sample_scene


class Example(NamedTuple):
    """A scene and a caption that is true of it."""

    scene: Scene
    caption: Caption


class ShapesWorld:
    """Captioned scenes without end. Scene and caption at an index depend on nothing but the arguments and the index:
    not on what was asked before, nor on the process or the machine.

    Args:
        seed (`int`): 0 or larger; another seed is another sequence.
        held_out (`bool`, *optional*): `False` gives combinations for training, `True` those kept from training,
            `None` any.
        num_objects_shares (`Sequence[float]`, defaults to (0.4, 0.4, 0.2)): How many of the scenes have one, two and
            three objects; together 1.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self, seed: int = 0, held_out: bool | None = False, num_objects_shares: Sequence[float] = NUM_OBJECTS_SHARES
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"`seed` must be a whole number of at least 0, got {seed!r}.")
        check_choice("held_out", held_out, (False, True, None))
        check_shares("num_objects_shares", num_objects_shares)
        self.seed = int(seed)
        self.held_out = held_out
        self.num_objects_shares = tuple(num_objects_shares)

    def scene(self, index: int) -> Scene:
        """The scene at an index (a whole number of at least 0)."""
        return sample_scene(self._generator(index, 0), self.held_out, num_objects_shares=self.num_objects_shares)

    def caption(self, index: int) -> Caption:
        """A caption of the scene at an index."""
        return self.example(index).caption

    def example(self, index: int) -> Example:
        """The scene at an index and its caption."""
        scene = self.scene(index)
        return Example(scene, describe(scene, self._generator(index, 1)))

    def _generator(self, index: int, stream: int) -> np.random.Generator:
        if isinstance(index, bool) or not isinstance(index, (int, np.integer)) or index < 0:
            raise ValueError(f"`index` must be a whole number of at least 0, got {index!r}.")
        split = (False, True, None).index(self.held_out)
        return np.random.default_rng((self.seed, int(index), split, stream))
