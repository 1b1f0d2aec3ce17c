"""Independent random streams for the examples of a run."""

from __future__ import annotations

import numpy as np
import torch


def random_stream(seed: int, *key: int) -> np.random.Generator:
    """The generator of a key, such as an example's number.

    Streams of different keys are independent, and so are streams that a data source makes from the same seed by
    itself. (NumPy pads the seed `(seed, index)` with zeros, so it is the seed `(seed, index, 0)` too: the noise of an
    example could then be what its image was made from, and give it away.)
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def standard_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise as a float32 tensor."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
