"""Checks of arguments, for all layers. Each names the argument, what was given and what is allowed."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch


def check_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """`value` must be a finite number between `low` and `high`.

    Raises:
        TypeError, ValueError: if it is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a number, got {describe(value)}.")
    magnitude: Any = abs(value)  # whole numbers may be too large for `math.isfinite`
    if not magnitude <= sys.float_info.max:
        raise ValueError(f"`{name}` must be finite, got {value}.")
    if not low <= float(value) <= high:
        raise ValueError(f"`{name}` must lie between {low} and {high}, got {value}.")


def check_tensor(name: str, value: Any, *shape: int | str, floating_point: bool | None = True) -> None:
    """`value` must be a dense tensor of real numbers, of a shape.

    Its values are not looked at: an accelerator would have to synchronize.

    Args:
        name (`str`): Of the argument.
        value: What was given.
        shape (`int` or `str`): The length of each dimension; one that may be any, but not 0, is named instead.
        floating_point (`bool`, *optional*, defaults to `True`): False asks for whole numbers or booleans, None takes
            both.

    Raises:
        TypeError, ValueError: if it is not.
    """
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {describe(value)}.")
    is_kind = not value.is_complex() and floating_point in (None, value.is_floating_point())
    if value.layout != torch.strided or not is_kind:
        kinds = {True: "floating-point tensor", False: "tensor of whole numbers", None: "tensor of numbers"}
        given = value.dtype if value.layout == torch.strided else value.layout
        raise TypeError(f"`{name}` must be a dense {kinds[floating_point]}, got one of {given}.")
    pairs = zip(shape, value.shape, strict=False)
    if value.ndim != len(shape) or any(isinstance(wanted, int) and length != wanted for wanted, length in pairs):
        raise ValueError(f"`{name}` must have the shape [{', '.join(map(str, shape))}], got {list(value.shape)}.")
    if not value.numel():
        raise ValueError(f"`{name}` must not be empty, got the shape {list(value.shape)}.")


def check_indices(name: str, value: torch.Tensor, length: int) -> None:
    """Indices into a table must lie in it. Only looked at on the CPU: an accelerator would have to synchronize.

    Raises:
        TypeError, ValueError: if they are booleans, or do not.
    """
    if value.dtype == torch.bool:
        raise TypeError(f"`{name}` must be a tensor of whole numbers, got one of {value.dtype}.")
    if value.device.type == "cpu" and value.numel() and not torch.compiler.is_compiling():
        low, high = value.min().item(), value.max().item()
        if not 0 <= round(low) <= round(high) < length:
            raise ValueError(f"`{name}` must lie between 0 and {length - 1}, got {low} to {high}.")


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Where two settings differ: the earlier value and the present one, by name; None is one that is missing."""
    pairs = {name: (earlier.get(name), now.get(name)) for name in {**earlier, **now}}
    return {name: (before, after) for name, (before, after) in pairs.items() if before != after}


def describe(value: Any) -> str:
    """What was given, for an error: of a list only what it is made of, and of anything else its beginning."""
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {sorted({type(entry).__name__ for entry in value})}"
    text = repr(value)
    return f"{text if len(text) <= 100 else text[:100] + '...'} ({type(value).__name__})"
