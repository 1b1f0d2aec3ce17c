"""One check of tensors that are passed in, for every function that takes some."""

from __future__ import annotations

from typing import Any

import torch


def check_tensor(name: str, value: Any, *shape: int | str, floating_point: bool | None = True) -> None:
    """`value` must be a dense tensor of real numbers, of a shape.

    Its values are not looked at, which on an accelerator would wait for them.

    Args:
        name (`str`): Of the argument.
        value: What was given.
        shape (`int` or `str`): The length of each dimension; one that may be any, but not 0, is named instead.
        floating_point (`bool`, *optional*, defaults to `True`): False asks for whole numbers or booleans, None takes
            both.

    Raises:
        TypeError, ValueError: naming the argument, what was given and what is allowed.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {value!r} ({type(value).__name__}).")
    is_kind = not value.is_complex() and floating_point in (None, value.is_floating_point())
    if value.layout != torch.strided or not is_kind:
        kinds = {True: "floating-point tensor", False: "tensor of whole numbers", None: "tensor of numbers"}
        given = value.dtype if value.layout == torch.strided else value.layout
        raise TypeError(f"`{name}` must be a dense {kinds[floating_point]}, got one of {given}.")
    pairs = zip(shape, value.shape, strict=False)
    fits = all(length > 0 if isinstance(wanted, str) else length == wanted for wanted, length in pairs)
    if value.ndim != len(shape) or not fits:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"`{name}` must have the shape [{wanted}], got {list(value.shape)}.")


def check_indices(name: str, value: torch.Tensor, length: int) -> None:
    """Indices into a table must lie in it; looked at on the CPU only, since an accelerator would have to be waited for.

    Raises:
        ValueError: naming the argument, what was given and what is allowed.
    """
    if value.device.type == "cpu" and value.numel() and not torch.compiler.is_compiling():
        low, high = value.min().item(), value.max().item()
        if not 0 <= round(low) <= round(high) < length:
            raise ValueError(f"`{name}` must lie between 0 and {length - 1}, got {low} to {high}.")
