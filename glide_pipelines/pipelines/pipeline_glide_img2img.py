"""SDEdit: a sketch and a prompt in, an image out (GLIDE, figure 5; arXiv 2108.01073)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from PIL import Image

from ..images import load_images, one_per_sample, to_tensor
from ..sampling import CondFn
from .call import Call
from .two_stage import TwoStagePipeline
from .working_area import size_of_aspect


class GLIDEImg2ImgPipeline(TwoStagePipeline):
    """SDEdit with GLIDE: the base stage starts from a noised sketch in place of noise; then it is enlarged.

    Args:
        tokenizer, text_encoder, unet, scheduler, super_res_text_encoder, super_res_unet, super_res_scheduler,
        prompt_domain: As in [`GLIDEPipeline`], whose checkpoints it opens.
    """

    _stages_by_prompt = ("super_res",)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        strength: float = 0.8,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: str | list[int] | None = None,
        super_res_num_inference_steps: int | None = None,
        super_res_timesteps: str | list[int] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        upsample_temperature: float = 0.997,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        super_res_latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        super_res_prompt_embeds: torch.Tensor | None = None,
        guider: BaseGuidance | None = None,
        cond_fn: CondFn | list[CondFn] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
        working_size: str | tuple[int, int] = "model",
        max_batch_size: int | None = None,
    ) -> Any:
        """Turn sketches into images. A sketch of any size is worked on at about the size that the model was trained on.

        Args:
            prompt (`str` or `list[str]`, *optional*): What the image shows; or `prompt_embeds`.
            image (PIL, `np.ndarray`, `torch.Tensor` or a list of them): The sketch, see `load_images`; one for all
                prompts, or one for each.
            strength (`float`, defaults to 0.8): The share of the base stage's steps that is run, from 0 (excluded) to
                1. The more, the more noise the sketch gets, and the less of it is left.
            height, width (`int`, *optional*): Size of the returned image in pixels; the sketch's own by default.
            working_size (`str` or `tuple[int, int]`, defaults to `"model"`): The sketch is reduced or enlarged to as
                many pixels as the model was trained on, in its own shape, and the result to the size that is
                returned. Given a height and width, multiples of `size_multiple`, it is fitted to these and padded, as
                it is to the size of the model where a CLIP guides. With `"image"` the model works at the size that is
                returned, padded to such multiples; far from its own one the image is seldom coherent.
            latents (`torch.Tensor` of shape `[B, 3, h, w]`, *optional*): Unit noise to be added to the sketch, a
                quarter of the size that is worked on.
            super_res_latents (`torch.Tensor` of shape `[B, 3, H, W]`, *optional*): Unit noise for the upsampler.
            num_inference_steps (`int`, *optional*): Steps of the base stage from noise on, of which it takes the last
                ones, a share of `strength`; 100 by default.
            timesteps, super_res_num_inference_steps, super_res_timesteps, guidance_scale, negative_prompt,
            num_images_per_prompt, eta, upsample_temperature, generator, prompt_embeds, negative_prompt_embeds,
            super_res_prompt_embeds, guider, cond_fn, cross_attention_kwargs, output_type, return_dict,
            callback_on_step_end, callback_on_step_end_tensor_inputs, max_batch_size: As in [`GLIDEPipeline`].

        Examples:
            ```py
            >>> from diffusers.utils import load_image
            >>> from glide_pipelines import GLIDEImg2ImgPipeline, shapes_checkpoint

            >>> pipe = GLIDEImg2ImgPipeline.from_pretrained(shapes_checkpoint())
            >>> sketch = load_image("sketch.png")
            >>> pipe("a red circle above a blue square", image=sketch, strength=0.7).images[0].save("image.png")
            ```

        Returns:
            [`GLIDEPipelineOutput`], or with `return_dict=False` a tuple with the images.

        Raises:
            ValueError, TypeError: before any network runs, naming the argument, what was given and what is allowed.
        """
        # 1. Check everything before any network runs.
        with self._running_call(Call.of(locals())) as call:
            if image is None:
                raise ValueError("Pass `image`: there is no sketch to start from.")
            working = self._working_size(working_size)
            sketches = one_per_sample("image", load_images("image", image), call.batch_size)
            size = self._image_size(sketches, height, width)
            if working_size == "model" and not any(hasattr(cond_fn, "bind") for cond_fn in call.state.cond_fns):
                working = size_of_aspect(size, self.default_size, self.size_multiple)  # a CLIP reads one size only
            area = self._working_area((0, 0, size[1], size[0]), working)
            base_size = self._base_size(area.padded_size)
            self.check_inputs(call.num_images, *area.padded_size, latents, super_res_latents)
            self._bind_cond_fns(call, base_size)

            # 2. Encode the prompts.
            self._encode_call(call)

            # 3. Noise the small sketch as far as the first step that is run, and go on from there.
            sketches = [area.extract(each.resize(size[::-1], Image.Resampling.BICUBIC)) for each in sketches]
            x_start = to_tensor(sketches, base_size).repeat_interleave(num_images_per_prompt, dim=0)
            noise = self.prepare_latents((call.num_images, 3, *base_size), generator, latents)
            latents = call.runs["base"].add_noise(x_start.to(noise), noise, 0)
            image = self._sample_base(call, latents)

            # 4. Enlarge it, as in text to image.
            image = self._enlarge(call, image, area.padded_size, super_res_latents)
            return self._finish(call, map(area.resize_back, image))
