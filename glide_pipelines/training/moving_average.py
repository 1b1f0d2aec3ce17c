"""The moving average of the weights, which is the trained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel
from torch import nn

from .sharding import from_local, gather, local, scatter


class MovingAverage:
    """An exponential moving average of weights.

    Args:
        model (`nn.Module`): What gets the average to be sampled from.
        parameters (`Mapping[str, nn.Parameter]`): What is averaged, by name: parameters of the model, or of a copy of
            it that is trained sharded in its place.
        decay (`float`): The decay, which ramps up over the first steps.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.model, self.parameters, self.decay = model, parameters, decay
        self._local = [local(parameter) for parameter in parameters.values()]
        self._ema = EMAModel(self._local, decay=decay, foreach=True)

    @property
    def optimization_step(self) -> int:
        """Steps so far."""
        return int(self._ema.optimization_step)

    def step(self) -> None:
        """Take the weights of one more step into the average."""
        self._ema.step(self._local)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The average, sharded as the parameters are."""
        averages = zip(self._ema.shadow_params, self.parameters.items(), strict=True)
        return {name: from_local(average, parameter) for average, (name, parameter) in averages}

    def load(self, tensors: Mapping[str, torch.Tensor], optimization_step: int) -> None:
        """Take over whole averages."""
        self._ema.optimization_step = optimization_step
        for average, (name, parameter) in zip(self._ema.shadow_params, self.parameters.items(), strict=True):
            average.copy_(local(scatter(tensors[name], parameter)))

    def copy_to_model(self) -> None:
        """Leave the average in the model. Every process must call it."""
        copy_to(self.model, gather(self.tensors()))

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Put the average into the model for a while, ready to sample from. Every process must call it."""
        device = self._local[0].device
        before = next(self.model.parameters()).device  # a sharded run keeps the whole model elsewhere
        self._ema.store(self._local)
        self.copy_to_model()
        self.model.eval().to(device)
        try:
            yield
        finally:
            self.model.train().to(before)
            self._ema.restore(self._local)


@torch.no_grad()
def copy_to(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy tensors into parameters of the same names."""
    for name, tensor in tensors.items():
        model.get_parameter(name).copy_(tensor)
