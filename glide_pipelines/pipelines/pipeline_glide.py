"""Text to image: a prompt in, an image out (arXiv 2112.10741, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance

from ..sampling import CondFn
from .call import Call
from .two_stage import TwoStagePipeline


class GLIDEPipeline(TwoStagePipeline):
    """Text to image with GLIDE: the base model generates a small image, the upsampler enlarges it.

    Args:
        tokenizer (`GPT2Tokenizer`): GLIDE's byte-level BPE; its `model_max_length` is the text context.
        text_encoder ([`GLIDETextEncoder`]): Of the base model.
        unet ([`GLIDEUNet2DConditionModel`]): The base model, with 3 input channels, or 7: an inpainting
            model makes images from text alone, too.
        scheduler (`SchedulerMixin`): [`GLIDEDDPMScheduler`] as released; any noise-predicting diffusers scheduler.
        super_res_text_encoder ([`GLIDETextEncoder`], *optional*): Of the upsampler, which has its own.
        super_res_unet ([`GLIDEUNet2DConditionModel`], *optional*): The upsampler, with 6 input channels, or 10.
            Without it the base image is returned.
        super_res_scheduler (`SchedulerMixin`, *optional*): [`GLIDEDDIMScheduler`] as released.
        prompt_domain (`str`, *optional*): The world that the checkpoint knows, such as `"shapes"`: prompts outside it
            get a warning.
        low_res_consistency (`bool`, defaults to `False`): At each step of the upsampler, correct the estimate of the
            clean image so that, reduced, it is the small one (DDNM, arXiv 2212.00490). An upsampler that was trained
            only briefly keeps its colours with it; OpenAI's need no correction, and would no longer equal the original.
        default_guidance_scale (`float`, *optional*): The classifier-free guidance that the checkpoint recommends, for
            calls that name none; without it they use that of OpenAI's notebooks.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
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
        max_batch_size: int | None = None,
    ) -> Any:
        """Generate images for prompts. The defaults are those of OpenAI's released notebook.

        Args:
            prompt (`str` or `list[str]`, *optional*): What the images show; or pass `prompt_embeds`.
            height, width (`int`, *optional*): Size of the returned image in pixels, multiples of
                `size_multiple` (32 for OpenAI's pair, 8 for its base alone); by default that of the training.
            num_inference_steps, super_res_num_inference_steps (`int`, *optional*): Steps of each stage, spread as its
                scheduler does. By default as many as the checkpoint recommends (`default_timesteps` of its scheduler;
                not of the base with a `cond_fn`), else 100 and 27.
            timesteps, super_res_timesteps (`str` or `list[int]`, *optional*): The timesteps themselves, descending,
                or a respacing string (`"100"`, `"fast27"`, `"10,10,3,2,2"`, `"ddim50"`). They beat the numbers of
                steps.
            guidance_scale (`float`, *optional*): Classifier-free guidance of the base stage; 1 switches it off and
                saves half of that stage's work. By default what the checkpoint recommends, else 3.0.
            negative_prompt (`str` or `list[str]`, *optional*): What to steer away from, in place of the empty prompt.
            num_images_per_prompt (`int`, defaults to 1): Images per prompt.
            eta (`float`, defaults to 0.0): Noise of DDIM steps in the base stage, 0 to 1, if it runs DDIM.
            upsample_temperature (`float`, defaults to 0.997): Factor on the noise that the upsampler starts from.
            generator (`torch.Generator` or a list of them, *optional*): Makes the result repeatable; a list has one
                per image. Drawn in this order: base noise, base steps, upsampler noise, upsampler steps.
            latents (`torch.Tensor` of shape `[B, 3, h, w]`, *optional*): Unit noise for the base stage.
            super_res_latents (`torch.Tensor` of shape `[B, 3, height, width]`, *optional*): Unit noise for the
                upsampler, before `upsample_temperature`.
            prompt_embeds, negative_prompt_embeds, super_res_prompt_embeds (`torch.Tensor` of shape `[B, L, C]`,
                *optional*): Outputs of [`~GLIDEPipeline.encode_prompt`] with one image per prompt.
            guider (`BaseGuidance`, *optional*): One of `diffusers.guiders` that combines predictions, in place of
                classifier-free guidance at `guidance_scale`.
            cond_fn (`Callable` or a list of them, *optional*): `(x_t [B, 3, h, w], timestep [B]) -> gradient
                [B, 3, h, w]` of a log-likelihood with respect to x_t, added to the score of the base stage; None
                leaves a step as it is. [`CLIPGuidance`] is one.
            cross_attention_kwargs (`dict`, *optional*): Passed to the base UNet, such as `{"scale": 0.5}` of a LoRA.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`, see
                [`GLIDEPipelineOutput`].
            return_dict (`bool`, defaults to `True`): False gives a tuple.
            callback_on_step_end (`Callable`, *optional*): Called as `callback(pipe, step, timestep, tensors)` after
                every step, `step` running over both stages (`pipe.num_timesteps` in all, `pipe.stage` tells which);
                what it returns takes the place of the tensors.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`): The tensors that it gets:
                `"latents"`, `"prompt_embeds"`, `"negative_prompt_embeds"`.
            max_batch_size (`int`, *optional*): The networks of both stages take at most so many images at a time, which
                bounds their memory; with guidance an image counts twice. The noise is the same, and so are the images.

        Examples:
            ```py
            >>> import torch
            >>> from glide_pipelines import GLIDEPipeline, shapes_checkpoint

            >>> pipe = GLIDEPipeline.from_pretrained(shapes_checkpoint())
            >>> image = pipe("a red circle above a blue square", generator=torch.manual_seed(0)).images[0]
            >>> image.save("image.png")
            ```

        Returns:
            [`GLIDEPipelineOutput`], or with `return_dict=False` a tuple with the images.

        Raises:
            ValueError, TypeError: before any network runs, naming the argument, what was given and what is allowed.
        """
        # 1. Check everything before any network runs.
        with self._running_call(Call.of(locals())) as call:
            default_height, default_width = self.default_size
            height = default_height if height is None else height
            width = default_width if width is None else width
            self.check_inputs(call.num_images, height, width, latents, super_res_latents)
            self._warn_of_size(height, width)
            base_size = self._base_size((height, width))
            self._bind_cond_fns(call, base_size)

            # 2. Encode the prompts.
            self._encode_call(call)

            # 3. Generate the small image.
            shape = (call.num_images, 3, *base_size)
            latents = self.prepare_latents(shape, generator, latents, call.runs["base"].init_noise_sigma)
            image = self._sample_base(call, latents)

            # 4. Enlarge it.
            image = self._enlarge(call, image, (height, width), super_res_latents)
            return self._finish(call, image)
