"""A picture, a hole in it, and what the tests of the editing pipelines share."""

import contextlib

import numpy as np
import pytest
import torch
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
        lambda m, args, kwargs: seen.append(dict(zip(("sample", "timestep"), args, strict=False)) | kwargs),
        with_kwargs=True,
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
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    hooks = [n.register_forward_pre_hook(lambda *_: pytest.fail("a network ran")) for n in networks]
    try:
        with pytest.raises(error, match=message):
            yield
    finally:
        for hook in hooks:
            hook.remove()
