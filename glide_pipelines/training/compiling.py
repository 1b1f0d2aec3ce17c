"""Compiling the network that is trained."""

from __future__ import annotations

import torch

from ..models import GLIDEUNet2DConditionModel


def compile_blocks(unet: GLIDEUNet2DConditionModel, device: torch.device) -> None:
    """Have a UNet's blocks compiled by `torch.compile` when they are first used, each for the shapes that it gets.

    It is the same module afterwards: the names and the values of its weights do not change.

    Raises:
        ValueError: if nothing can be compiled for the device, as without a C++ compiler on a CPU, or Triton on a GPU.
    """

    def increment(value: torch.Tensor) -> torch.Tensor:
        return value + 1

    try:
        torch.compile(increment)(torch.zeros(1, device=device))
    except Exception as error:  # whatever the compiler raises
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise ValueError(
            f"`compile` needs a `torch.compile` that works on {device.type}, and this one does not: {reason}"
        ) from error
    unet.compile_repeated_blocks(dynamic=False)
