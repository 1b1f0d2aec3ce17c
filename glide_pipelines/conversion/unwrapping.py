"""Which state dict of a file is the model's: training scripts wrap it in other names and other dictionaries."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from .detection import describe, detect_kind
from .errors import ConversionError


# What DataParallel, torch.compile, FSDP and activation checkpointing put into the names of the tensors that they hold.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# The counter beside the weights of torch.optim.swa_utils.AveragedModel.
_AVERAGED_MODEL_COUNTER = "n_averaged"
# `ema`, `model_ema`, `state_dict.ema_model` and the like.
_AVERAGE = re.compile(r"(?<![a-z])ema(?![a-z])", re.IGNORECASE)
_MAX_DEPTH = 4


def find_state_dicts(content: Mapping[Any, Any]) -> dict[str, dict[str, torch.Tensor]]:
    """The state dicts of GLIDE in what a file holds, without the names of wrappers.

    Args:
        content (`Mapping`): A state dict, or dictionaries around it; or tensors whose names have a common beginning,
            such as the `model.` of a training framework.

    Returns:
        `dict[str, dict[str, torch.Tensor]]`: by the keys that lead to each of them, joined by dots; empty for the
        content itself.

    Raises:
        ConversionError: if a state dict holds anything but tensors, or two tensors of one name.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    _search(content, "", _MAX_DEPTH, set(), found)
    return found


def choose_state_dict(
    content: Mapping[Any, Any], found: Mapping[str, Mapping[str, torch.Tensor]], kinds: tuple[str, ...]
) -> tuple[str, str]:
    """Key and kind of the state dict to take, of those that [`find_state_dicts`] has found in the content of a file.

    Raises:
        ConversionError: if there is none of these kinds, or several with nothing to prefer one.
    """
    wanted = " or ".join(kinds)
    if not found:
        raise ConversionError(f"this is {_describe_content(content)}, where {wanted} is needed")
    detected = {key: detect_kind(state_dict) or "" for key, state_dict in found.items()}
    candidates = [key for key, kind in detected.items() if kind in kinds]
    if not candidates:
        raise ConversionError(
            f"this is GLIDE's {' and '.join(sorted(set(detected.values())))}, where {wanted} is needed"
        )
    chosen = [key for key in candidates if _AVERAGE.search(key)] or candidates
    if len(chosen) > 1:
        keys = ", ".join(map(repr, chosen))
        raise ConversionError(f"the file holds several models, under {keys}: save the wanted one in a file of its own")
    return chosen[0], detected[chosen[0]]


def unread_averages(content: Mapping[Any, Any], found: Mapping[str, Any]) -> list[str]:
    """Keys of averages whose tensors do not have the names of a state dict, as some frameworks keep them."""
    sizes: Counter[str] = Counter()
    for path, part in (("", content), *((f"{key}.", part) for key, part in content.items())):
        for key, value in part.items() if isinstance(part, Mapping) else ():
            name = str(key).split(".")[0]
            if _AVERAGE.search(name):
                sizes[path + name] += len(value) if isinstance(value, Mapping | list) else _is_named_tensor(key, value)
    read = [f"{key}." for key in found]
    return [name for name, size in sizes.items() if size > 1 and not any(key.startswith(f"{name}.") for key in read)]


def _search(
    content: Mapping[Any, Any], path: str, depth: int, seen: set[int], found: dict[str, dict[str, torch.Tensor]]
) -> None:
    tensors = {_unwrapped(key): value for key, value in content.items() if _is_named_tensor(key, value)}
    if detect_kind(tensors) is not None:
        found[path] = _plain_state_dict(content)
        return
    if depth == 0:
        return
    parts: dict[str, Mapping[Any, Any]] = {}
    by_first_name: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, value in content.items():
        # A pickle can hold a dictionary many times, or in itself.
        if isinstance(value, Mapping) and id(value) not in seen:
            seen.add(id(value))
            parts[str(key)] = value
        elif _is_named_tensor(key, value) and "." in key:
            first, rest = key.split(".", 1)
            by_first_name[first][rest] = value
    for name, part in [*parts.items(), *by_first_name.items()]:
        _search(part, f"{path}.{name}" if path else name, depth - 1, seen, found)


def _plain_state_dict(content: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a state dict under the names that they have outside of wrappers."""
    state_dict: dict[str, torch.Tensor] = {}
    for key, value in content.items():
        if not _is_named_tensor(key, value):
            raise ConversionError(
                f"a plain state dict is needed (names and tensors), the file holds a {type(value).__name__} "
                f"under {key!r}"
            )
        name = _unwrapped(key)
        if name in state_dict:
            raise ConversionError(f"the file holds two tensors for {name!r}, with and without the name of a wrapper")
        if name != _AVERAGED_MODEL_COUNTER:
            state_dict[name] = value.detach()
    return state_dict


def _unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _is_named_tensor(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, torch.Tensor)


def _describe_content(content: Mapping[Any, Any]) -> str:
    """What a file without a state dict of GLIDE holds, in words."""
    parts = [content, *(value for value in content.values() if isinstance(value, Mapping))]
    tensors = {_unwrapped(key): value for part in parts for key, value in part.items() if _is_named_tensor(key, value)}
    if not tensors:
        key, value = next(iter(content.items()))
        return f"no state dict (names and tensors): the file holds a {type(value).__name__} under {key!r}"
    return describe(tensors)
