"""Weights of the small models that were recorded: made from a seed, because the files would be 33 MB."""

from __future__ import annotations

import functools
import json
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch


EMBEDDINGS = ("embedding", "w_pos", "w_voc", "w_t")


def random_tensor(name: str, shape: list[int], seed: int) -> torch.Tensor:
    """The tensor of that name in the released layout, the same bits on every machine.

    Scaled so that activations stay near unit size: matrices by one over the square root of their inputs, embeddings
    to a standard deviation of 0.5, gains around 1 and biases around 0 to 0.1.
    """
    generator = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    values = generator.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        # The division is done in float64 and rounded once.
        is_embedding = any(part in name for part in EMBEDDINGS)
        values = 0.5 * values if is_embedding else values / np.sqrt(np.prod(shape[1:]), dtype=np.float64)
    else:
        values = 0.1 * values + (1 if name.endswith(("weight", ".g")) else 0)
    return torch.from_numpy(values.astype(np.float32))


def checksum(state_dict: dict[str, torch.Tensor]) -> int:
    """CRC-32 of all values in order."""
    return functools.reduce(lambda crc, tensor: zlib.crc32(tensor.numpy().tobytes(), crc), state_dict.values(), 0)


def recorded_state_dict(recordings: Path, name: str) -> OrderedDict[str, torch.Tensor]:
    """State dict of a small model in the released layout: `base`, `upsample-inpaint`, `clip-text-enc` and so on."""
    model = json.loads((recordings / "shapes.json").read_text())[name]
    state_dict = OrderedDict((key, random_tensor(key, shape, model["seed"])) for key, shape in model["shapes"].items())
    # NumPy may change its random streams between versions; the recordings hold for these weights only.
    if checksum(state_dict) != model["crc32"]:
        raise RuntimeError(
            f"the weights of {name} are not those that were recorded: NumPy {np.__version__} draws others"
        )
    return state_dict
