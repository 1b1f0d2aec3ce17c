"""Devices that the machine of the tests lacks."""

import torch
from torch.overrides import TorchFunctionMode


class OnlyTheCPUHasFloat64(TorchFunctionMode):
    """Fails where float64 gets to another device: MPS has none. The device "meta" does for a test."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            assert result.device.type == "cpu" or result.dtype != torch.float64
        return result
