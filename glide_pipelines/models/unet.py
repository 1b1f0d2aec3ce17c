"""GLIDE's UNet: diffusers' own blocks with text tokens in every attention layer (arXiv 2112.10741, section 3.1)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from ..arguments import check_tensor
from ..single_file import SingleFileNetworkMixin
from .checks import CheckedLoading, Shapes


# A UNet of so many channels is faster in the channels-last layout, a small one is slower (docs/performance.md).
CHANNELS_LAST_WIDTH = 128


class GLIDEUNet2DConditionModel(CheckedLoading, SingleFileNetworkMixin, UNet2DConditionModel):
    """The UNet of GLIDE's base model, upsampler, and their inpainting variants.

    A [`~diffusers.UNet2DConditionModel`] whose attention layers see image and text tokens concatenated, and whose
    time embedding adds a projection of the last text token. Which variant a model is follows from its
    `in_channels`; the class stacks the channels itself, so that callers pass what they have:

    | variant | `in_channels` | stacked as |
    |---|---|---|
    | base | 3 | `[x]` |
    | upsampler | 6 | `[x, low_res]` |
    | inpainting base | 7 | `[x, image * keep, keep]` |
    | inpainting upsampler | 10 | `[x, image * keep, keep, low_res]` |

    with `keep = 1 - mask`. Without image and mask, an inpainting model repaints everything, which is text to image.
    The output has 6 channels: the noise prediction, then the variance (see [`GLIDEDDPMScheduler`]). Use
    [`~GLIDEUNet2DConditionModel.glide_config`] for the settings that make the stock class a GLIDE UNet.
    """

    _no_split_modules = ["ResnetBlock2D", "Attention"]
    # Whole blocks: no two of a UNet's layers have the same shape, and torch compiles one function for 8 shapes at most.
    _repeated_blocks = [
        "ResnetDownsampleBlock2D",
        "SimpleCrossAttnDownBlock2D",
        "UNetMidBlock2DSimpleCrossAttn",
        "SimpleCrossAttnUpBlock2D",
        "ResnetUpsampleBlock2D",
    ]
    _sizes = {
        "in_channels": ("conv_in.weight", 1),
        "out_channels": ("conv_out.weight", 0),
        "projection_class_embeddings_input_dim": ("class_embedding.weight", 1),
    }
    _counts = {
        "len(block_out_channels)": r"down_blocks\.(\d+)\.",
        "layers_per_block": r"down_blocks\.0\.resnets\.(\d+)\.",
    }
    _positive = ("sample_size", "attention_head_dim", "norm_num_groups")

    @staticmethod
    def glide_config(
        block_out_channels: tuple[int, ...],
        attention_levels: tuple[int, ...],
        layers_per_block: int,
        text_hidden_size: int,
        in_channels: int = 3,
        sample_size: int = 64,
        attention_head_dim: int = 64,
        dropout: float = 0.1,
        norm_num_groups: int = 32,
    ) -> dict[str, Any]:
        """The `__init__` arguments that make diffusers' class a GLIDE UNet of the given size.

        Args:
            block_out_channels (`tuple[int, ...]`): Channels per level, from the full resolution down.
            attention_levels (`tuple[int, ...]`): Indices of the levels that attend (level `i` works at
                `1 / 2**i` of the resolution).
            layers_per_block (`int`): Residual blocks per level.
            text_hidden_size (`int`): Width of the text encoder's output.
            in_channels (`int`, defaults to 3): 3, 6, 7 or 10, see the table above.
            sample_size (`int`, defaults to 64): Height and width of the image, in pixels.
            attention_head_dim (`int`, defaults to 64): Channels per attention head.
            dropout (`float`, defaults to 0.1): Dropout in the residual blocks, while training.
            norm_num_groups (`int`, defaults to 32): Groups of the group norms.

        Returns:
            `dict`: keyword arguments for [`GLIDEUNet2DConditionModel`].
        """
        attends = [level in attention_levels for level in range(len(block_out_channels))]
        down = ["SimpleCrossAttnDownBlock2D" if each else "ResnetDownsampleBlock2D" for each in attends]
        up = ["SimpleCrossAttnUpBlock2D" if each else "ResnetUpsampleBlock2D" for each in reversed(attends)]
        return {
            "sample_size": sample_size,
            "in_channels": in_channels,
            "out_channels": 6,
            "block_out_channels": tuple(block_out_channels),
            "layers_per_block": layers_per_block,
            "down_block_types": tuple(down),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": tuple(up),
            "cross_attention_dim": text_hidden_size,
            "attention_head_dim": attention_head_dim,
            "resnet_time_scale_shift": "scale_shift",
            "class_embed_type": "simple_projection",
            "projection_class_embeddings_input_dim": text_hidden_size,
            "norm_num_groups": norm_num_groups,
            "dropout": dropout,
        }

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self | tuple[Self, dict[str, Any]]:
        """Load as any model of diffusers, checked ([`CheckedLoading`]), and in [the fastest
        layout](`use_fastest_layout`)."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).use_fastest_layout()
        return loaded

    @classmethod
    def sizes(cls, shapes: Shapes) -> dict[str, int]:
        sizes = super().sizes(shapes)
        for level in range(sizes["len(block_out_channels)"]):
            channels = shapes.get(f"down_blocks.{level}.resnets.0.conv1.weight")
            if channels is not None:
                sizes[f"block_out_channels.{level}"] = channels[0]
            sizes[f"layers_per_block.{level}"] = sizes["layers_per_block"]
        return sizes

    def use_fastest_layout(self) -> Self:
        """Keep the weights of a wide model (from 128 channels at full resolution) in the channels-last memory format.

        It changes no result. Call it before an optimizer is made: that of a trained model keeps its own state in the
        layout that it found.

        Returns:
            [`GLIDEUNet2DConditionModel`]: itself.
        """
        if self.config.block_out_channels[0] >= CHANNELS_LAST_WIDTH:
            # Not the model's own `to`, which refuses one that accelerate has spread over devices.
            to: Any = torch.nn.Module.to  # torch declares no `memory_format` without a device
            to(self, memory_format=torch.channels_last)
        return self

    @property
    def is_upsampler(self) -> bool:
        """Whether the model takes `low_res`."""
        return self.config.in_channels in (6, 10)

    @property
    def is_inpainter(self) -> bool:
        """Whether the model takes `image` and `mask`."""
        return self.config.in_channels in (7, 10)

    @property
    def size_multiple(self) -> int:
        """Height and width of `sample` must be multiples of this number of pixels."""
        return 2**self.num_upsamplers

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        low_res: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Predict noise and variance.

        Args:
            sample (`torch.Tensor` of shape `[B, 3, H, W]`): The noised image x_t. `H` and `W` must be multiples
                of [`~GLIDEUNet2DConditionModel.size_multiple`].
            timestep (`torch.Tensor` of shape `[B]` or a number): Timesteps, 0 (clean) to 999 (noise).
            encoder_hidden_states (`torch.Tensor` of shape `[B, L, C]`): Output of the text encoder.
            class_labels (`torch.Tensor` of shape `[B, C]`, *optional*): What is projected and added to the time
                embedding; the last text token by default.
            low_res (`torch.Tensor` of shape `[B, 3, h, w]`, *optional*): Upsamplers only: the small image, in
                [-1, 1]; enlarged bilinearly to `[H, W]` unless it has that size already.
            image (`torch.Tensor` of shape `[B, 3, H, W]`, *optional*): Inpainting models only: the known image, in
                [-1, 1]. Without it and `mask` everything is repainted.
            mask (`torch.Tensor` of shape `[B, 1, H, W]`, *optional*): Inpainting models only: 1 = repaint, 0 = keep.
            cross_attention_kwargs (`dict`, *optional*): Passed on to the attention processors (`scale` of a LoRA).
            return_dict (`bool`, defaults to `True`): False gives a tuple.

        Returns:
            [`~diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput`]: `sample` of shape `[B, 6, H, W]`.

        Raises:
            ValueError, TypeError: if a condition is missing, not taken by this variant, or of the wrong size or type.
        """
        channels = 3 if self.is_upsampler or self.is_inpainter else self.config.in_channels
        check_tensor("sample", sample, "batch", channels, "height", "width")
        width = self.config.cross_attention_dim
        check_tensor("encoder_hidden_states", encoder_hidden_states, len(sample), "tokens", width)
        if isinstance(timestep, torch.Tensor):
            is_one = timestep.numel() == 1 and timestep.ndim < 2
            check_tensor("timestep", timestep, *(timestep.shape if is_one else (len(sample),)), floating_point=None)
            if timestep.is_meta and not sample.is_meta:
                raise ValueError("`timestep` is on the meta device, where it has no value, and `sample` is not.")
        elif isinstance(timestep, bool) or not isinstance(timestep, Real) or not 0 <= timestep < 2**31:
            raise ValueError(f"`timestep` must be a tensor or a number of 0 or more, got {timestep!r}.")
        else:
            timestep = int(timestep) if isinstance(timestep, Integral) else float(timestep)  # numpy's numbers, too
        return super().forward(
            self._stack_channels(sample, low_res, image, mask),
            timestep,
            encoder_hidden_states,
            class_labels=encoder_hidden_states[:, -1] if class_labels is None else class_labels,
            cross_attention_kwargs=cross_attention_kwargs,
            return_dict=return_dict,
            **kwargs,
        )

    def set_attn_processor(self, processor: Any) -> None:
        """Set how attention is computed, in all layers or in each.

        Args:
            processor (`AttentionProcessor` or `dict[str, AttentionProcessor]`): For all layers, or for each by its
                name.

        Raises:
            ValueError: if it is one of diffusers' processors that leave the text out.
        """
        for each in processor.values() if isinstance(processor, dict) else [processor]:
            is_stock = type(each).__module__ == attention_processor.__name__
            if is_stock and not isinstance(each, attention_processor.ADDED_KV_ATTENTION_PROCESSORS):
                allowed = ", ".join(cls.__name__ for cls in attention_processor.ADDED_KV_ATTENTION_PROCESSORS)
                raise ValueError(
                    f"`processor` must be one of those with added keys and values of text, {allowed}; "
                    f"{type(each).__name__} would ignore the prompt."
                )
        super().set_attn_processor(processor)

    def set_attention_backend(self, backend: str) -> None:
        """Not for this model, whose attention is torch's `scaled_dot_product_attention`.

        Raises:
            NotImplementedError: always; diffusers would change nothing.
        """
        raise NotImplementedError(
            f"`set_attention_backend({backend!r})` has no effect on {type(self).__name__}: choose among the kernels of "
            "torch with `torch.nn.attention.sdpa_kernel`."
        )

    def enable_freeu(self, *args: Any, **kwargs: Any) -> None:
        """Not for this model: FreeU scales the features of blocks of latent diffusion.

        Raises:
            NotImplementedError: always; diffusers would change nothing.
        """
        raise NotImplementedError(f"FreeU has no effect on the blocks of {type(self).__name__}.")

    def _stack_channels(
        self,
        sample: torch.Tensor,
        low_res: torch.Tensor | None,
        image: torch.Tensor | None,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Concatenate the sample with the conditions that this variant takes (table in the class docstring)."""
        if self.is_inpainter and image is None and mask is None:
            image, mask = torch.zeros_like(sample), torch.ones_like(sample[:, :1])
        for name, condition, taken in (
            ("low_res", low_res, self.is_upsampler),
            ("image", image, self.is_inpainter),
            ("mask", mask, self.is_inpainter),
        ):
            if (condition is not None) != taken:
                verb = "needs" if taken else "does not take"
                raise ValueError(f"A UNet with in_channels={self.config.in_channels} {verb} `{name}`.")
        height, width = sample.shape[-2:]
        if height % self.size_multiple or width % self.size_multiple:
            raise ValueError(
                f"Height and width of `sample` must be multiples of {self.size_multiple}, got {height} x {width}."
            )
        for name, condition, channels in (("image", image, 3), ("mask", mask, 1)):
            if condition is not None:
                check_tensor(name, condition, len(sample), channels, height, width)
        stacked = [sample]
        if image is not None and mask is not None:
            keep = 1 - mask.to(sample.dtype)
            stacked += [image.to(sample.dtype) * keep, keep]
        if low_res is not None:
            check_tensor("low_res", low_res, len(sample), 3, "height", "width")
            low_res = low_res.to(sample.dtype)
            if low_res.shape[-2:] != sample.shape[-2:]:
                low_res = F.interpolate(low_res, (height, width), mode="bilinear", align_corners=False)
            stacked.append(low_res)
        return torch.cat(stacked, dim=1) if len(stacked) > 1 else sample

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = torch.utils.checkpoint.checkpoint
    ) -> None:
        # diffusers' blocks recompute only the residual blocks of the down and up paths. The attention layers, the
        # middle block and the residual blocks that resample are wrapped here, so that everything is covered.
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func)
        for module in self._uncovered_by_diffusers():
            module.__dict__.pop("forward", None)
            if enable:
                module.forward = functools.partial(_recompute, gradient_checkpointing_func, module)

    def _uncovered_by_diffusers(self) -> list[nn.Module]:
        modules: list[nn.Module] = [module for module in self.modules() if isinstance(module, Attention)]
        modules += [module for module in self.mid_block.modules() if isinstance(module, ResnetBlock2D)]
        for block in [*self.down_blocks, *self.up_blocks]:
            resamplers = getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or []
            modules += list(resamplers)
        return modules

    @torch.no_grad()
    def zero_output_layers(self) -> None:
        """Zero the last layer of every residual and attention block and of the model, before training from scratch.

        Each block then starts as the identity and the model predicts zero (Dhariwal and Nichol, arXiv 2105.05233).
        """
        last = [module.conv2 for module in self.modules() if isinstance(module, ResnetBlock2D)]
        last += [module.to_out[0] for module in self.modules() if isinstance(module, Attention)]
        for layer in (*last, self.conv_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def _recompute(gradient_checkpointing_func: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The module's own `forward`, run once more in the backward pass while gradients are recorded.

    The module is an argument and not bound beforehand: a deep copy of the model must run the copy's layers.
    """
    forward = functools.partial(type(module).forward, module, **kwargs)
    return gradient_checkpointing_func(forward, *args) if torch.is_grad_enabled() else forward(*args)
