"""The steps that every GLIDE pipeline shares: encode, choose timesteps, denoise, enlarge, compose."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from transformers import BatchEncoding

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..schedulers import SchedulerAdapter
from .input_checks import check_callback_inputs, check_embeds, check_number, check_positive_int, check_prompt


logger = logging.get_logger(__name__)

# The released notebooks' spacings (GLIDE, section 4, samples the base model with 150 steps; the notebooks with 100).
DEFAULT_TIMESTEPS = "100"
DEFAULT_SUPER_RES_TIMESTEPS = "fast27"


class GLIDEPipelineBase(DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """What the pipelines have in common. A pipeline adds its components and tells the story of its task."""

    model_cpu_offload_seq = "text_encoder->super_res_text_encoder->unet->super_res_unet"
    _optional_components = [
        "tokenizer",
        "text_encoder",
        "super_res_text_encoder",
        "super_res_unet",
        "super_res_scheduler",
    ]
    _callback_tensor_inputs = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    _lora_loadable_modules = ["unet", "text_encoder"]

    def __init__(self) -> None:
        super().__init__()
        self.image_processor = VaeImageProcessor(vae_scale_factor=1, resample="bicubic")

    # -- properties that a callback may read, or change while the pipeline runs ---------------------------------------

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance; read anew at every base step."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model also runs on the negative prompt: at scale 1 it would change nothing."""
        return self._guidance_scale != 1.0

    @property
    def stage(self) -> str | None:
        """`"base"` or `"super_res"` while the pipeline runs, else None."""
        return getattr(self, "_stage", None)

    @property
    def num_timesteps(self) -> int:
        """Steps of the last call, over both stages."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """A callback sets `pipe._interrupt = True` to skip the steps that are left."""
        return self._interrupt

    @property
    def scale_factor(self) -> int:
        """How many times larger than the base picture the returned one is; 1 without an upsampler."""
        if self.super_res_unet is None:
            return 1
        return _pair(self.super_res_unet.config.sample_size)[0] // _pair(self.unet.config.sample_size)[0]

    @property
    def size_multiple(self) -> int:
        """Height and width of the returned picture must be multiples of this number of pixels."""
        multiple = self.unet.size_multiple * self.scale_factor
        return multiple if self.super_res_unet is None else math.lcm(multiple, self.super_res_unet.size_multiple)

    @property
    def default_size(self) -> tuple[int, int]:
        """Height and width of the pictures that the model was trained on, in pixels."""
        return _pair((self.super_res_unet or self.unet).config.sample_size)

    # -- text ---------------------------------------------------------------------------------------------------------

    def tokenize(self, prompt: str | list[str]) -> BatchEncoding:
        """Token ids as GLIDE was trained on: lower case, cut and padded to the text context.

        Args:
            prompt (`str` or `list[str]`): One or several prompts.

        Returns:
            `BatchEncoding`: `input_ids` and `attention_mask` of shape `[B, L]`, the mask being 1 on text.
        """
        # Python's lower(), not the tokenizer's: they differ on some letters (final sigma).
        texts = [text.lower() for text in ([prompt] if isinstance(prompt, str) else prompt)]
        context = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=context, truncation=True, return_tensors="pt", verbose=False
        )
        if tokens.attention_mask.all(dim=1).any():
            for text in texts:
                length = len(self.tokenizer(text, verbose=False).input_ids)
                if length > context:
                    logger.warning(f"The prompt has {length} tokens; what is beyond the first {context} is not seen.")
        return tokens

    def encode_prompt(
        self,
        prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = True,
        negative_prompt: str | list[str] | None = None,
        device: torch.device | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        super_res_prompt_embeds: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Encode prompts with the text encoders of both stages. What is given as embeddings is not encoded again.

        Args:
            prompt (`str` or `list[str]`, *optional*): `B` prompts.
            num_images_per_prompt (`int`, defaults to 1): `N`; each prompt's embeddings are repeated as often.
            do_classifier_free_guidance (`bool`, defaults to `True`): Whether to encode the negative prompt.
            negative_prompt (`str` or `list[str]`, *optional*): What to steer away from; the empty prompt by default.
            device (`torch.device`, *optional*): Where to compute; the pipeline's device by default.
            prompt_embeds, negative_prompt_embeds, super_res_prompt_embeds (`torch.Tensor` of shape `[B, L, C]`,
                *optional*): Used in place of the encoders' outputs, before they are repeated.

        Returns:
            `tuple`: `prompt_embeds`, `negative_prompt_embeds` (None without guidance) and `super_res_prompt_embeds`
            (None without a text encoder of the upsampler), each of shape `[B * N, L, C]`.
        """
        device = device or self._execution_device
        tokens = self.tokenize(prompt) if prompt is not None else None
        if tokens is not None:
            self._warn_outside_domain(prompt)
        if prompt_embeds is None:
            prompt_embeds = self._encode(self.text_encoder, tokens, device)
        batch_size = prompt_embeds.shape[0]
        if not do_classifier_free_guidance:
            negative_prompt_embeds = None
        elif negative_prompt_embeds is None:
            # One prompt for the whole batch is encoded once.
            negative_prompt_embeds = self._encode(self.text_encoder, self.tokenize(negative_prompt or ""), device)
            negative_prompt_embeds = negative_prompt_embeds.expand(batch_size, -1, -1)
        if super_res_prompt_embeds is None and self.super_res_text_encoder is not None and tokens is not None:
            super_res_prompt_embeds = self._encode(self.super_res_text_encoder, tokens, device)

        def repeat(embeds: torch.Tensor | None) -> torch.Tensor | None:
            return None if embeds is None else embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)

        return repeat(prompt_embeds), repeat(negative_prompt_embeds), repeat(super_res_prompt_embeds)

    @staticmethod
    def _encode(text_encoder: GLIDETextEncoder, tokens: BatchEncoding, device: torch.device) -> torch.Tensor:
        return text_encoder(
            tokens.input_ids.to(device), attention_mask=tokens.attention_mask.to(device)
        ).last_hidden_state

    def _warn_outside_domain(self, prompt: str | list[str]) -> None:
        """A model trained on a small world says so when it is asked for something else."""
        if self.config.get("prompt_domain") != "shapes":
            return
        from ..shapes import knows

        for text in [prompt] if isinstance(prompt, str) else prompt:
            if text and not knows(text):
                logger.warning(
                    f"This checkpoint knows only its world of coloured shapes; the prompt {text!r} is outside it. "
                    'Try one such as "a red circle above a blue square on a white background".'
                )

    # -- checks -------------------------------------------------------------------------------------------------------

    def _check_prompts(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None,
        prompt_embeds: torch.Tensor | None,
        negative_prompt_embeds: torch.Tensor | None,
        super_res_prompt_embeds: torch.Tensor | None,
        needs_base: bool = True,
    ) -> int:
        """Check everything about prompts and their embeddings, and return the batch size."""
        if prompt is None and prompt_embeds is None and (needs_base or super_res_prompt_embeds is None):
            raise ValueError("Pass `prompt` or `prompt_embeds`: there is nothing to draw.")
        if prompt is not None and prompt_embeds is not None:
            raise ValueError("Pass either `prompt` or `prompt_embeds`, not both.")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("Pass either `negative_prompt` or `negative_prompt_embeds`, not both.")
        if prompt is not None:
            check_prompt("prompt", prompt)
            if self.text_encoder is None or self.tokenizer is None:
                raise ValueError("`prompt` needs a text encoder and a tokenizer; without them pass `prompt_embeds`.")
            batch_size = 1 if isinstance(prompt, str) else len(prompt)
        else:
            check_embeds("prompt_embeds", prompt_embeds, self.unet.config.cross_attention_dim)
            batch_size = prompt_embeds.shape[0]
        if negative_prompt is not None:
            check_prompt("negative_prompt", negative_prompt)
            if isinstance(negative_prompt, list) and len(negative_prompt) != batch_size:
                raise ValueError(
                    f"`negative_prompt` must be one string or a list of {batch_size}, as the prompts are, "
                    f"got {len(negative_prompt)}."
                )
        if negative_prompt_embeds is not None:
            width = self.unet.config.cross_attention_dim
            check_embeds("negative_prompt_embeds", negative_prompt_embeds, width, batch_size)
        elif self.text_encoder is None and self.do_classifier_free_guidance:
            raise ValueError("Guidance without a text encoder needs `negative_prompt_embeds`.")
        if self.super_res_unet is not None:
            if super_res_prompt_embeds is not None:
                width = self.super_res_unet.config.cross_attention_dim
                check_embeds("super_res_prompt_embeds", super_res_prompt_embeds, width, batch_size)
            elif prompt is None:
                raise ValueError("`prompt_embeds` without `prompt` needs `super_res_prompt_embeds` for the upsampler.")
            elif self.super_res_text_encoder is None:
                raise ValueError("The upsampler needs `super_res_text_encoder`, or `super_res_prompt_embeds`.")
        return batch_size

    def _check_sampling(
        self,
        num_images_per_prompt: int,
        guidance_scale: float,
        eta: float,
        upsample_temperature: float,
        guider: BaseGuidance | None,
        callback_on_step_end: Callable | None,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        check_positive_int("num_images_per_prompt", num_images_per_prompt)
        check_number("guidance_scale", guidance_scale)
        check_number("eta", eta, 0, 1)
        check_number("upsample_temperature", upsample_temperature, 0)
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(f"`callback_on_step_end` must be callable, got {callback_on_step_end!r}.")
        if guider is None:
            return
        if not isinstance(guider, BaseGuidance):
            raise TypeError(f"`guider` must be one of `diffusers.guiders`, got {guider!r}.")
        hooks_model = type(guider).prepare_models is not BaseGuidance.prepare_models
        if hooks_model or not set(guider._input_predictions) <= {"pred_cond", "pred_uncond"}:
            raise ValueError(
                f"`guider` must only combine the conditional and the unconditional prediction; "
                f"{type(guider).__name__} works on transformer layers, which GLIDE's UNet does not have."
            )

    def _warn_far_from_training(self, height: int, width: int) -> None:
        trained_height, trained_width = self.default_size
        ratio = height * width / (trained_height * trained_width)
        if not 0.5 <= ratio <= 2:
            logger.warning(
                f"The model was trained on pictures of {trained_height} x {trained_width} pixels; "
                f"{height} x {width} is far from that, and the picture may be incoherent."
            )

    # -- sampling -----------------------------------------------------------------------------------------------------

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        scale: float | torch.Tensor = 1.0,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """The noise that sampling starts from.

        The sample stays in float32 through the whole loop, whatever the networks' dtype.

        Args:
            shape (`tuple[int, ...]`): `(B, 3, H, W)`.
            generator (`torch.Generator` or a list of them, *optional*): Source of the noise.
            latents (`torch.Tensor`, *optional*): Unit noise of that shape, in place of a draw.
            scale (`float`, defaults to 1.0): Factor on the noise.
            device (`torch.device`, *optional*): Where to put it; the pipeline's device by default.

        Returns:
            `torch.Tensor` of the given shape.
        """
        device = device or self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        return latents.to(device, torch.float32) * scale

    @contextlib.contextmanager
    def _run_stage(self, stage: str) -> Iterator[None]:
        self._stage = stage
        try:
            yield
        finally:
            self._stage = None

    def _denoise(
        self,
        unet: GLIDEUNet2DConditionModel,
        adapter: SchedulerAdapter,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None = None,
        conditions: dict[str, torch.Tensor] | None = None,
        guider: BaseGuidance | None = None,
        denoised_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        cond_fn: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """One stage: from noise to pictures in [-1, 1]; the loop of every pipeline."""
        timesteps = adapter.start(latents.device)
        conditions = {name: condition.to(unet.dtype) for name, condition in (conditions or {}).items()}
        # Callbacks see one running index over both stages.
        first_step = 0 if self.stage == "base" else self.num_timesteps - len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            if "desc" not in self._progress_bar_config:
                progress_bar.set_description(f"{self.stage} {latents.shape[-1]}x{latents.shape[-2]}")
            for i, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                model_input = adapter.scheduler.scale_model_input(latents, timestep)
                if guider is not None:
                    guider.set_state(step=i, num_inference_steps=len(timesteps), timestep=timestep)
                noise_pred, model_variance = self._predict(
                    functools.partial(unet, cross_attention_kwargs=cross_attention_kwargs),
                    model_input.to(unet.dtype),
                    timestep,
                    prompt_embeds.to(unet.dtype),
                    None if negative_prompt_embeds is None else negative_prompt_embeds.to(unet.dtype),
                    conditions,
                    guider,
                )
                cond_grad = None
                if cond_fn is not None:
                    cond_grad = cond_fn(model_input, timestep.expand(model_input.shape[0])).to(latents)
                latents = adapter.step(i, noise_pred, model_variance, latents, model_input, denoised_fn, cond_grad)

                if callback_on_step_end is not None:
                    tensors = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    asked = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                    tensors.update(callback_on_step_end(self, first_step + i, timestep, asked) or {})
                    latents = tensors["latents"]
                    prompt_embeds = tensors["prompt_embeds"]
                    negative_prompt_embeds = tensors["negative_prompt_embeds"]
                progress_bar.update()
        return latents

    def _predict(
        self,
        unet: Callable,
        model_input: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None,
        conditions: dict[str, torch.Tensor],
        guider: BaseGuidance | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The guided noise prediction and the variance channels, in float32; one pass of the UNet.

        Guidance acts on the noise; the variance is that of the prompt (GLIDE, section 2.2 and the released code).
        """
        if (
            guider is None
            and negative_prompt_embeds is None
            and self.stage == "base"
            and self.do_classifier_free_guidance
        ):
            raise ValueError(
                "`guidance_scale` was 1 when the call began: guidance cannot be switched on in a callback."
            )
        if guider is not None:
            batches = guider.prepare_inputs({"encoder_hidden_states": (prompt_embeds, negative_prompt_embeds)})
            embeds = [batch.encoder_hidden_states for batch in batches]
        elif negative_prompt_embeds is not None and self.do_classifier_free_guidance:
            embeds = [prompt_embeds, negative_prompt_embeds]
        else:
            embeds = [prompt_embeds]
        copies = len(embeds)
        output = unet(
            torch.cat([model_input] * copies),
            timestep,
            encoder_hidden_states=torch.cat(embeds),
            **{name: torch.cat([condition] * copies) for name, condition in conditions.items()},
        ).sample.float()
        noise_pred, *variance = output.split(model_input.shape[1], dim=1)
        model_variance = variance[0][: len(model_input)] if variance else None
        predictions = noise_pred.chunk(copies)
        if guider is not None:
            for batch, prediction in zip(batches, predictions, strict=True):
                batch.noise_pred = prediction
            return guider(batches).pred, model_variance
        if copies == 1:
            return noise_pred, model_variance
        cond, uncond = predictions
        # Classifier-free guidance: GLIDE, equation 6.
        return uncond + self.guidance_scale * (cond - uncond), model_variance

    def _enlarge(
        self,
        low_res: torch.Tensor,
        size: tuple[int, int],
        adapter: SchedulerAdapter,
        prompt_embeds: torch.Tensor,
        latents: torch.Tensor | None,
        upsample_temperature: float,
        generator: torch.Generator | list[torch.Generator] | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The upsampler's stage: pictures in [-1, 1] of shape `[B, 3, h, w]` to `size`, without guidance."""
        # Training pictures came from 8-bit files: round the small picture as they were.
        low_res = ((low_res + 1) * 127.5).round() / 127.5 - 1
        scale = upsample_temperature * adapter.scheduler.init_noise_sigma
        latents = self.prepare_latents((low_res.shape[0], 3, *size), generator, latents, scale)
        with self._run_stage("super_res"):
            return self._denoise(
                self.super_res_unet, adapter, latents, prompt_embeds, conditions={"low_res": low_res}, **kwargs
            )

    # -- composition --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pipe(
        cls, pipeline: DiffusionPipeline, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> GLIDEPipelineBase:
        """Another pipeline around the components of an existing one, which are shared and not copied.

        Args:
            pipeline (`DiffusionPipeline`): Where the components come from.
            dtype (`torch.dtype`, *optional*): Cast all components, in place; by default they stay as they are.
            kwargs: Components that take the place of the pipeline's, or that it lacks (`clip_model=...`).

        Returns:
            A pipeline of this class.

        Raises:
            TypeError: if a keyword is no component of this class.
            ValueError: if a component is missing.
        """
        components, options = cls._get_signature_keys(cls)
        unknown = sorted(set(kwargs) - set(components) - set(options))
        if unknown:
            raise TypeError(f"{cls.__name__} has no {', '.join(f'`{name}`' for name in unknown)}.")
        shared = {name: part for name, part in pipeline.components.items() if name in components}
        shared.update({name: pipeline.config[name] for name in options if name in pipeline.config})
        shared.update(kwargs)
        parameters = inspect.signature(cls.__init__).parameters.items()
        missing = [name for name, p in parameters if p.default is p.empty and name not in {"self", *shared}]
        if missing:
            raise ValueError(
                f"{type(pipeline).__name__} lacks what {cls.__name__} needs; "
                f"pass {', '.join(f'`{name}`' for name in missing)}."
            )
        composed = cls(**shared)
        if dtype is not None:
            composed.to(dtype=dtype)
        return composed


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
