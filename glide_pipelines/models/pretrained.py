"""What our transformers models share."""

from __future__ import annotations

from typing import Any, Self

import torch


class Float32Mixin:
    """Loads a transformers model as diffusers loads its own: in float32, unless asked otherwise."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """Load as any model of transformers, but in float32 unless `dtype` asks otherwise.

        transformers would keep the dtype of the file, while diffusers loads a UNet in float32: a pipeline saved in
        float16 would come back mixed.
        """
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = torch.float32
        return super().from_pretrained(*args, **kwargs)
