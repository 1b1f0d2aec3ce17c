"""A picture, a hole in it, and what the tests of the editing pipelines share."""

import contextlib

import numpy as np
import pytest
from PIL import Image


RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
MASK = Image.new("L", (32, 32))
MASK.paste(255, (8, 4, 20, 16))
HOLE = np.asarray(MASK) > 0


def picture(height, width):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@contextlib.contextmanager
def inputs_of(unet):
    """What the network is given, a dictionary for each time that it runs."""
    seen = []
    hook = unet.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append({"sample": args[0]} | kwargs), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def refused(pipe, error, message):
    """The error comes before any network runs."""
    networks = (pipe.text_encoder, pipe.unet, pipe.super_res_text_encoder, pipe.super_res_unet)
    hooks = [n.register_forward_pre_hook(lambda *_: pytest.fail("a network ran")) for n in networks if n is not None]
    try:
        with pytest.raises(error, match=message):
            yield
    finally:
        for hook in hooks:
            hook.remove()
