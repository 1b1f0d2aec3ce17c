"""Inpainting: an image, a mask and a prompt in; the image repainted under the mask out (GLIDE, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.utils import replace_example_docstring
from PIL import Image

from ..images import (
    common_size,
    load_images,
    load_masks,
    one_per_sample,
    pad_to,
    resize_masks,
    to_mask_tensor,
    to_tensor,
)
from ..sampling import CondFn, KnownPixels, keep_known
from ..schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from .input_checks import check_latents, check_positive_int
from .pipeline_output import GLIDEPipelineOutput
from .two_stage import TwoStagePipeline


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from diffusers.utils import load_image
        >>> from glide_pipelines import GLIDEInpaintPipeline

        >>> pipe = GLIDEInpaintPipeline.from_pretrained("path/to/converted/inpaint/folder")
        >>> image, mask = load_image("image.png"), load_image("mask.png")  # white in the mask is repainted
        >>> pipe("a vase of flowers", image=image, mask_image=mask).images[0].save("edited.png")
        ```
"""


class GLIDEInpaintPipeline(TwoStagePipeline):
    """Inpainting with GLIDE, in one of two modes; which one follows from the UNets' input channels.

    - fine-tuned (7 and 10 channels): the models see the known image and the mask, and the known pixels are put back
      into each estimate of the clean image.
    - implicit (3 and 6 channels, the text-to-image models): the known region of x_t is replaced at every step by the
      image with the noise of that step (appendix E). The paper finds that it follows prompts better and fits
      the scene less well; of the checkpoints that ship the fine-tuned one follows them better, too.

    Where the two UNets are of different kinds, each runs in its own mode.

    Args:
        tokenizer (`GPT2Tokenizer`): GLIDE's byte-level BPE; its `model_max_length` is the text context.
        text_encoder ([`GLIDETextEncoder`]): Of the base model.
        unet ([`GLIDEUNet2DConditionModel`]): The base model, with 7 input channels (or 3).
        scheduler (`SchedulerMixin`): [`GLIDEDDPMScheduler`] as released; any noise-predicting diffusers scheduler.
        super_res_text_encoder ([`GLIDETextEncoder`], *optional*): Of the upsampler, which has its own.
        super_res_unet ([`GLIDEUNet2DConditionModel`], *optional*): The upsampler, with 10 input channels (or 6).
        super_res_scheduler (`SchedulerMixin`, *optional*): [`GLIDEDDPMScheduler`] as released for inpainting.
        prompt_domain (`str`, *optional*): See [`GLIDEPipeline`].
    """

    _released_guidance_scale = 5.0

    @property
    def mode(self) -> str:
        """`"fine-tuned"` or `"implicit"`, see the class: the mode of the base stage."""
        return "fine-tuned" if self.unet.is_inpainter else "implicit"

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: str | list[int] | None = None,
        super_res_num_inference_steps: int | None = None,
        super_res_timesteps: str | list[int] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        num_resample: int = 1,
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
    ) -> GLIDEPipelineOutput | tuple:
        """Repaint an image where the mask is white. The defaults are those of OpenAI's released notebook.

        What the mask keeps comes back unchanged, to the bit, whenever the returned image has the size of the input.

        Args:
            prompt (`str` or `list[str]`, *optional*): What the whole image shows afterwards; or `prompt_embeds`.
            image (PIL, `np.ndarray`, `torch.Tensor` or a list of them): The image, see `load_images`; one for all
                prompts, or one for each.
            mask_image (PIL, `np.ndarray`, `torch.Tensor` or a list of them): White (0.5 and above) is repainted; of any
                size, see `load_masks`.
            height, width (`int`, *optional*): Size of the returned image in pixels; the image's own by default.
                Inside, the image is padded to multiples of `size_multiple`.
            padding_mask_crop (`int`, *optional*): Work only on the part around the mask, with so many pixels of
                surroundings at least (and no less than the size that the model was trained on, where the image allows
                it), and paste the result back: for a small hole in a large image. `height` and `width` are then the
                size that the part is worked on at, and the returned image has the size of the given one.
            num_resample (`int`, defaults to 1): In implicit mode, take each step but the last so many times, undoing
                it by a step of noise in between (RePaint); needs one of GLIDE's schedulers in each stage.
            num_inference_steps, timesteps, super_res_num_inference_steps, super_res_timesteps, negative_prompt,
            num_images_per_prompt, eta, upsample_temperature, generator, prompt_embeds, negative_prompt_embeds,
            super_res_prompt_embeds, guider, cond_fn, cross_attention_kwargs, output_type, return_dict,
            callback_on_step_end, callback_on_step_end_tensor_inputs: As in [`GLIDEPipeline`].
            guidance_scale (`float`, *optional*): Classifier-free guidance of the base stage; by default what the
                checkpoint recommends, else 5.0.
            latents (`torch.Tensor` of shape `[B, 3, h, w]`, *optional*): Unit noise for the base stage, a quarter of
                the padded size.
            super_res_latents (`torch.Tensor` of shape `[B, 3, H, W]`, *optional*): Unit noise for the upsampler, of
                the padded size, before `upsample_temperature`.

        Examples:

        Returns:
            [`GLIDEPipelineOutput`], or with `return_dict=False` a tuple with the images.

        Raises:
            ValueError, TypeError: before any network runs, naming the argument, what was given and what is allowed.
        """
        # 1. Check everything before any network runs.
        self._check_channels(unet=(7, 3), super_res_unet=(10, 6))
        self._check_resampling(num_resample)
        with self._running_call(
            prompt=prompt,
            num_images_per_prompt=num_images_per_prompt,
            guidance_scale=self.default_guidance_scale if guidance_scale is None else guidance_scale,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            super_res_prompt_embeds=super_res_prompt_embeds,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            super_res_num_inference_steps=super_res_num_inference_steps,
            super_res_timesteps=super_res_timesteps,
            eta=eta,
            upsample_temperature=upsample_temperature,
            generator=generator,
            guider=guider,
            cond_fn=cond_fn,
            cross_attention_kwargs=cross_attention_kwargs,
            output_type=output_type,
            return_dict=return_dict,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            num_resample=num_resample,
        ) as call:
            if image is None or mask_image is None:
                raise ValueError(f"Pass `{'image' if image is None else 'mask_image'}`: there is nothing to inpaint.")
            images = one_per_sample("image", load_images("image", image), call.batch_size, num_images_per_prompt)
            masks = load_masks("mask_image", mask_image)
            masks = one_per_sample("mask_image", masks, call.batch_size, num_images_per_prompt)
            whole = None
            if padding_mask_crop is not None:
                own_size = common_size("image", images, "`padding_mask_crop` needs one size")
                masks = resize_masks("mask_image", masks, own_size)
                whole = images, masks, self._boxes(masks, padding_mask_crop)
                images, masks = (
                    [each.crop(box) for each, box in zip(uncropped, whole[2], strict=True)] for uncropped in whole[:2]
                )
            size, padded_size = self._image_size(images, height, width)
            masks = resize_masks("mask_image", masks, size)
            base_size = self._base_size(padded_size)
            if latents is not None:
                check_latents("latents", latents, (call.num_images, 3, *base_size))
            if super_res_latents is not None:
                check_latents("super_res_latents", super_res_latents, (call.num_images, 3, *padded_size))
            self._bind_cond_fns(call, base_size)

            # 2. Encode the prompts, and make the images ready for each stage.
            self._encode_call(call)
            images = pad_to([each.resize(size[::-1], Image.Resampling.BICUBIC) for each in images], padded_size)
            masks = pad_to(masks, padded_size)
            device = self._execution_device

            def known(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
                return to_tensor(images, size).to(device), to_mask_tensor(masks, size).to(device)

            def task(unet: Any, image: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
                """What tells a stage of the known pixels, in its own mode."""
                if not unet.is_inpainter:
                    return {"known_pixels": KnownPixels(image, mask, generator, num_resample)}
                return {"conditions": {"image": image, "mask": mask}, "constraint": keep_known(image, mask)}

            # 3. Repaint the small image.
            known_image, mask = known(base_size)
            shape = (call.num_images, 3, *base_size)
            latents = self.prepare_latents(shape, generator, latents, call.runs["base"].init_noise_sigma)
            repainted = self._sample_base(call, latents, **task(self.unet, known_image, mask))

            # 4. Enlarge it; the upsampler sees the whole small image, and what is kept of the large one.
            if "super_res" in call.runs:
                low_res = keep_known(known_image, mask)(repainted)
                known_image, mask = known(padded_size)
                repainted = self._enlarge(
                    call, low_res, padded_size, super_res_latents, **task(self.super_res_unet, known_image, mask)
                )

            # 5. What is kept is the image itself.
            repainted = keep_known(known_image, mask)(repainted)[..., : size[0], : size[1]]
            if whole is not None:
                repainted = _paste(repainted, *whole)
            return self._finish(call, repainted)

    def _check_resampling(self, num_resample: int) -> None:
        check_positive_int("num_resample", num_resample)
        if num_resample == 1:
            return
        if self.mode == "fine-tuned":
            raise ValueError("`num_resample` is for the implicit mode; a fine-tuned inpainting model needs none.")
        for scheduler in (self.scheduler, self.super_res_scheduler):
            if scheduler is not None and not isinstance(scheduler, GLIDEDDPMScheduler | GLIDEDDIMScheduler):
                raise ValueError(
                    "`num_resample` above 1 needs GLIDEDDPMScheduler or GLIDEDDIMScheduler in each stage, "
                    f"got {type(scheduler).__name__}."
                )

    def _boxes(self, masks: list[Image.Image], padding: int) -> list[tuple[int, int, int, int]]:
        """Boxes of one size, `(left, top, right, lower)` inside the images, around each hole; masks of their size."""
        if isinstance(padding, bool) or not isinstance(padding, Integral) or padding < 0:
            raise ValueError(f"`padding_mask_crop` must be an integer of 0 or more, got {padding!r}.")
        holes = [mask.point(lambda value: 255 * (value >= 128)).getbbox() for mask in masks]
        widest = max(right - left for left, _, right, _ in holes) + 2 * padding
        highest = max(lower - top for _, top, _, lower in holes) + 2 * padding
        width = min(max(widest, self.default_size[1]), masks[0].width)
        height = min(max(highest, self.default_size[0]), masks[0].height)
        boxes = []
        for mask, (left, top, right, lower) in zip(masks, holes, strict=True):
            x = min(max((left + right - width) // 2, 0), mask.width - width)
            y = min(max((top + lower - height) // 2, 0), mask.height - height)
            boxes.append((x, y, x + width, y + height))
        return boxes


def _paste(
    repainted: torch.Tensor,
    images: list[Image.Image],
    masks: list[Image.Image],
    boxes: list[tuple[int, int, int, int]],
) -> torch.Tensor:
    """The whole images, with what was repainted in their boxes where the masks, of the same size, are white."""
    size = (images[0].height, images[0].width)
    whole, mask = to_tensor(images, size).to(repainted), to_mask_tensor(masks, size).bool().to(repainted.device)
    left, top, right, lower = boxes[0]
    if repainted.shape[-2:] != (lower - top, right - left):
        repainted = F.interpolate(repainted, (lower - top, right - left), mode="bicubic", antialias=True).clamp(-1, 1)
    for index, (left, top, right, lower) in enumerate(boxes):
        box = (index, slice(None), slice(top, lower), slice(left, right))
        whole[box] = torch.where(mask[box], repainted[index], whole[box])
    return whole
