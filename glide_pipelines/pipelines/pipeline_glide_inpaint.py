"""Inpainting: an image, a mask and a prompt in; the image repainted under the mask out (GLIDE, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from PIL import Image

from ..images import (
    check_mask_aspects,
    common_size,
    images_to_tensor,
    load_images,
    load_masks,
    one_per_sample,
    resize_masks,
    to_mask_tensor,
    to_tensor,
)
from ..sampling import CondFn, KnownPixels, keep_known
from ..schedulers import GLIDEDDIMScheduler, GLIDEDDPMScheduler
from .call import Call
from .input_checks import check_positive_int
from .two_stage import TwoStagePipeline
from .working_area import Box, Size, WorkingArea, box_around, hole_box, hole_groups, holes_of, scene_box, without_holes


@dataclass(frozen=True)
class _Part:
    """Where an image is worked on, and the holes that are repainted there."""

    area: WorkingArea
    holes: list[Box]


class GLIDEInpaintPipeline(TwoStagePipeline):
    """Inpainting with GLIDE, in one of two modes; which one follows from the UNets' input channels.

    - fine-tuned (7 and 10 channels): the models see the known image and the mask, and the known pixels are put back
      into each estimate of the clean image.
    - implicit (3 and 6 channels, the text-to-image models): the known region of x_t is replaced at every step by the
      image with the noise of that step (appendix E). The paper finds that it follows prompts better and fits
      the scene less well; of the checkpoints that ship the fine-tuned one follows them better, too.

    Where the two UNets are of different kinds, each runs in its own mode.

    Args:
        tokenizer, text_encoder, unet, scheduler, super_res_text_encoder, super_res_unet, prompt_domain,
        low_res_consistency, default_guidance_scale: As in [`GLIDEPipeline`].
        super_res_scheduler (`SchedulerMixin`, *optional*): [`GLIDEDDPMScheduler`] as released for inpainting.
    """

    _released_guidance_scale = 5.0

    @property
    def mode(self) -> str:
        """`"fine-tuned"` or `"implicit"`, see the class: the mode of the base stage."""
        return "fine-tuned" if self.unet.is_inpainter else "implicit"

    @torch.no_grad()
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
        working_size: str | tuple[int, int] = "model",
        max_batch_size: int | None = None,
    ) -> Any:
        """Repaint an image where the mask is white. The defaults are those of OpenAI's released notebook.

        What the mask keeps comes back unchanged, to the bit, whenever the returned image has the size of the input.

        Images of any size are worked on at the size that the model was trained on. It sees the largest part of an image
        that has its aspect ratio, around the hole; less around a hole that would be tiny there, and more, padded,
        around one that would fill it. What it paints is resized and put into the image.

        Holes that do not fit into one such part are repainted part after part, the largest first, and each part shows
        what was repainted before it. Each takes all the steps and its own noise from `generator`; callbacks see one
        running step index over all of them, and guidance that they change stays changed.

        Args:
            prompt (`str` or `list[str]`, *optional*): What the whole image shows afterwards; or `prompt_embeds`.
            image (PIL, `np.ndarray`, `torch.Tensor` or a list of them): The image, see `load_images`; one for all
                prompts, or one for each.
            mask_image (PIL, `np.ndarray`, `torch.Tensor` or a list of them): White (0.5 and above) is repainted; of any
                size, larger ones too, but of the image's aspect ratio; see `load_masks`.
            height, width (`int`, *optional*): Size of the returned image in pixels; the image's own by default.
            padding_mask_crop (`int`, *optional*): Choose the part that the model sees: all that the mask makes white,
                with so many pixels of surroundings at least, and no less than the size that the model was trained on,
                where the image allows it. `height` and `width` are then the size that the part is worked on at, and
                the returned image has the size of the given one.
            working_size (`str` or `tuple[int, int]`, defaults to `"model"`): What the model sees is resized to the size
                that it was trained on, or to this height and width, which are multiples of `size_multiple`. With
                `"image"` it sees the image, or the part of `padding_mask_crop`, at its own size, padded to such
                multiples; that needs more time and memory, and is seldom coherent where it is far from the model's.
            num_resample (`int`, defaults to 1): In implicit mode, take each step but the last so many times, undoing
                it by a step of noise in between (RePaint); needs one of GLIDE's schedulers in each stage.
            num_inference_steps, timesteps, super_res_num_inference_steps, super_res_timesteps, negative_prompt,
            num_images_per_prompt, eta, upsample_temperature, generator, prompt_embeds, negative_prompt_embeds,
            super_res_prompt_embeds, guider, cond_fn, cross_attention_kwargs, output_type, return_dict,
            callback_on_step_end, callback_on_step_end_tensor_inputs, max_batch_size: As in [`GLIDEPipeline`].
            guidance_scale (`float`, *optional*): Classifier-free guidance of the base stage; by default what the
                checkpoint recommends, else 5.0.
            latents (`torch.Tensor` of shape `[B, 3, h, w]`, *optional*): Unit noise for the base stage, a quarter of
                the size that is worked on; the same for each part.
            super_res_latents (`torch.Tensor` of shape `[B, 3, H, W]`, *optional*): Unit noise for the upsampler, of
                the size that is worked on, before `upsample_temperature`; the same for each part.

        Examples:
            ```py
            >>> from diffusers.utils import load_image
            >>> from glide_pipelines import GLIDEInpaintPipeline

            >>> pipe = GLIDEInpaintPipeline.from_pretrained("path/to/converted/inpaint/folder")
            >>> image, mask = load_image("image.png"), load_image("mask.png")  # white in the mask is repainted
            >>> pipe("a vase of flowers", image=image, mask_image=mask).images[0].save("edited.png")
            ```

        Returns:
            [`GLIDEPipelineOutput`], or with `return_dict=False` a tuple with the images.

        Raises:
            ValueError, TypeError: before any network runs, naming the argument, what was given and what is allowed.
        """
        # 1. Check everything before any network runs.
        self._check_resampling(num_resample)
        with self._running_call(Call.of(locals())) as call:
            if image is None or mask_image is None:
                raise ValueError(f"Pass `{'image' if image is None else 'mask_image'}`: there is nothing to inpaint.")
            working = self._working_size(working_size)
            images = one_per_sample("image", load_images("image", image), call.batch_size)
            masks = one_per_sample("mask_image", load_masks("mask_image", mask_image), call.batch_size)
            if padding_mask_crop is None:
                size = self._image_size(images, height, width)
            else:
                size = common_size("image", images, "`padding_mask_crop` needs one size")
            check_mask_aspects("mask_image", masks, images)
            images = [each.resize(size[::-1], Image.Resampling.BICUBIC) for each in images]
            masks = resize_masks("mask_image", masks, size)
            parts = self._parts(masks, working, padding_mask_crop, height, width)
            padded_size = parts[0][0].area.padded_size
            base_size = self._base_size(padded_size)
            self.check_inputs(call.num_images, *padded_size, latents, super_res_latents)
            self._bind_cond_fns(call, base_size)
            num_parts = max(map(len, parts))
            call.state.num_timesteps *= num_parts

            # 2. Encode the prompts.
            self._encode_call(call)

            # 3. Repaint one part of the images after the other: each shows what was repainted before it.
            image_of = [index for index in range(call.batch_size) for _ in range(num_images_per_prompt)]
            images = [images[index] for index in image_of]
            masks = [masks[index] for index in image_of]
            parts = [parts[index] for index in image_of]
            for number in range(num_parts):
                call.part = f", part {number + 1} of {num_parts}" if num_parts > 1 else ""
                # An image with fewer parts than others is only shown once more: nothing in it is white any longer.
                areas = [each[min(number, len(each) - 1)].area for each in parts]
                shown = [area.extract(image) for area, image in zip(areas, images, strict=True)]
                # What stands in the holes of later parts is to go, and is not shown.
                holes = [area.extract_mask(mask) for area, mask in zip(areas, masks, strict=True)]
                repainted = self._repaint(call, shown, holes, padded_size, latents, super_res_latents)
                pasted = (_put_in(*each, number) for each in zip(repainted, images, masks, parts, strict=True))
                if number == num_parts - 1 or call.state.interrupt:
                    break
                images = [self.image_processor.postprocess(image[None])[0] for image in pasted]
                masks = [
                    without_holes(mask, each[number].holes) if number < len(each) else mask
                    for mask, each in zip(masks, parts, strict=True)
                ]
                self.maybe_free_model_hooks()
            return self._finish(call, pasted)

    def _repaint(
        self,
        call: Call,
        images: list[Image.Image],
        masks: list[Image.Image],
        size: Size,
        latents: torch.Tensor | None,
        super_res_latents: torch.Tensor | None,
    ) -> torch.Tensor:
        """Images `[B, 3, *size]` in [-1, 1], repainted where the masks are white."""
        base_size = self._base_size(size)

        def known(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
            return to_tensor(images, size).to(device), to_mask_tensor(masks, size).to(device)

        def task(unet: Any, image: torch.Tensor, mask: torch.Tensor) -> dict[str, Any]:
            """What tells a stage of the known pixels, in its own mode."""
            if not unet.is_inpainter:
                return {"known_pixels": KnownPixels(image, mask, call.generator, call.num_resample)}
            return {"conditions": {"image": image, "mask": mask}, "constraint": keep_known(image, mask)}

        device = self._execution_device
        image, mask = known(base_size)
        shape = (call.num_images, 3, *base_size)
        latents = self.prepare_latents(shape, call.generator, latents, call.runs["base"].init_noise_sigma)
        repainted = keep_known(image, mask)(self._sample_base(call, latents, **task(self.unet, image, mask)))

        # The upsampler sees the whole small image, and what is kept of the large one.
        if "super_res" in call.runs:
            image, mask = known(size)
            repainted = self._enlarge(
                call, repainted, size, super_res_latents, **task(self.super_res_unet, image, mask)
            )
            repainted = keep_known(image, mask)(repainted)
        return repainted

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

    def _parts(
        self,
        masks: list[Image.Image],
        working_size: Size | None,
        padding_mask_crop: int | None,
        height: int | None,
        width: int | None,
    ) -> list[list[_Part]]:
        """The parts in which each image is worked on, one after the other; the masks have the images' size."""
        size = masks[0].height, masks[0].width
        if padding_mask_crop is None and working_size is not None:
            groups = [hole_groups(holes_of(mask), size, working_size) for mask in masks]
            return [
                [_Part(self._working_area(scene_box(holes, size, working_size), working_size), holes) for holes in each]
                for each in groups
            ]
        if padding_mask_crop is None:
            areas = [self._working_area((0, 0, *masks[0].size), None)] * len(masks)
        else:
            boxes, part_size = self._boxes(masks, padding_mask_crop), None
            for name, length in (("height", height), ("width", width)):
                if length is not None:
                    check_positive_int(name, length)
            if height is not None or width is not None:
                left, top, right, lower = boxes[0]
                part_size = lower - top if height is None else height, right - left if width is None else width
                working_size = None
            areas = [self._working_area(box, working_size, part_size) for box in boxes]
        return [[_Part(area, [hole_box(mask)])] for area, mask in zip(areas, masks, strict=True)]

    def _boxes(self, masks: list[Image.Image], padding: int) -> list[Box]:
        """Boxes of one size around each hole, with so many pixels of surroundings at least."""
        if isinstance(padding, bool) or not isinstance(padding, Integral) or padding < 0:
            raise ValueError(f"`padding_mask_crop` must be an integer of 0 or more, got {padding!r}.")
        holes = [hole_box(mask) for mask in masks]
        height = max(lower - top for _, top, _, lower in holes) + 2 * padding
        width = max(right - left for left, _, right, _ in holes) + 2 * padding
        size = max(height, self.default_size[0]), max(width, self.default_size[1])
        return [box_around(hole, size, (masks[0].height, masks[0].width)) for hole in holes]


def _put_in(
    sample: torch.Tensor, image: Image.Image, mask: Image.Image, parts: list[_Part], number: int
) -> torch.Tensor:
    """An image `[3, H, W]` with the holes of one of its parts repainted; as it is, if it has fewer parts."""
    if number >= len(parts):
        return images_to_tensor([image])[0].to(sample)
    others = [hole for part in parts[number + 1 :] for hole in part.holes]
    return parts[number].area.paste(sample, image, without_holes(mask, others))
