"""A UNet's pass with fewer and larger kernels, over the same weights, for generating images.

What a pass computes stays as it is in diffusers' blocks; what changes is how often a kernel is launched for it:

- group norm, scale and shift by the time embedding, SiLU and the convolution's bias are one kernel, or two for a large
  image ([`group_norm`]), and so are the two sums and the bias at the end of a block ([`add`]);
- queries, keys and values are one matrix product, the time embedding is projected for all blocks by one;
- what depends on the text alone, its keys and values, is computed once for a prompt ([`~FusedUNet.prepare`]).
"""

from __future__ import annotations

import functools
import logging
import os
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from .unet import GLIDEUNet2DConditionModel


logger = logging.getLogger(__name__)


def group_norm(
    x: torch.Tensor,
    norm: nn.GroupNorm,
    x_bias: torch.Tensor | None = None,
    scale_shift: torch.Tensor | None = None,
    silu: bool = False,
) -> torch.Tensor:
    """Group norm of x plus a bias, then scale and shift, then SiLU.

    Args:
        x (`torch.Tensor` of shape `[B, C, H, W]`): Features.
        norm (`nn.GroupNorm`): Groups, weight and bias.
        x_bias (`torch.Tensor` of shape `[C]`, *optional*): Added to x before.
        scale_shift (`torch.Tensor` of shape `[B, 2 * C]`, *optional*): The result is multiplied by one plus its first
            half, and its second half is added (Improved DDPM, arXiv 2102.09672, section 3).
        silu (`bool`, defaults to `False`): Whether SiLU is applied at the end.

    Returns:
        `torch.Tensor` of shape `[B, C, H, W]`.
    """
    kernels = _kernels(x.device)
    if kernels is not None:
        x = x.contiguous(memory_format=torch.channels_last)
        return kernels.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps, x_bias, scale_shift, silu)
    if x_bias is not None:
        x = x + x_bias[:, None, None]
    x = norm(x)
    if scale_shift is not None:
        scale, shift = scale_shift[..., None, None].chunk(2, dim=1)
        x = x * (1 + scale) + shift
    return F.silu(x) if silu else x


def add(x: torch.Tensor, other: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The sum of two tensors `[B, C, H, W]` and a bias `[C]`."""
    kernels = _kernels(x.device)
    if kernels is not None:
        return kernels.add(*(each.contiguous(memory_format=torch.channels_last) for each in (x, other)), bias)
    return other + (x if bias is None else x + bias[:, None, None])


@functools.cache
def _kernels(device: torch.device) -> ModuleType | None:
    """Triton's kernels, where they run: on CUDA, and on a CPU in Triton's interpreter. None says to use PyTorch's.

    Triton comes with PyTorch for CUDA, but not on Windows, and it needs a C compiler for the first kernel.
    """
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    try:
        from . import triton_kernels
    except ImportError:
        logger.info("There is no Triton here, and PyTorch's own kernels run, which are slower.")
        return None
    try:
        ones = torch.ones(1, 16, 2, 2, device=device).to(memory_format=torch.channels_last)
        triton_kernels.add(ones, ones, None)
    except Exception as error:  # whatever a compiler raises
        reason = " ".join(str(error).split())[:300]
        logger.warning(
            f"Triton's kernels cannot be used; PyTorch's own, which are slower, run in their place: {reason}"
        )
        return None
    return triton_kernels


class FusedUNet:
    """A UNet that shares its weights with another one, and is called like it after [`~FusedUNet.prepare`].

    Blocks of another kind than diffusers' own, such as those with a LoRA or quantized weights, run as they are. See
    [`~FusedUNet.fits`].

    Args:
        unet ([`GLIDEUNet2DConditionModel`]): The other one; it stays as it is.
    """

    def __init__(self, unet: GLIDEUNet2DConditionModel) -> None:
        self.unet = _twin(unet)
        self._convolutions = [(module, module.weight) for module in self.unet.modules() if type(module) is nn.Conv2d]
        self._attentions: list[_Attention] = []
        self._blocks: list[_ResnetBlock] = []
        for module in self.unet.modules():
            if isinstance(module, Attention) and _Attention.fits(module):
                module.processor = _Attention(module)
                self._attentions.append(module.processor)
            elif type(module) is ResnetBlock2D and _ResnetBlock.fits(module):
                module.__class__ = _ResnetBlock
                self._blocks.append(module)
        self._time = _TimeProjections([block.time_emb_proj for block in self._blocks])
        for index, block in enumerate(self._blocks):
            block.scale_shift = functools.partial(self._time, index)
        if isinstance(self.unet.conv_norm_out, nn.GroupNorm) and isinstance(self.unet.conv_act, nn.SiLU):
            self.unet.conv_norm_out = _NormSiLU(self.unet.conv_norm_out)
            self.unet.conv_act = nn.Identity()

    @staticmethod
    def fits(unet: GLIDEUNet2DConditionModel) -> bool:
        """Whether a UNet can have a twin. A fused pass does not call every module: a hook, a `forward` of a module's
        own (gradient checkpointing has one), a compiled block or dropout in training would be passed over."""
        return not any(
            module.training
            or module._forward_hooks
            or module._forward_pre_hooks
            or "forward" in module.__dict__
            or getattr(module, "_compiled_call_impl", None) is not None
            for module in unet.modules()
        )

    def prepare(self, encoder_hidden_states: torch.Tensor) -> list[torch.Tensor]:
        """Compute what depends on the weights and the text `[B, L, C]` alone.

        Call it before the first pass, and again where the text is another one or the weights have changed.

        Returns:
            `list[torch.Tensor]`: what was computed, which the passes read.
        """
        made: list[torch.Tensor] = []
        for conv, weight in self._convolutions:
            # cuDNN's kernels for 16 bits read this layout, and turn every other one into it. PyTorch's norms leave it.
            if _kernels(weight.device) and not weight.is_contiguous(memory_format=torch.channels_last):
                weight = weight.contiguous(memory_format=torch.channels_last)
                conv.weight = nn.Parameter(weight, requires_grad=False)
                made.append(weight)
        for block in self._blocks:
            made += block.prepare()
        for attention in self._attentions:
            made += attention.prepare(encoder_hidden_states)
        return made + (self._time.prepare() if self._blocks else [])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the UNet."""
        self._time.reset()
        return self.unet(*args, **kwargs)


class _ResnetBlock(ResnetBlock2D):
    """A residual block of a twin: its two biases are added by the kernel that comes next anyway."""

    @staticmethod
    def fits(block: ResnetBlock2D) -> bool:
        layers = (block.conv1, block.conv2, block.time_emb_proj, block.conv_shortcut or block.conv1)
        return (
            all(_is_plain(layer) for layer in layers)
            and block.time_embedding_norm == "scale_shift"
            and isinstance(block.nonlinearity, nn.SiLU)
            and block.output_scale_factor == 1
            and not block.skip_time_act
        )

    def prepare(self) -> list[torch.Tensor]:
        if self.conv_shortcut is None:
            return []
        self.both_biases = self.conv2.bias + self.conv_shortcut.bias
        return [self.both_biases]

    def forward(self, input_tensor: torch.Tensor, temb: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden_states = group_norm(input_tensor, self.norm1, silu=True)
        for resample in (self.upsample, self.downsample):
            if resample is not None:
                input_tensor, hidden_states = resample(input_tensor), resample(hidden_states)
        hidden_states = _convolve(self.conv1, hidden_states)
        hidden_states = group_norm(hidden_states, self.norm2, self.conv1.bias, self.scale_shift(temb), silu=True)
        hidden_states = _convolve(self.conv2, hidden_states)
        if self.conv_shortcut is None:
            return add(hidden_states, input_tensor, self.conv2.bias)
        return add(hidden_states, _convolve(self.conv_shortcut, input_tensor), self.both_biases)


class _Attention:
    """An attention processor of a twin, as diffusers' [`AttnAddedKVProcessor2_0`]."""

    def __init__(self, attn: Attention) -> None:
        self.attn = attn
        self._stock = attn.processor

    @staticmethod
    def fits(attn: Attention) -> bool:
        layers = (attn.to_q, attn.to_k, attn.to_v, attn.add_k_proj, attn.add_v_proj, attn.to_out[0])
        return (
            type(attn.processor) is AttnAddedKVProcessor2_0
            and all(_is_plain(layer) for layer in layers)
            and not attn.only_cross_attention
            and not attn.norm_cross
        )

    def prepare(self, encoder_hidden_states: torch.Tensor) -> list[torch.Tensor]:
        attn = self.attn
        self._weight, self._bias = _stacked([attn.to_q, attn.to_k, attn.to_v])
        self._text = F.linear(encoder_hidden_states, *_stacked([attn.add_k_proj, attn.add_v_proj]))
        return [self._weight, self._bias, self._text]

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        if attention_mask is not None:
            return self._stock(attn, hidden_states, encoder_hidden_states, attention_mask)
        batch_size, channels, height, width = hidden_states.shape
        image = group_norm(hidden_states, attn.group_norm).permute(0, 2, 3, 1).reshape(batch_size, -1, channels)
        query, key_value = F.linear(image, self._weight, self._bias).split((channels, 2 * channels), dim=-1)
        key, value = torch.cat([self._text, key_value], dim=1).chunk(2, dim=-1)
        heads = (each.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for each in (query, key, value))
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        attended = F.linear(attended, attn.to_out[0].weight)
        attended = attended.unflatten(1, (height, width)).permute(0, 3, 1, 2)
        return add(attended, hidden_states, attn.to_out[0].bias)


class _TimeProjections:
    """The projections of the time embedding of all blocks, as one matrix product in each pass."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self._layers = layers
        self._parts: tuple[torch.Tensor, ...] | None = None

    def prepare(self) -> list[torch.Tensor]:
        self._weight, self._bias = _stacked(self._layers)
        return [self._weight, self._bias]

    def reset(self) -> None:
        """A pass begins."""
        self._parts = None

    def __call__(self, index: int, temb: torch.Tensor) -> torch.Tensor:
        if self._parts is None:
            projected = F.linear(F.silu(temb), self._weight, self._bias)
            self._parts = projected.split([layer.out_features for layer in self._layers], dim=-1)
        return self._parts[index]


class _NormSiLU(nn.Module):
    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return group_norm(x, self.norm, silu=True)


def _twin(module: nn.Module) -> Any:
    """A module with the same tensors, whose parts may be exchanged without changing the other one's."""
    twin = module.__class__.__new__(module.__class__)
    parts = {name: None if part is None else _twin(part) for name, part in module._modules.items()}
    # Dictionaries of its own, so that what is registered here is not registered there.
    own = {name: dict(getattr(module, name)) for name in ("_parameters", "_buffers")}
    twin.__dict__ = module.__dict__ | own | {"_modules": parts}
    return twin


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is PyTorch's own, without a LoRA, and its weight is neither quantized nor the like."""
    return type(layer) in (nn.Conv2d, nn.Linear) and type(layer.weight) is nn.Parameter and layer.bias is not None


def _convolve(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """The convolution without its bias."""
    return conv._conv_forward(x, conv.weight, None)


def _stacked(layers: list[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of several linear layers of one input, as of one layer."""
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
