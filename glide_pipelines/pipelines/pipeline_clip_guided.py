"""Guidance by a noised CLIP as a pipeline: [`CLIPGuidance`] with its CLIP among the components."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel, NoisedCLIPModel
from ..sampling import CLIPGuidance, CLIPPrompt, CondFn
from .call import call_states
from .pipeline_glide import GLIDEPipeline
from .pipeline_glide_inpaint import GLIDEInpaintPipeline
from .two_stage import upsampler_without_defaults


class _Guidance(CLIPGuidance):
    """With the names that its arguments have in the pipeline."""

    _names = {
        "prompt": "clip_prompt",
        "prompt_embeds": "clip_prompt_embeds",
        "scale": "clip_guidance_scale",
        "start": "clip_guidance_start",
        "end": "clip_guidance_end",
    }


class CLIPGuidedPipeline(GLIDEPipeline, GLIDEInpaintPipeline):
    """Text to image, or inpainting, guided by a CLIP that was trained on noised images.

    At each step of the base stage the gradient of CLIP's similarity between x_t and a caption is added to the score.
    It goes with classifier-free guidance or in its place. Given `image` and `mask_image` the pipeline inpaints, in
    either mode of [`GLIDEInpaintPipeline`].

    Args:
        tokenizer, text_encoder, unet, super_res_text_encoder, super_res_unet, super_res_scheduler, prompt_domain,
        low_res_consistency, default_guidance_scale: As in [`GLIDEPipeline`].
        scheduler (`SchedulerMixin`): [`GLIDEDDPMScheduler`] as released, whose mean is shifted by variance times
            gradient; with any other one the score is shifted.
        clip_model ([`NoisedCLIPModel`]): Reads base images, under the base model's noise schedule. It stays on the
            device under CPU offloading, since it takes turns with `unet` at every step;
            `clip_model.enable_gradient_checkpointing()` bounds what its gradient takes.
        clip_tokenizer (`PreTrainedTokenizerBase`): CLIP's own; its `model_max_length` is its text context.
    """

    clip_model: NoisedCLIPModel
    clip_tokenizer: PreTrainedTokenizerBase | None

    _exclude_from_cpu_offload = ["clip_model"]
    _optional_components = [*GLIDEPipeline._optional_components, "clip_tokenizer"]
    _stages_by_prompt = ("super_res",)

    @upsampler_without_defaults
    def __init__(
        self,
        tokenizer: GPT2Tokenizer,
        text_encoder: GLIDETextEncoder,
        unet: GLIDEUNet2DConditionModel,
        scheduler: SchedulerMixin,
        clip_model: NoisedCLIPModel,
        clip_tokenizer: PreTrainedTokenizerBase,
        super_res_text_encoder: GLIDETextEncoder | None = None,
        super_res_unet: GLIDEUNet2DConditionModel | None = None,
        super_res_scheduler: SchedulerMixin | None = None,
        prompt_domain: str | None = None,
        low_res_consistency: bool = False,
        default_guidance_scale: float | None = None,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            unet=unet,
            scheduler=scheduler,
            super_res_text_encoder=super_res_text_encoder,
            super_res_unet=super_res_unet,
            super_res_scheduler=super_res_scheduler,
            prompt_domain=prompt_domain,
            low_res_consistency=low_res_consistency,
            default_guidance_scale=default_guidance_scale,
        )
        self.register_modules(clip_model=clip_model, clip_tokenizer=clip_tokenizer)

    def enable_group_offload(self, *args: Any, exclude_modules: str | list[str] | None = None, **kwargs: Any) -> None:
        """As in diffusers; CLIP stays on the device here too: its gradient needs its weights after the forward pass.

        Args:
            args, kwargs: As in `DiffusionPipeline.enable_group_offload`.
            exclude_modules (`str` or `list[str]`, *optional*): Further components that stay on the device.
        """
        excluded = [exclude_modules] if isinstance(exclude_modules, str) else exclude_modules or []
        super().enable_group_offload(*args, exclude_modules=[*excluded, *self._exclude_from_cpu_offload], **kwargs)

    @property
    def default_guidance_scale(self) -> float:
        """1, no classifier-free guidance, whatever the checkpoint recommends: here CLIP guides."""
        return 1.0

    @property
    def clip_guidance_scale(self) -> float | None:
        """Scale of CLIP's gradient in the running call; read anew at every base step, so that a callback may change
        it. None while no call runs."""
        state = call_states.last(self)
        scales = [each.scale for each in state.cond_fns if isinstance(each, _Guidance)] if state is not None else []
        return scales[0] if scales else None

    @property
    def _clip_guidance_scale(self) -> float | None:
        return self.clip_guidance_scale

    @_clip_guidance_scale.setter
    def _clip_guidance_scale(self, value: float) -> None:
        for state in call_states.to_change(self):
            for each in state.cond_fns:
                if isinstance(each, _Guidance):
                    each.scale = value

    @torch.no_grad()
    def encode_clip_prompt(
        self,
        clip_prompt: CLIPPrompt | None = None,
        num_images_per_prompt: int = 1,
        device: torch.device | None = None,
        clip_prompt_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What CLIP's gradient leads to: for each image one vector of unit length.

        Args:
            clip_prompt, clip_prompt_embeds: `prompt` and `prompt_embeds` of [`CLIPGuidance`], for `B` prompts.
            num_images_per_prompt (`int`, defaults to 1): `N`; each vector is repeated as often.
            device (`torch.device`, *optional*): Where to put the vectors; the pipeline's device by default.

        Returns:
            `torch.Tensor` of shape `[B * N, D]`.

        Raises:
            ValueError: if there is neither a caption nor a vector.
        """
        guidance = _Guidance(self.clip_model, self.clip_tokenizer, clip_prompt, prompt_embeds=clip_prompt_embeds)
        guidance.num_images_per_prompt = num_images_per_prompt
        return guidance.text_features().to(device or self._execution_device)

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # image and mask come third and fourth, as they do to inpaint
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        height: int | None = None,
        width: int | None = None,
        *,
        clip_guidance_scale: float = 3.0,
        clip_prompt: CLIPPrompt | None = None,
        clip_guidance_start: float = 0.0,
        clip_guidance_end: float = 1.0,
        clip_prompt_embeds: torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        cond_fn: CondFn | list[CondFn] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate images for prompts, or repaint one where the mask is white. The defaults are those of OpenAI's
        released notebook: CLIP guidance, and no classifier-free guidance.

        Args:
            prompt (`str` or `list[str]`, *optional*): What the images show; or pass `prompt_embeds`.
            image, mask_image (PIL, `np.ndarray`, `torch.Tensor` or a list of them, *optional*): Inpaint this image
                where the mask is white, as [`GLIDEInpaintPipeline`] does; without them whole ones are generated.
            height, width (`int`, *optional*): Size of the returned image; CLIP must be made for the base image of
                that size. By default the size that the model was trained on, or that of `image`.
            clip_guidance_scale, clip_prompt, clip_guidance_start, clip_guidance_end, clip_prompt_embeds: Of CLIP's
                gradient: `scale`, `prompt`, `start`, `end` and `prompt_embeds` of [`CLIPGuidance`].
            guidance_scale (`float`, defaults to 1.0): Classifier-free guidance of the base stage, beside CLIP's; 1
                switches it off.
            cond_fn (`Callable` or a list of them, *optional*): Further gradients, added to CLIP's.
            kwargs: What else [`GLIDEPipeline`] takes, or, with `image`, [`GLIDEInpaintPipeline`].

        Examples:
            ```py
            >>> from glide_pipelines import CLIPGuidedPipeline

            >>> pipe = CLIPGuidedPipeline.from_pretrained("path/to/converted/folder")
            >>> pipe("an oil painting of a corgi", clip_guidance_scale=3.0).images[0].save("corgi.png")
            ```

        Returns:
            [`GLIDEPipelineOutput`], or with `return_dict=False` a tuple with the images.

        Raises:
            ValueError, TypeError: before any network runs, naming the argument, what was given and what is allowed.
        """
        guidance = _Guidance(
            self.clip_model,
            self.clip_tokenizer,
            clip_prompt,
            clip_guidance_scale,
            clip_guidance_start,
            clip_guidance_end,
            clip_prompt_embeds,
        )
        others = cond_fn if isinstance(cond_fn, list) else [] if cond_fn is None else [cond_fn]
        kwargs |= {
            "height": height,
            "width": width,
            "guidance_scale": guidance_scale,
            "cond_fn": [guidance, *others],
        }
        if image is not None or mask_image is not None:
            return GLIDEInpaintPipeline.__call__(self, prompt, image, mask_image, **kwargs)
        defaults = {"padding_mask_crop": None, "num_resample": 1, "working_size": "model"}
        changed = [name for name, default in defaults.items() if kwargs.pop(name, default) != default]
        if changed:
            raise ValueError(f"`{changed[0]}` is for inpainting: pass `image` and `mask_image`.")
        return GLIDEPipeline.__call__(self, prompt, **kwargs)
