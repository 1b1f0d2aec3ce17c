"""Enlarging: any picture and a prompt in, the picture four times as large out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from numbers import Integral
from typing import Any, Self

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import replace_example_docstring
from transformers import GPT2Tokenizer

from ..images import common_size, load_images, pad_to, to_tensor
from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..sampling.tiles import TiledUNet
from .input_checks import check_latents, check_multiple
from .pipeline_output import GLIDEPipelineOutput
from .pipeline_utils import GLIDEPipelineBase, enlargement


# Options of `from_pretrained` that say which files to read, and where to get them.
_HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from diffusers.utils import load_image
        >>> from glide_pipelines import GLIDESuperResolutionPipeline, shapes_checkpoint

        >>> pipe = GLIDESuperResolutionPipeline.from_pretrained(shapes_checkpoint())
        >>> small = load_image("small.png")
        >>> pipe("a red circle above a blue square", image=small).images[0].save("large.png")
        ```
"""


class GLIDESuperResolutionPipeline(GLIDEPipelineBase):
    """GLIDE's upsampler on its own.

    Args:
        tokenizer (`GPT2Tokenizer`): GLIDE's byte-level BPE.
        super_res_text_encoder ([`GLIDETextEncoder`]): Of the upsampler.
        super_res_unet ([`GLIDEUNet2DConditionModel`]): The upsampler, 6 input channels.
        super_res_scheduler (`SchedulerMixin`): [`GLIDEDDIMScheduler`] as released.
        enlargement (`int`, defaults to 4): How many times larger the upsampler was trained to make a picture.
        prompt_domain (`str`, *optional*), low_res_consistency (`bool`, defaults to `False`): See [`GLIDEPipeline`].
    """

    # The base stage, which other pipelines have.
    text_encoder = None
    unet = None
    scheduler = None

    def __init__(
        self,
        tokenizer: GPT2Tokenizer,
        super_res_text_encoder: GLIDETextEncoder,
        super_res_unet: GLIDEUNet2DConditionModel,
        super_res_scheduler: SchedulerMixin,
        enlargement: int = 4,
        prompt_domain: str | None = None,
        low_res_consistency: bool = False,
    ) -> None:
        DiffusionPipeline.__init__(self)
        self.register_modules(
            tokenizer=tokenizer,
            super_res_text_encoder=super_res_text_encoder,
            super_res_unet=super_res_unet,
            super_res_scheduler=super_res_scheduler,
        )
        self.register_to_config(
            enlargement=enlargement, prompt_domain=prompt_domain, low_res_consistency=low_res_consistency
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Open what this class saved, or the upsampler of a pair, whose base is then not loaded (from the Hub it is
        downloaded all the same).

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a Hub id.
            kwargs: As `DiffusionPipeline.from_pretrained` takes them. `enlargement` is by default what was saved; of a
                pair, how many times larger than the base's pictures the upsampler's are.

        Returns:
            A pipeline of this class.

        Raises:
            OSError, ValueError: as `DiffusionPipeline.from_pretrained` raises them.
        """
        if "enlargement" not in kwargs and not os.path.isfile(pretrained_model_name_or_path):
            hub_options = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
            saved = cls.load_config(pretrained_model_name_or_path, **hub_options)

            def sample_size(name: str) -> int | list[int] | None:
                """Of the UNet that is given, or else saved; None if there is none."""
                if name in kwargs:
                    return None if kwargs[name] is None else kwargs[name].config.sample_size
                if saved.get(name, (None,))[0] is None:
                    return None
                config = GLIDEUNet2DConditionModel.load_config(
                    pretrained_model_name_or_path, subfolder=name, **hub_options
                )
                return config.get("sample_size")

            sizes = [sample_size("super_res_unet"), sample_size("unet")]
            if None not in sizes:
                kwargs["enlargement"] = enlargement(*sizes)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> GLIDESuperResolutionPipeline:
        if getattr(pipeline, "unet", None) is not None and getattr(pipeline, "super_res_unet", None) is not None:
            kwargs.setdefault("enlargement", pipeline.scale_factor)
        return super().from_pipe(pipeline, **kwargs)

    def load_lora_weights(self, *args: Any, **kwargs: Any) -> None:
        """Not here: LoRA weights of a pipeline are the base model's.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "LoRA weights of a pipeline are those of its base model, and there is none. Those of an upsampler go into "
            "it with `pipe.super_res_unet.load_lora_adapter(...)`."
        )

    @property
    def default_guidance_scale(self) -> float:
        """1: the upsampler runs without guidance."""
        return 1.0

    @property
    def scale_factor(self) -> int:
        """How many times larger than the given picture the returned one is."""
        return self.config.enlargement

    @property
    def size_multiple(self) -> int:
        """Inside, height and width of the large picture are padded to multiples of this number of pixels."""
        return math.lcm(self.super_res_unet.size_multiple, self.scale_factor)

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        super_res_num_inference_steps: int | None = None,
        super_res_timesteps: str | list[int] | None = None,
        num_images_per_prompt: int = 1,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        upsample_temperature: float = 0.997,
        generator: torch.Generator | list[torch.Generator] | None = None,
        super_res_latents: torch.Tensor | None = None,
        super_res_prompt_embeds: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> GLIDEPipelineOutput | tuple:
        """Enlarge pictures.

        Args:
            prompt (`str` or `list[str]`, *optional*): What the picture shows; or `super_res_prompt_embeds`.
            image (PIL, `np.ndarray`, `torch.Tensor` or a list of them): The small picture, of any size, see
                `load_images`; one for all prompts, or one for each.
            tile_size (`int`, *optional*): Larger results are drawn in overlapping tiles of so many pixels, which bounds
                the memory of the network; by default the size that it was trained on. A multiple of the network's size
                multiple, `super_res_unet.size_multiple`.
            tile_overlap (`int`, *optional*): Pixels that neighbouring tiles share at least; a quarter of a tile by
                default. Tiles are at least the network's size multiple apart.
            super_res_num_inference_steps, super_res_timesteps, num_images_per_prompt, upsample_temperature, generator,
            super_res_latents, super_res_prompt_embeds, output_type, return_dict, callback_on_step_end,
            callback_on_step_end_tensor_inputs: As in [`GLIDEPipeline`].

        Examples:

        Returns:
            [`GLIDEPipelineOutput`], or with `return_dict=False` a tuple with the pictures.

        Raises:
            ValueError, TypeError: before any network runs, naming the argument, what was given and what is allowed.
        """
        # 1. Check everything before any network runs.
        if self.super_res_unet is None or self.super_res_scheduler is None:
            raise ValueError("`super_res_unet` and `super_res_scheduler` are needed to enlarge, and there are none.")
        self._check_channels(super_res_unet=(6,))
        call = self._prepare_call(
            prompt=prompt,
            num_images_per_prompt=num_images_per_prompt,
            super_res_prompt_embeds=super_res_prompt_embeds,
            super_res_num_inference_steps=super_res_num_inference_steps,
            super_res_timesteps=super_res_timesteps,
            upsample_temperature=upsample_temperature,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        if image is None:
            raise ValueError("Pass `image`: there is nothing to enlarge.")
        pictures = self._prepare_images("image", load_images("image", image), call.batch_size, num_images_per_prompt)
        small_size = common_size("image", pictures, "enlarge one size at a time")
        height, width = (length * self.scale_factor for length in small_size)
        inside = self._padded((height, width))
        unet = self._tiled(max(inside), tile_size, tile_overlap)
        if super_res_latents is not None:
            check_latents("super_res_latents", super_res_latents, (call.num_images, 3, *inside))

        # 2. Encode the prompts.
        self._encode_call(call)

        # 3. Enlarge the pictures.
        small = tuple(length // self.scale_factor for length in inside)
        low_res = to_tensor(pad_to(pictures, small), small).to(self._execution_device)
        enlarged = self._enlarge(call, low_res, inside, super_res_latents, unet)
        return self._finish(call, enlarged[..., :height, :width])

    def _tiled(
        self, length: int, tile_size: int | None, tile_overlap: int | None
    ) -> GLIDEUNet2DConditionModel | TiledUNet:
        """The network itself where the picture fits one tile, else the network in tiles."""
        tile_size = max(self.default_size) if tile_size is None else tile_size
        step = self.super_res_unet.size_multiple
        check_multiple("tile_size", tile_size, step)
        tile_overlap = tile_size // 4 if tile_overlap is None else tile_overlap
        most = tile_size - step
        if isinstance(tile_overlap, bool) or not isinstance(tile_overlap, Integral) or not 0 <= tile_overlap <= most:
            raise ValueError(
                f"`tile_overlap` must be an integer from 0 to {most}, which is `tile_size` less {step}, "
                f"got {tile_overlap!r}."
            )
        if length <= tile_size:
            return self.super_res_unet
        return TiledUNet(self.super_res_unet, tile_size, tile_overlap, step)
