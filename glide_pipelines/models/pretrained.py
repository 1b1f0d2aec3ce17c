"""What our transformers models share."""

from __future__ import annotations

from typing import Any, Self

import torch
from transformers.models.clip.modeling_clip import CLIPMLP, CLIPAttention, CLIPPreTrainedModel

from .checks import CheckedLoading


class Float32Mixin(CheckedLoading):
    """Loads a transformers model as diffusers loads its own: in float32, unless asked otherwise."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """Load as any model of transformers, but in float32 unless `dtype` asks otherwise, and checked, see
        [`CheckedLoading`].

        transformers would keep the dtype of the file, while diffusers loads a UNet in float32: a pipeline saved in
        float16 would come back mixed.
        """
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = torch.float32
        return super().from_pretrained(*args, **kwargs)


def init_clip_layers(model: CLIPPreTrainedModel) -> None:
    """Sample the weights of CLIP's transformer layers inside a model that is not one of transformers' own.

    In such a model transformers (5.23) passes over modules without parameters of their own, and so over the attention
    and the feed-forward layers, whose weights CLIP's rule scales by their width. They would keep the standard
    deviation of 0.02 that every linear layer gets, which is much too small for narrow models: attention hardly learns.
    """
    for module in model.modules():
        if isinstance(module, CLIPAttention | CLIPMLP):
            CLIPPreTrainedModel._init_weights(model, module)
