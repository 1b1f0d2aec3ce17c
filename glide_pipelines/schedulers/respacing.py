"""Which of the training timesteps a sampler visits: GLIDE's respacing strings."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch


MAX_TRAIN_TIMESTEPS = 100_000  # a hundred times DDPM's: tables for more would take memory, not give detail
FAST27_SECTIONS = (10, 10, 3, 2, 2)


def space_timesteps(spacing: str, num_train_timesteps: int = 1000) -> list[int]:
    """The timesteps that a respacing string keeps.

    Args:
        spacing (`str`): One of

            - `"100"`: that many steps, evenly spaced, both ends included;
            - `"10,10,3,2,2"`: the training steps are cut into equal sections, from clean to noisy, with so many steps
              in each, each section's ends included;
            - `"ddim50"`: that many steps at an integer stride, from 0;
            - `"fast27"`: the 27 steps of GLIDE's upsampler.
        num_train_timesteps (`int`, defaults to 1000): Steps of the training process.

    Returns:
        `list[int]`: timesteps in descending order.

    Raises:
        ValueError: if the string is not of one of these forms, or asks for more steps than there are.
    """
    if not isinstance(spacing, str):
        raise TypeError(f"`spacing` must be a string, got {spacing!r} ({type(spacing).__name__}).")
    check_num_train_timesteps(num_train_timesteps)
    text = spacing.replace(" ", "")
    if text == "fast27":
        if num_train_timesteps != 1000:
            raise ValueError(
                f"timesteps='fast27' is a list for 1000 training timesteps, but there are {num_train_timesteps}."
            )
        # GLIDE moves the first step from 999 to 997, where the linear schedule has a little signal left.
        return [997, *_spread(FAST27_SECTIONS, 1000)[1:]]
    if match := re.fullmatch(r"ddim([1-9]\d*)", text):
        count = int(match.group(1))
        for stride in range(1, num_train_timesteps):
            if len(range(0, num_train_timesteps, stride)) == count:
                return list(range(0, num_train_timesteps, stride))[::-1]
        raise ValueError(
            f"timesteps={spacing!r}: no integer stride over {num_train_timesteps} training timesteps gives "
            f"{count} steps."
        )
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ValueError(
            f"timesteps={spacing!r} is not a respacing: use a number ('100'), numbers per section "
            "('10,10,3,2,2'), 'ddim50' or 'fast27'."
        )
    return _spread([int(count) for count in text.split(",")], num_train_timesteps)


def check_timesteps(timesteps: Sequence[int] | torch.Tensor, num_train_timesteps: int) -> list[int]:
    """The timesteps as a list, if they are integers that descend strictly within the training process.

    Raises:
        ValueError: otherwise.
    """
    try:
        kept = list(timesteps.tolist() if hasattr(timesteps, "tolist") else timesteps)
    except (TypeError, RuntimeError):  # a tensor without values, or of no dimension
        raise ValueError(f"`timesteps` must be a respacing string or a list of integers, got {timesteps!r}.") from None
    if any(isinstance(timestep, bool) or not isinstance(timestep, Integral) for timestep in kept):
        raise ValueError(f"`timesteps` must be integers, got {kept}.")
    if not kept or any(later >= earlier for earlier, later in itertools.pairwise(kept)):
        raise ValueError(f"`timesteps` must be a non-empty, strictly descending list, got {kept}.")
    if kept[0] >= num_train_timesteps or kept[-1] < 0:
        raise ValueError(f"`timesteps` must lie between 0 and {num_train_timesteps - 1}, got {kept[0]} to {kept[-1]}.")
    return [int(timestep) for timestep in kept]


def check_num_train_timesteps(count: Any) -> None:
    """The number of training timesteps must be a plausible one.

    Raises:
        ValueError: if it is not.
    """
    is_integer = isinstance(count, Integral) and not isinstance(count, bool)
    if not is_integer or not 1 <= count <= MAX_TRAIN_TIMESTEPS:
        raise ValueError(f"`num_train_timesteps` must be an integer from 1 to {MAX_TRAIN_TIMESTEPS}, got {count!r}.")


def check_num_inference_steps(count: object, num_train_timesteps: int) -> int:
    """The number of steps, if so many are possible.

    Raises:
        ValueError: otherwise.
    """
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise ValueError(f"`num_inference_steps` must be an integer, got {count!r}.")
    if not 1 <= int(count) <= num_train_timesteps:
        raise ValueError(
            f"`num_inference_steps` must lie between 1 and the {num_train_timesteps} steps of training, got {count}."
        )
    return int(count)


def _spread(counts: list[int] | tuple[int, ...], num_train_timesteps: int) -> list[int]:
    """`counts[i]` evenly spaced timesteps in the i-th of `len(counts)` equal sections, descending over all."""
    size, extra = divmod(num_train_timesteps, len(counts))
    start, kept = 0, []
    for section, count in enumerate(counts):
        length = size + (section < extra)
        if count > length:
            raise ValueError(
                f"timesteps={','.join(map(str, counts))!r}: section {section} has {length} training timesteps, "
                f"fewer than the {count} steps asked for."
            )
        stride = (length - 1) / (count - 1) if count > 1 else 1
        # The position is accumulated, not multiplied: the rounding of the released code depends on it.
        position = 0.0
        for _ in range(count):
            kept.append(start + round(position))
            position += stride
        start += length
    return kept[::-1]
