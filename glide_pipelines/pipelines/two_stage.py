"""The components of text to image, editing and CLIP guidance: a base stage and an upsampler."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TypeVar

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import GPT2Tokenizer

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..sampling import scale_factor
from .input_checks import check_latents, check_multiple
from .pipeline_utils import GLIDEPipelineBase


UPSAMPLER = ("super_res_text_encoder", "super_res_unet", "super_res_scheduler")
Init = TypeVar("Init", bound=Callable)


def upsampler_without_defaults(init: Init) -> Init:
    """Hide from who inspects an `__init__` that the components of the upsampler have a default.

    `DiffusionPipeline.from_pretrained` takes what has a default for a setting, whatever the class that it opens says,
    and loads the saved component over one that is given.
    """
    signature = inspect.signature(init)
    parameters = [p.replace(default=p.empty) if p.name in UPSAMPLER else p for p in signature.parameters.values()]
    init.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # of functions
    return init


class TwoStagePipeline(GLIDEPipelineBase):
    """A base stage and, optionally, an upsampler, whose components pipelines may share: see [`GLIDEPipeline`]."""

    text_encoder: GLIDETextEncoder | None
    unet: GLIDEUNet2DConditionModel
    scheduler: SchedulerMixin
    super_res_text_encoder: GLIDETextEncoder | None
    super_res_unet: GLIDEUNet2DConditionModel | None
    super_res_scheduler: SchedulerMixin | None

    model_cpu_offload_seq = "text_encoder->super_res_text_encoder->unet->super_res_unet"
    _optional_components = ["tokenizer", "text_encoder", *UPSAMPLER]
    _components_with_defaults = UPSAMPLER
    _lora_loadable_modules = ["unet", "text_encoder", "super_res_unet", "super_res_text_encoder"]
    _released_guidance_scale = 3.0

    @upsampler_without_defaults
    def __init__(
        self,
        tokenizer: GPT2Tokenizer,
        text_encoder: GLIDETextEncoder,
        unet: GLIDEUNet2DConditionModel,
        scheduler: SchedulerMixin,
        super_res_text_encoder: GLIDETextEncoder | None = None,
        super_res_unet: GLIDEUNet2DConditionModel | None = None,
        super_res_scheduler: SchedulerMixin | None = None,
        prompt_domain: str | None = None,
        low_res_consistency: bool = False,
        default_guidance_scale: float | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=unet,
            scheduler=scheduler,
            super_res_text_encoder=super_res_text_encoder,
            super_res_unet=super_res_unet,
            super_res_scheduler=super_res_scheduler,
        )
        self.register_to_config(
            prompt_domain=prompt_domain,
            low_res_consistency=low_res_consistency,
            default_guidance_scale=default_guidance_scale,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @property
    def default_guidance_scale(self) -> float:
        """Guidance of a call that names none: what the checkpoint recommends, else that of OpenAI's notebook."""
        recommended = self.config.default_guidance_scale
        return self._released_guidance_scale if recommended is None else recommended

    @property
    def scale_factor(self) -> int:
        """How many times larger than the base image the returned one is; 1 without an upsampler."""
        if self.super_res_unet is None:
            return 1
        return scale_factor(self.super_res_unet.config.sample_size, self.unet.config.sample_size)

    @property
    def size_multiple(self) -> int:
        """Height and width of the returned image must be multiples of this number of pixels."""
        multiple = self.unet.size_multiple * self.scale_factor
        return multiple if self.super_res_unet is None else math.lcm(multiple, self.super_res_unet.size_multiple)

    def _base_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the base image that belongs to a generated image of a size."""
        scale = self.scale_factor
        return size[0] // scale, size[1] // scale

    def check_inputs(
        self,
        num_images: int,
        height: int,
        width: int,
        latents: torch.Tensor | None = None,
        super_res_latents: torch.Tensor | None = None,
    ) -> None:
        """Check the size of the image and the given noise.

        Args:
            num_images (`int`): Images in all.
            height, width (`int`): Size of the returned image in pixels.
            latents, super_res_latents (`torch.Tensor`, *optional*): Given noise of each stage.

        Raises:
            ValueError, TypeError: naming the argument, what was given and what is allowed.
        """
        multiple = self.size_multiple
        for name, size in (("height", height), ("width", width)):
            check_multiple(name, size, multiple)
        if latents is not None:
            check_latents("latents", latents, (num_images, 3, *self._base_size((height, width))))
        if super_res_latents is not None:
            check_latents("super_res_latents", super_res_latents, (num_images, 3, height, width))
