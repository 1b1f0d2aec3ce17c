"""Averages of the weights; the trained model is one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .sharding import from_local, gather, local, scatter


# (diffusers' EMAModel has one kind of decay, counts the steps itself, and knows neither names nor shards.)
class Average:
    """An average of the weights after each step.

    Args:
        parameters (`Mapping[str, nn.Parameter]`): What is averaged, by name; a process may hold a part of it only.
        beta (`Callable[[int], float]`): How much of the average stays at the step of this number, counted from 1: see
            [`moving`] and [`~glide_pipelines.training.power_averages.power`].
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], beta: Callable[[int], float]) -> None:
        self.parameters, self.beta = parameters, beta
        self._weights = [local(parameter) for parameter in parameters.values()]
        self._averages = [weight.detach().clone() for weight in self._weights]

    def step(self, number: int) -> None:
        """Take in the weights after the step of this number."""
        get_ema_multi_avg_fn(self.beta(number))(self._averages, self._weights, number)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The average, sharded as the parameters are."""
        averages = zip(self._averages, self.parameters.items(), strict=True)
        return {name: from_local(average, parameter) for average, (name, parameter) in averages}

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over a whole average."""
        for average, (name, parameter) in zip(self._averages, self.parameters.items(), strict=True):
            average.copy_(local(scatter(tensors[name], parameter)))

    @contextmanager
    def in_model(self, model: nn.Module) -> Iterator[None]:
        """Put the average into a model for a while, ready to sample from. Every process must call it."""
        before = {name: model.get_parameter(name).detach().to("cpu", copy=True) for name in self.parameters}
        device = next(model.parameters()).device  # a sharded run keeps the whole model elsewhere
        copy_to(model, gather(self.tensors()))
        model.eval().to(self._weights[0].device)
        try:
            yield
        finally:
            model.train().to(device)
            copy_to(model, before)


def moving(decay: float) -> Callable[[int], float]:
    """beta of an exponential moving average, whose decay ramps up over the first steps, from 0."""
    return lambda number: 0.0 if number == 1 else min(decay, number / (number + 9))


@torch.no_grad()
def copy_to(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into parameters of the same names."""
    for name, tensor in tensors.items():
        model.get_parameter(name).copy_(tensor)
