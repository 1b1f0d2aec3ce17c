"""The shapes world as a source of training examples."""

import numpy as np

from glide_pipelines.shapes import ShapesSource, ShapesWorld, describe_fully


def test_a_share_of_the_captions_states_every_attribute():
    def captions(share):
        source = ShapesSource(8, 3, share)
        return [source(index, np.random.default_rng(index))[1] for index in range(200)]

    world = ShapesWorld(3)
    full = [str(describe_fully(world.scene(index))) for index in range(200)]
    assert captions(0.0) == [str(world.caption(index)) for index in range(200)]
    assert captions(1.0) == full
    assert 70 < sum(map(str.__eq__, captions(0.5), full)) < 130
