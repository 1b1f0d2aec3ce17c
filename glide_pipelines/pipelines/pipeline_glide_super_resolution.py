"""Super-resolution: any image and a prompt in, the image four times as large out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from numbers import Integral
from typing import Any, Self

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import deprecate
from transformers import GPT2Tokenizer

from ..images import common_size, load_images, one_per_sample, pad_to, to_tensor
from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..sampling import CondFn, TiledUNet
from ..sampling import scale_factor as scale_factor_of
from .call import Call
from .input_checks import check_latents, check_multiple
from .pipeline_utils import GLIDEPipelineBase
from .working_area import rounded_up


# Options of `from_pretrained` that say which files to read, and where to get them.
_HUB_OPTIONS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")


class GLIDESuperResolutionPipeline(GLIDEPipelineBase):
    """GLIDE's upsampler on its own: a pipeline of one stage.

    Args:
        tokenizer (`GPT2Tokenizer`): GLIDE's byte-level BPE.
        super_res_text_encoder ([`GLIDETextEncoder`]): Of the upsampler.
        super_res_unet ([`GLIDEUNet2DConditionModel`]): The upsampler, 6 input channels.
        super_res_scheduler (`SchedulerMixin`): [`GLIDEDDIMScheduler`] as released.
        scale_factor (`int`, defaults to 4): How many times larger the upsampler was trained to make an image.
        prompt_domain (`str`, *optional*), low_res_consistency (`bool`, defaults to `False`): See [`GLIDEPipeline`].
        enlargement (`int`, *optional*): The former name of `scale_factor`.
    """

    super_res_text_encoder: GLIDETextEncoder | None
    super_res_unet: GLIDEUNet2DConditionModel
    super_res_scheduler: SchedulerMixin

    model_cpu_offload_seq = "super_res_text_encoder->super_res_unet"
    _optional_components = ["tokenizer", "super_res_text_encoder"]
    _lora_loadable_modules = ["super_res_unet", "super_res_text_encoder"]
    unet_name = "super_res_unet"
    text_encoder_name = "super_res_text_encoder"

    def __init__(
        self,
        tokenizer: GPT2Tokenizer,
        super_res_text_encoder: GLIDETextEncoder,
        super_res_unet: GLIDEUNet2DConditionModel,
        super_res_scheduler: SchedulerMixin,
        scale_factor: int = 4,
        prompt_domain: str | None = None,
        low_res_consistency: bool = False,
        enlargement: int | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            tokenizer=tokenizer,
            super_res_text_encoder=super_res_text_encoder,
            super_res_unet=super_res_unet,
            super_res_scheduler=super_res_scheduler,
        )
        self.register_to_config(
            scale_factor=scale_factor if enlargement is None else enlargement,
            prompt_domain=prompt_domain,
            low_res_consistency=low_res_consistency,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Open what this class saved, or the upsampler of a pair, whose base is then not loaded (from the Hub it is
        downloaded all the same).

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A folder or a Hub id.
            kwargs: As `DiffusionPipeline.from_pretrained` takes them. `scale_factor` is by default what was saved; of a
                pair, how many times larger than the base's images the upsampler's are.

        Returns:
            A pipeline of this class.

        Raises:
            OSError, ValueError: as `DiffusionPipeline.from_pretrained` raises them, and if there is no upsampler.
        """
        if "enlargement" in kwargs:
            kwargs["scale_factor"] = _deprecated_enlargement(kwargs.pop("enlargement"))
        if not os.path.isfile(pretrained_model_name_or_path):
            hub_options = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
            saved = cls.load_config(pretrained_model_name_or_path, **hub_options)

            def sample_size(name: str) -> int | tuple[int, int] | None:
                """Of the UNet that is given, or else saved; None if there is none."""
                if name in kwargs:
                    return None if kwargs[name] is None else kwargs[name].config.sample_size
                if (saved.get(name) or [None])[0] is None:
                    return None
                config = GLIDEUNet2DConditionModel.load_config(
                    pretrained_model_name_or_path, subfolder=name, **hub_options
                )
                return config.get("sample_size")

            large, small = sample_size("super_res_unet"), sample_size("unet")
            if large is None:
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds no upsampler: its `super_res_unet` is missing."
                )
            if "scale_factor" not in kwargs:
                if small is not None:
                    kwargs["scale_factor"] = scale_factor_of(large, small)
                elif saved.get("enlargement") is not None:
                    kwargs["scale_factor"] = saved["enlargement"]
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(
        cls,
        pipeline: DiffusionPipeline,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> Self:
        if "enlargement" in kwargs:
            kwargs["scale_factor"] = _deprecated_enlargement(kwargs.pop("enlargement"))
        if getattr(pipeline, "unet", None) is not None and getattr(pipeline, "super_res_unet", None) is not None:
            kwargs.setdefault("scale_factor", pipeline.scale_factor)
        return super().from_pipe(pipeline, dtype, torch_dtype, **kwargs)

    @property
    def scale_factor(self) -> int:
        """How many times larger than the given image the returned one is."""
        return self.config.scale_factor

    @property
    def size_multiple(self) -> int:
        """Inside, height and width of the large image are padded to multiples of this number of pixels."""
        return math.lcm(self.super_res_unet.size_multiple, self.scale_factor)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        num_inference_steps: int | None = None,
        timesteps: str | list[int] | None = None,
        num_images_per_prompt: int = 1,
        tile_size: int | None = None,
        tile_overlap: int | None = None,
        eta: float = 0.0,
        upsample_temperature: float = 0.997,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        cond_fn: CondFn | list[CondFn] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        super_res_num_inference_steps: int | None = None,
        super_res_timesteps: str | list[int] | None = None,
        super_res_latents: torch.Tensor | None = None,
        super_res_prompt_embeds: torch.Tensor | None = None,
        max_batch_size: int | None = None,
    ) -> Any:
        """Enlarge images.

        Args:
            prompt (`str` or `list[str]`, *optional*): What the image shows; or `prompt_embeds`.
            image (PIL, `np.ndarray`, `torch.Tensor` or a list of them): The small image, of any size, see
                `load_images`; one for all prompts, or one for each.
            num_inference_steps, timesteps: The steps, as in [`GLIDEPipeline`]; by default the checkpoint's own,
                else `"fast27"`.
            tile_size (`int`, *optional*): Larger results are generated in overlapping tiles of so many pixels, which
                bounds the memory of the network; by default the size that it was trained on. A multiple of the
                network's size multiple, `super_res_unet.size_multiple`.
            tile_overlap (`int`, *optional*): Pixels that neighbouring tiles share at least; a quarter of a tile by
                default. Tiles are at least the network's size multiple apart.
            latents (`torch.Tensor` of shape `[B, 3, height, width]`, *optional*): Unit noise, of the padded size,
                before `upsample_temperature`.
            num_images_per_prompt, eta, upsample_temperature, generator, prompt_embeds, cond_fn,
            cross_attention_kwargs, output_type, return_dict, callback_on_step_end,
            callback_on_step_end_tensor_inputs, max_batch_size: As in [`GLIDEPipeline`].
            super_res_num_inference_steps, super_res_timesteps, super_res_latents, super_res_prompt_embeds: What
                [`GLIDEPipeline`] calls `num_inference_steps`, `timesteps`, `latents` and `prompt_embeds` of this
                stage; each is taken in place of the shorter name.

        Examples:
            ```py
            >>> from diffusers.utils import load_image
            >>> from glide_pipelines import GLIDESuperResolutionPipeline, shapes_checkpoint

            >>> pipe = GLIDESuperResolutionPipeline.from_pretrained(shapes_checkpoint())
            >>> small = load_image("small.png")
            >>> pipe("a red circle above a blue square", image=small).images[0].save("large.png")
            ```

        Returns:
            [`GLIDEPipelineOutput`], or with `return_dict=False` a tuple with the images.

        Raises:
            ValueError, TypeError: before any network runs, naming the argument, what was given and what is allowed.
        """
        # 1. Check everything before any network runs.
        if self.super_res_unet is None or self.super_res_scheduler is None:
            raise ValueError("`super_res_unet` and `super_res_scheduler` are needed to enlarge, and there are none.")
        latents = _either("latents", latents, super_res_latents)
        arguments = Call(
            prompt=prompt,
            num_images_per_prompt=num_images_per_prompt,
            super_res_prompt_embeds=_either("prompt_embeds", prompt_embeds, super_res_prompt_embeds),
            super_res_num_inference_steps=_either(
                "num_inference_steps", num_inference_steps, super_res_num_inference_steps
            ),
            super_res_timesteps=_either("timesteps", timesteps, super_res_timesteps),
            eta=eta,
            upsample_temperature=upsample_temperature,
            generator=generator,
            cond_fn=cond_fn,
            cross_attention_kwargs=cross_attention_kwargs,
            max_batch_size=max_batch_size,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        with self._running_call(arguments) as call:
            if image is None:
                raise ValueError("Pass `image`: there is nothing to enlarge.")
            images = one_per_sample("image", load_images("image", image), call.batch_size, num_images_per_prompt)
            small_height, small_width = common_size("image", images, "enlarge one size at a time")
            height, width = small_height * self.scale_factor, small_width * self.scale_factor
            padded_size = rounded_up((height, width), self.size_multiple)
            unet = self._tiled(max(padded_size), tile_size, tile_overlap)
            if latents is not None:
                name = "latents" if super_res_latents is None else "super_res_latents"
                check_latents(name, latents, (call.num_images, 3, *padded_size))
            self._bind_cond_fns(call, padded_size)

            # 2. Encode the prompts.
            self._encode_call(call)

            # 3. Enlarge the images.
            small = padded_size[0] // self.scale_factor, padded_size[1] // self.scale_factor
            low_res = to_tensor(pad_to(images, small), small).to(self._execution_device)
            enlarged = self._enlarge(call, low_res, padded_size, latents, unet=unet)
            return self._finish(call, enlarged[..., :height, :width])

    def _tiled(self, length: int, tile_size: int | None, tile_overlap: int | None) -> TiledUNet | None:
        """The network in tiles; None where the image fits one tile."""
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
            return None
        return TiledUNet(self._graphed(self.super_res_unet), tile_size, int(tile_overlap), step)


def _either(name: str, value: Any, long_value: Any) -> Any:
    """An argument under its name, or the name that it has in pipelines of two stages."""
    if value is not None and long_value is not None:
        raise ValueError(f"Pass either `{name}` or `super_res_{name}`, not both.")
    return value if long_value is None else long_value


def _deprecated_enlargement(value: int) -> int:
    deprecate("enlargement", "1.0.0", "Pass `scale_factor` in place of `enlargement`.", standard_warn=False)
    return value
