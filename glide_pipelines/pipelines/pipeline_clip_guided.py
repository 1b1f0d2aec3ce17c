"""Guidance by a noised CLIP: its gradient steers the sampling towards a caption (arXiv 2112.10741, section 2.3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.utils import replace_example_docstring
from transformers import GPT2Tokenizer, PreTrainedTokenizerBase

from ..models import (
    GLIDETextEncoder,
    GLIDEUNet2DConditionModel,
    NoisedCLIPModel,
    tokenize_prompts,
)
from .input_checks import check_number
from .known_region import KnownRegion
from .pipeline_glide import GLIDEPipeline
from .pipeline_glide_inpaint import GLIDEInpaintPipeline
from .pipeline_output import GLIDEPipelineOutput
from .sampling import Call, CondFn, score_gradient


# What CLIP is to look for in one picture, or in each: a caption, or captions with weights.
CLIPPrompt = str | dict[str, float] | list[str | dict[str, float]]

EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> from glide_pipelines import CLIPGuidedPipeline

        >>> pipe = CLIPGuidedPipeline.from_pretrained("path/to/converted/folder")
        >>> pipe("an oil painting of a corgi", clip_guidance_scale=3.0).images[0].save("corgi.png")
        ```
"""


@dataclass
class CLIPGuidance:
    """What CLIP does in one call, its arguments checked.

    Attributes:
        prompt: What it looks for; or `embeds`.
        embeds: Its vectors, `[B, D]`; once the call is encoded `[B * N, D]` and of unit length.
        start, end: The part of the base stage's steps in which it guides, from 0 to 1.
    """

    prompt: CLIPPrompt | None
    embeds: torch.Tensor | None
    start: float
    end: float

    def is_on(self, step: int, steps: int) -> bool:
        """Whether step `step` of `steps` lies wholly in the part that is guided (as ControlNet's in diffusers)."""
        return self.start <= step / steps and (step + 1) / steps <= self.end


class CLIPGuidedPipeline(GLIDEPipeline, GLIDEInpaintPipeline):
    """Text to image, or inpainting, guided by a CLIP that was trained on noised pictures.

    At each step of the base stage the gradient of CLIP's similarity between x_t and a caption is added to the score.
    It goes with classifier-free guidance or in its place. Given `image` and `mask_image` the pipeline inpaints, in
    either mode of [`GLIDEInpaintPipeline`].

    Args:
        tokenizer (`GPT2Tokenizer`): GLIDE's byte-level BPE; its `model_max_length` is the text context.
        text_encoder ([`GLIDETextEncoder`]): Of the base model.
        unet ([`GLIDEUNet2DConditionModel`]): The base model, with 3 input channels, or 7 for inpainting.
        scheduler (`SchedulerMixin`): [`GLIDEDDPMScheduler`] as released, whose mean is shifted by variance times
            gradient; with any other one the score is shifted.
        clip_model ([`NoisedCLIPModel`]): Reads base pictures, under the base model's noise schedule. It stays on the
            device under CPU offloading, since it takes turns with `unet` at every step;
            `clip_model.enable_gradient_checkpointing()` bounds what its gradient takes.
        clip_tokenizer (`PreTrainedTokenizerBase`): CLIP's own; its `model_max_length` is its text context.
        super_res_text_encoder ([`GLIDETextEncoder`], *optional*): Of the upsampler, which has its own.
        super_res_unet ([`GLIDEUNet2DConditionModel`], *optional*): The upsampler, with 6 input channels, or 10 for
            inpainting.
        super_res_scheduler (`SchedulerMixin`, *optional*): Of the upsampler.
        prompt_domain, low_res_consistency, default_guidance_scale: See [`GLIDEPipeline`].
    """

    _exclude_from_cpu_offload = ["clip_model"]
    _optional_components = [*GLIDEPipeline._optional_components, "clip_tokenizer"]
    _clip_guidance_scale: float | None = None  # before the first call

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
        """Scale of CLIP's gradient in the last call; read anew at every base step, so that a callback may change it."""
        return self._clip_guidance_scale

    def encode_clip_prompt(
        self,
        clip_prompt: CLIPPrompt | None = None,
        num_images_per_prompt: int = 1,
        device: torch.device | None = None,
        clip_prompt_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What CLIP's gradient leads to: for each picture one vector of unit length.

        Args:
            clip_prompt (`str`, `dict` or a list of them, *optional*): `B` captions. A dict holds several with their
                weights, such as `{"a red circle": 1.0, "a blue square": -0.5}`: the vectors of its captions, each of
                unit length, are added up by weight, and the sum is brought to unit length again.
            num_images_per_prompt (`int`, defaults to 1): `N`; each vector is repeated as often.
            device (`torch.device`, *optional*): Where to compute; the pipeline's device by default.
            clip_prompt_embeds (`torch.Tensor` of shape `[B, D]`, *optional*): The vectors, of any length, in place of
                `clip_prompt`.

        Returns:
            `torch.Tensor` of shape `[B * N, D]`.
        """
        device = device or self._execution_device
        if clip_prompt_embeds is None:
            weighted = [
                {entry: 1.0} if isinstance(entry, str) else entry
                for entry in (clip_prompt if isinstance(clip_prompt, list) else [clip_prompt])
            ]
            texts = list(dict.fromkeys(text for entry in weighted for text in entry))
            tokens = tokenize_prompts(self.clip_tokenizer, texts, "CLIP prompt").to(device)
            features = F.normalize(
                self.clip_model.get_text_features(tokens.input_ids, tokens.attention_mask).float(), dim=-1
            )
            weights = features.new_tensor([[entry.get(text, 0.0) for text in texts] for entry in weighted])
            clip_prompt_embeds = weights @ features
        embeds = F.normalize(clip_prompt_embeds.to(device, torch.float32), dim=-1)
        return embeds.repeat_interleave(num_images_per_prompt, dim=0)

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
        clip_guidance_scale: float = 3.0,
        clip_prompt: CLIPPrompt | None = None,
        clip_guidance_start: float = 0.0,
        clip_guidance_end: float = 1.0,
        guidance_scale: float = 1.0,
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
        clip_prompt_embeds: torch.Tensor | None = None,
        guider: BaseGuidance | None = None,
        cond_fn: CondFn | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006
    ) -> GLIDEPipelineOutput | tuple:
        """Draw pictures for prompts, or repaint one where the mask is white. The defaults are those of OpenAI's
        released notebook: CLIP guidance, and no classifier-free guidance.

        Args:
            prompt (`str` or `list[str]`, *optional*): What to draw; or pass `prompt_embeds`.
            image, mask_image (PIL, `np.ndarray`, `torch.Tensor` or a list of them, *optional*): Inpaint this picture
                where the mask is white, as [`GLIDEInpaintPipeline`] does; without them the pipeline draws whole ones.
            height, width (`int`, *optional*): Size of the returned picture; CLIP must be made for the base picture of
                that size. By default the size that the model was trained on, or that of `image`.
            clip_guidance_scale (`float`, defaults to 3.0): Factor on CLIP's gradient; 0 switches it off.
            clip_prompt (`str`, `dict` or a list of them, *optional*): What CLIP looks for, where it is not `prompt`:
                a caption for all pictures, or a list with one for each prompt. In place of a caption a dict may stand,
                of captions and their weights; a negative weight leads away from one. The weights of a dict must not
                sum to zero. See [`~CLIPGuidedPipeline.encode_clip_prompt`].
            clip_guidance_start, clip_guidance_end (`float`, default to 0.0 and 1.0): The part of the base stage's steps
                in which CLIP guides.
            guidance_scale (`float`, defaults to 1.0): Classifier-free guidance of the base stage, beside CLIP's; 1
                switches it off.
            clip_prompt_embeds (`torch.Tensor` of shape `[B, D]`, *optional*): What CLIP looks for as vectors of any
                length, one for each prompt, in place of `clip_prompt`.
            cond_fn (`Callable`, *optional*): One more gradient, added to CLIP's, as in [`GLIDEPipeline`].
            padding_mask_crop, num_resample: For inpainting, as in [`GLIDEInpaintPipeline`].
            num_inference_steps, timesteps, super_res_num_inference_steps, super_res_timesteps, negative_prompt,
            num_images_per_prompt, eta, upsample_temperature, generator, latents, super_res_latents, prompt_embeds,
            negative_prompt_embeds, super_res_prompt_embeds, guider, cross_attention_kwargs, output_type, return_dict,
            callback_on_step_end, callback_on_step_end_tensor_inputs: As in [`GLIDEPipeline`].

        Examples:

        Returns:
            [`GLIDEPipelineOutput`], or with `return_dict=False` a tuple with the pictures.

        Raises:
            ValueError, TypeError: before any network runs, naming the argument, what was given and what is allowed.
        """
        self._check_clip()
        check_number("clip_guidance_scale", clip_guidance_scale)
        check_number("clip_guidance_start", clip_guidance_start, 0, 1)
        check_number("clip_guidance_end", clip_guidance_end, 0, 1)
        if clip_guidance_start >= clip_guidance_end:
            raise ValueError(
                "`clip_guidance_start` must be below `clip_guidance_end`, "
                f"got {clip_guidance_start} and {clip_guidance_end}."
            )
        self._check_clip_prompts(prompt, clip_prompt, clip_prompt_embeds)
        self._clip_guidance_scale = clip_guidance_scale
        self._clip_guidance = CLIPGuidance(
            prompt=prompt if clip_prompt is None else clip_prompt,
            embeds=clip_prompt_embeds,
            start=clip_guidance_start,
            end=clip_guidance_end,
        )
        arguments = {
            "prompt": prompt,
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "timesteps": timesteps,
            "super_res_num_inference_steps": super_res_num_inference_steps,
            "super_res_timesteps": super_res_timesteps,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
            "num_images_per_prompt": num_images_per_prompt,
            "eta": eta,
            "upsample_temperature": upsample_temperature,
            "generator": generator,
            "latents": latents,
            "super_res_latents": super_res_latents,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "super_res_prompt_embeds": super_res_prompt_embeds,
            "guider": guider,
            "cond_fn": cond_fn,
            "cross_attention_kwargs": cross_attention_kwargs,
            "output_type": output_type,
            "return_dict": return_dict,
            "callback_on_step_end": callback_on_step_end,
            "callback_on_step_end_tensor_inputs": callback_on_step_end_tensor_inputs,
        }
        inpainting = {
            "image": image,
            "mask_image": mask_image,
            "padding_mask_crop": padding_mask_crop,
            "num_resample": num_resample,
        }
        if image is not None or mask_image is not None:
            return GLIDEInpaintPipeline.__call__(self, **arguments, **inpainting)
        if padding_mask_crop is not None or num_resample != 1:
            raise ValueError(
                "`padding_mask_crop` and `num_resample` are for inpainting: pass `image` and `mask_image`."
            )
        return GLIDEPipeline.__call__(self, **arguments)

    # -- the steps in which the task differs --------------------------------------------------------------------------

    def _check_size(self, height: int, width: int) -> None:
        super()._check_size(height, width)
        size = self.clip_model.config.vision_config.image_size
        base = (height // self.scale_factor, width // self.scale_factor)
        if base != (size, size):
            raise ValueError(
                f"`clip_model` reads pictures of {size} x {size} pixels, but the base picture of this call has "
                f"{base[0]} x {base[1]}: choose `height` and `width` of {size * self.scale_factor}."
            )

    def _encode_call(self, call: Call) -> None:
        guidance = self._clip_guidance
        if isinstance(guidance.prompt, str | dict):
            guidance.prompt = [guidance.prompt] * call.batch_size
        name, given = "clip_prompt_embeds", guidance.embeds
        if given is None:
            name, given = "clip_prompt", guidance.prompt
        if len(given) != call.batch_size:
            raise ValueError(f"`{name}` must have a batch of {call.batch_size}, as the prompts have, got {len(given)}.")
        super()._encode_call(call)
        guidance.embeds = self.encode_clip_prompt(
            guidance.prompt, call.num_images_per_prompt, clip_prompt_embeds=guidance.embeds
        )

    def _draw_base(
        self,
        call: Call,
        latents: torch.Tensor,
        known: KnownRegion | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        cond_fn = call.cond_fn
        steps = len(call.base) * (1 if known is None else known.num_resample)
        step = itertools.count()

        def with_clip(x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor | None:
            gradients = [] if cond_fn is None else [score_gradient(cond_fn, x_t, timestep)]
            if self._clip_guidance.is_on(next(step), steps) and self.clip_guidance_scale != 0:
                gradient = clip_gradient(self.clip_model, x_t, timestep, self._clip_guidance.embeds)
                gradients.append(self.clip_guidance_scale * gradient)
            gradients = [gradient for gradient in gradients if gradient is not None]
            return sum(gradients) if gradients else None

        call.cond_fn = with_clip
        return super()._draw_base(call, latents, known=known, **kwargs)

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_clip(self) -> None:
        """The CLIP must read what the scheduler noises and what its tokenizer writes."""
        vision, text = self.clip_model.config.vision_config, self.clip_model.config.text_config
        if vision.num_train_timesteps != self.scheduler.config.num_train_timesteps:
            raise ValueError(
                f"`clip_model` was trained with {vision.num_train_timesteps} timesteps, but `scheduler` has "
                f"{self.scheduler.config.num_train_timesteps}: they must share a noise schedule."
            )
        if self.clip_tokenizer is None:
            return
        for what, given, allowed in (
            ("entries", len(self.clip_tokenizer), text.vocab_size),
            ("tokens of context", self.clip_tokenizer.model_max_length, text.max_position_embeddings),
        ):
            if given > allowed:
                raise ValueError(f"`clip_tokenizer` has {given} {what}; `clip_model` reads {allowed}.")

    def _check_clip_prompts(
        self,
        prompt: str | list[str] | None,
        clip_prompt: CLIPPrompt | None,
        clip_prompt_embeds: torch.Tensor | None,
    ) -> None:
        if clip_prompt is not None and clip_prompt_embeds is not None:
            raise ValueError("Pass either `clip_prompt` or `clip_prompt_embeds`, not both.")
        if clip_prompt_embeds is not None:
            _check_clip_embeds(clip_prompt_embeds, self.clip_model.config.projection_dim)
            return
        if clip_prompt is not None:
            _check_clip_prompt(clip_prompt)
        elif prompt is None:
            raise ValueError("Pass `prompt`, `clip_prompt` or `clip_prompt_embeds`: there is nothing to guide to.")
        if self.clip_tokenizer is None:
            raise ValueError("A prompt for CLIP needs `clip_tokenizer`; without it pass `clip_prompt_embeds`.")


def clip_gradient(
    clip_model: NoisedCLIPModel, x_t: torch.Tensor, timestep: torch.Tensor, text_features: torch.Tensor
) -> torch.Tensor:
    """The gradient of f(x_t) . g(c) with respect to x_t (GLIDE, section 2.3, without scale and variance).

    Args:
        clip_model ([`NoisedCLIPModel`]): f and g.
        x_t (`torch.Tensor` of shape `[B, 3, S, S]`): The noised pictures.
        timestep (`torch.Tensor` of shape `[B]`): Timestep of each.
        text_features (`torch.Tensor` of shape `[B, D]`): g(c), of any length.

    Returns:
        `torch.Tensor` of shape `[B, 3, S, S]`, in the dtype of `x_t`.
    """
    # Copies, since what was made in inference mode takes part in no gradient.
    with torch.inference_mode(False), torch.enable_grad():
        x_t = x_t.detach().clone().requires_grad_()
        similarity = clip_model.similarity(x_t, timestep.clone(), text_features.clone())
        (gradient,) = torch.autograd.grad(similarity.sum(), x_t)
    return gradient


def _check_clip_prompt(clip_prompt: Any) -> None:
    if isinstance(clip_prompt, list) and not clip_prompt:
        raise ValueError("`clip_prompt` must not be an empty list.")
    for entry in clip_prompt if isinstance(clip_prompt, list) else [clip_prompt]:
        if isinstance(entry, str):
            continue
        if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry):
            raise TypeError(
                "`clip_prompt` must be a string, a dict of strings and their weights, or a list of these, "
                f"got {entry!r} ({type(entry).__name__})."
            )
        for text, weight in entry.items():
            check_number(f"clip_prompt[{text!r}]", weight)
        if math.isclose(sum(entry.values()), 0, abs_tol=1e-6):
            raise ValueError(f"The weights in `clip_prompt` must not sum to zero, got {entry}.")


def _check_clip_embeds(embeds: Any, width: int) -> None:
    if not isinstance(embeds, torch.Tensor):
        raise TypeError(f"`clip_prompt_embeds` must be a torch.Tensor, got {embeds!r} ({type(embeds).__name__}).")
    if embeds.ndim != 2 or embeds.shape[1] != width:
        raise ValueError(f"`clip_prompt_embeds` must have the shape [batch, {width}], got {list(embeds.shape)}.")
    if not embeds.isfinite().all() or not embeds.any(dim=1).all():
        raise ValueError(
            "`clip_prompt_embeds` must be finite and not zero: the direction of each vector is what counts."
        )
