"""Optimizers by name: those of torch, and those of packages that may be installed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


# Names of other packages' optimizers, and where they are. (The state of torchao's are no plain tensors.)
_PACKAGES = {
    "adamw8bit": ("bitsandbytes", "bitsandbytes.optim", "AdamW8bit"),
    "adamwschedulefree": ("schedulefree", "schedulefree", "AdamWScheduleFree"),
    "sgdschedulefree": ("schedulefree", "schedulefree", "SGDScheduleFree"),
}
# LBFGS evaluates the loss several times a step, SparseAdam wants sparse gradients.
_UNFIT = {"LBFGS", "SparseAdam", "Optimizer"}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The optimizer of a name, in any mix of upper and lower case.

    Args:
        name (`str`): One of `torch.optim`, such as `"adamw"` or `"sgd"`, or `"adamw8bit"` (of bitsandbytes),
            `"adamwschedulefree"` or `"sgdschedulefree"` (of schedulefree).

    Raises:
        ValueError: if there is none of that name.
        ImportError: naming the package that is missing.
    """
    own = {
        found.__name__.lower(): found
        for found in vars(torch.optim).values()
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) and found.__name__ not in _UNFIT
    }
    key = name.lower().replace("_", "").replace("-", "")
    if key in own:
        return own[key]
    if key not in _PACKAGES:
        raise ValueError(f"`optimizer` must be one of {', '.join(sorted({*own, *_PACKAGES}))}, got {name!r}.")
    package, module, found = _PACKAGES[key]
    try:
        return getattr(importlib.import_module(module), found)
    except ImportError as error:
        raise ImportError(f"`optimizer` {name} needs the package {package}: pip install {package}") from error


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, adam: Mapping[str, Any], options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """An optimizer of a name.

    Args:
        name (`str`): See [`optimizer_class`].
        parameters (`Iterable[nn.Parameter]`): What it optimizes.
        lr (`float`): The learning rate.
        adam (`Mapping[str, Any]`): `betas`, `eps` and `weight_decay`, for Adam and its relatives; the others, which
            take no `betas`, mean something else by these names.
        options (`Mapping[str, Any]`): Settings of its own, which it must take.

    Raises:
        ValueError: if it does not take a setting or the parameters.
        ImportError: naming the package that is missing.
    """
    found: Any = optimizer_class(name)
    taken = inspect.signature(found).parameters
    unknown = sorted(options.keys() - taken.keys())
    if unknown:
        allowed = sorted(taken.keys() - {"params", "lr"})
        raise ValueError(f"`optimizer_args`: {name} takes {', '.join(allowed)}; got {', '.join(unknown)}.")
    values = {"fused": True} if "fused" in taken else {}
    values |= (dict(adam) if "betas" in taken else {}) | dict(options)
    try:
        optimizer: torch.optim.Optimizer = found(parameters, lr=lr, **values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"`optimizer` {name}: {error}") from error
    if hasattr(optimizer, "train"):  # schedule-free
        optimizer.train()
    return optimizer


@contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Put the weights that are to be used into the model: those of a schedule-free optimizer are not those at which it
    takes the gradient (arXiv 2405.15682, equations 5 to 7)."""
    schedule_free: Any = optimizer if hasattr(optimizer, "eval") else None
    if schedule_free is not None:
        schedule_free.eval()
    try:
        yield
    finally:
        if schedule_free is not None:
            schedule_free.train()
