"""What every GLIDE pipeline shares around the sampling: prompts, checks, composition."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import logging
from PIL import Image
from transformers import BatchEncoding, GPT2Tokenizer

from ..images import common_size
from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel, tokenize_prompts
from ..schedulers import SchedulerAdapter
from .input_checks import (
    check_callable,
    check_callback,
    check_callback_inputs,
    check_embeds,
    check_generator,
    check_guider,
    check_number,
    check_output_type,
    check_positive_int,
    check_prompt,
)
from .pipeline_output import GLIDEPipelineOutput
from .sampling import Call, CondFn, SamplingMixin


logger = logging.get_logger(__name__)

# The released notebooks' spacings (GLIDE, section 4, samples the base model with 150 steps; the notebooks with 100).
DEFAULT_TIMESTEPS = "100"
DEFAULT_SUPER_RES_TIMESTEPS = "fast27"


class GLIDEPipelineBase(SamplingMixin, DiffusionPipeline, StableDiffusionLoraLoaderMixin):
    """What the pipelines have in common: the components of both stages and the steps around the sampling.

    A pipeline tells the story of its task. Its components, all of which a checkpoint may share with other pipelines:

    Args:
        tokenizer (`GPT2Tokenizer`): GLIDE's byte-level BPE; its `model_max_length` is the text context.
        text_encoder ([`GLIDETextEncoder`]): Of the base model.
        unet ([`GLIDEUNet2DConditionModel`]): The base model.
        scheduler (`SchedulerMixin`): Of the base model; any noise-predicting diffusers scheduler.
        super_res_text_encoder ([`GLIDETextEncoder`], *optional*): Of the upsampler, which has its own.
        super_res_unet ([`GLIDEUNet2DConditionModel`], *optional*): The upsampler. Without it the base picture is
            returned.
        super_res_scheduler (`SchedulerMixin`, *optional*): Of the upsampler.
        prompt_domain (`str`, *optional*): `"shapes"` for a checkpoint of the shapes world: prompts outside it get a
            warning.
        low_res_consistency (`bool`, defaults to `False`): At each step of the upsampler, correct the estimate of the
            clean picture so that, reduced, it is the small one (DDNM, arXiv 2212.00490). An upsampler that was trained
            only briefly keeps its colours with it; OpenAI's need no correction, and would no longer equal the original.
        default_guidance_scale (`float`, *optional*): The classifier-free guidance that the checkpoint recommends, for
            calls that name none; without it they use that of OpenAI's notebooks.
    """

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
    _released_guidance_scale = 3.0
    # Before the first call:
    _guidance_scale: float | None = None
    _interrupt = False
    _num_timesteps = 0
    _stage: str | None = None

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

    # -- properties that a callback may read, or change while the pipeline runs ---------------------------------------

    @property
    def guidance_scale(self) -> float | None:
        """Scale of classifier-free guidance in the last call; read anew at every base step."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the model also runs on the negative prompt: at scale 1 it would change nothing."""
        return self._guidance_scale != 1.0

    @property
    def stage(self) -> str | None:
        """`"base"` or `"super_res"` while the pipeline runs, else None."""
        return self._stage

    @property
    def num_timesteps(self) -> int:
        """Evaluations of the model in the last call, over both stages.

        They are the steps for most schedulers; 2n - 1 for n steps of Heun's, n + 1 for n of PNDM's, and `num_resample`
        times as many in implicit inpainting.
        """
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
        return enlargement(self.super_res_unet.config.sample_size, self.unet.config.sample_size)

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
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return tokenize_prompts(self.tokenizer, prompts, "prompt")

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
            `tuple`: `prompt_embeds` (None without a base model), `negative_prompt_embeds` (None without guidance) and
            `super_res_prompt_embeds` (None without an upsampler), each of shape `[B * N, L, C]`.

        Raises:
            ValueError: if there is no prompt in either form, or guidance needs the negative one, and there is nothing
                to encode it with.
        """
        if (
            prompt is None
            and prompt_embeds is None
            and (self.text_encoder is not None or super_res_prompt_embeds is None)
        ):
            raise ValueError("Pass `prompt` or `prompt_embeds`: there is nothing to encode.")
        device = device or self._execution_device
        tokens = self.tokenize(prompt) if prompt is not None else None
        if tokens is not None:
            self._warn_outside_domain(prompt)
        if prompt_embeds is None and self.text_encoder is not None:
            prompt_embeds = self._encode(self.text_encoder, tokens, device)
        if not do_classifier_free_guidance or prompt_embeds is None:
            negative_prompt_embeds = None
        elif negative_prompt_embeds is None:
            self._check_negative_prompt_can_be_encoded()
            # One prompt for the whole batch is encoded once.
            negative_prompt_embeds = self._encode(self.text_encoder, self.tokenize(negative_prompt or ""), device)
            negative_prompt_embeds = negative_prompt_embeds.expand(prompt_embeds.shape[0], -1, -1)
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
        guided: bool,
    ) -> int:
        """Check everything about prompts and their embeddings, and return the batch size."""
        # The first stage that runs decides the batch: the upsampler, in a pipeline without a base model.
        prefix, unet, embeds = "", self.unet, prompt_embeds
        if unet is None:
            prefix, unet, embeds = "super_res_", self.super_res_unet, super_res_prompt_embeds
        if prompt is None and embeds is None:
            raise ValueError(f"Pass `prompt` or `{prefix}prompt_embeds`: there is nothing to draw.")
        if prompt is not None and embeds is not None:
            raise ValueError(f"Pass either `prompt` or `{prefix}prompt_embeds`, not both.")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("Pass either `negative_prompt` or `negative_prompt_embeds`, not both.")
        if prompt is not None:
            check_prompt("prompt", prompt)
            if getattr(self, f"{prefix}text_encoder") is None or self.tokenizer is None:
                raise ValueError(
                    f"`prompt` needs a tokenizer and `{prefix}text_encoder`; without them pass `{prefix}prompt_embeds`."
                )
            batch_size = 1 if isinstance(prompt, str) else len(prompt)
        else:
            check_embeds(f"{prefix}prompt_embeds", embeds, unet.config.cross_attention_dim)
            batch_size = embeds.shape[0]
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
        elif self.unet is not None and guided:
            self._check_negative_prompt_can_be_encoded()
        if self.unet is not None and guided:
            context = self.tokenizer.model_max_length if self.tokenizer is not None else None
            own, negative = (
                context if given is None else given.shape[1] for given in (prompt_embeds, negative_prompt_embeds)
            )
            if own != negative:
                raise ValueError(
                    "`prompt_embeds` and `negative_prompt_embeds` must have the same number of tokens, and an encoded "
                    f"prompt has {context}: got {own} and {negative}."
                )
        if self.super_res_unet is not None:
            if super_res_prompt_embeds is not None:
                width = self.super_res_unet.config.cross_attention_dim
                check_embeds("super_res_prompt_embeds", super_res_prompt_embeds, width, batch_size)
            elif prompt is None:
                raise ValueError("`prompt_embeds` without `prompt` needs `super_res_prompt_embeds` for the upsampler.")
            elif self.super_res_text_encoder is None:
                raise ValueError("The upsampler needs `super_res_text_encoder`, or `super_res_prompt_embeds`.")
        return batch_size

    def _check_negative_prompt_can_be_encoded(self) -> None:
        if self.text_encoder is None or self.tokenizer is None:
            raise ValueError("Guidance without a tokenizer and `text_encoder` needs `negative_prompt_embeds`.")

    @property
    def default_guidance_scale(self) -> float:
        """Guidance of a call that names none: what the checkpoint recommends, else that of OpenAI's notebook."""
        recommended = self.config.default_guidance_scale
        return self._released_guidance_scale if recommended is None else recommended

    def _prepare_call(
        self,
        *,
        prompt: str | list[str] | None,
        num_images_per_prompt: int,
        guidance_scale: float = 1.0,
        negative_prompt: str | list[str] | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        super_res_prompt_embeds: torch.Tensor | None,
        num_inference_steps: int | None = None,
        timesteps: str | list[int] | None = None,
        super_res_num_inference_steps: int | None,
        super_res_timesteps: str | list[int] | None,
        strength: float = 1.0,
        eta: float = 0.0,
        upsample_temperature: float,
        generator: torch.Generator | list[torch.Generator] | None,
        guider: BaseGuidance | None = None,
        cond_fn: CondFn | None = None,
        output_type: str,
        return_dict: bool,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None,
        callback_on_step_end_tensor_inputs: list[str],
        num_resample: int = 1,
    ) -> Call:
        """Check the arguments that pipelines share, plan the schedulers' runs, and bind them for the stages."""
        check_callback(callback_on_step_end)
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        check_callback_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_positive_int("num_images_per_prompt", num_images_per_prompt)
        check_number("guidance_scale", guidance_scale)
        check_number("eta", eta, 0, 1)
        check_number("upsample_temperature", upsample_temperature, 0)
        check_output_type(output_type)
        check_guider(guider)
        check_callable("cond_fn", cond_fn)
        self._guidance_scale = guidance_scale
        self._interrupt = False
        embeds = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "super_res_prompt_embeds": super_res_prompt_embeds,
        }
        guided = self.do_classifier_free_guidance or guider is not None
        batch_size = self._check_prompts(prompt, negative_prompt, **embeds, guided=guided)
        check_generator(generator, batch_size * num_images_per_prompt)

        def count(unet: GLIDEUNet2DConditionModel, run: SchedulerAdapter) -> int:
            # Only a stage in implicit mode takes its steps several times.
            repeats = num_resample if num_resample > 1 and not unet.is_inpainter else 1
            return repeats * len(run.start(self._execution_device))

        base = super_res = None
        self._num_timesteps = 0
        if self.unet is not None:
            base = SchedulerAdapter(
                self.scheduler,
                num_inference_steps,
                timesteps,
                DEFAULT_TIMESTEPS,
                generator=generator,
                eta=eta,
                strength=strength,
            )
            self._num_timesteps += count(self.unet, base)
        if self.super_res_unet is not None:
            if self.super_res_scheduler is None:
                raise ValueError("`super_res_unet` needs `super_res_scheduler`, and there is none.")
            super_res = SchedulerAdapter(
                self.super_res_scheduler,
                super_res_num_inference_steps,
                super_res_timesteps,
                DEFAULT_SUPER_RES_TIMESTEPS,
                generator=generator,
                prefix="super_res_",
            )
            self._num_timesteps += count(self.super_res_unet, super_res)
        return Call(
            batch_size=batch_size,
            num_images_per_prompt=num_images_per_prompt,
            base=base,
            super_res=super_res,
            prompt={"prompt": prompt, "negative_prompt": negative_prompt, **embeds},
            generator=generator,
            upsample_temperature=upsample_temperature,
            output_type=output_type,
            return_dict=return_dict,
            guider=guider,
            cond_fn=cond_fn,
            callback=callback_on_step_end,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )

    def _encode_call(self, call: Call) -> None:
        """Encode a call's prompts, once for all steps."""
        call.prompt_embeds, call.negative_prompt_embeds, call.super_res_prompt_embeds = self.encode_prompt(
            **call.prompt,
            num_images_per_prompt=call.num_images_per_prompt,
            do_classifier_free_guidance=self.do_classifier_free_guidance or call.guider is not None,
        )

    def _finish(self, call: Call, image: torch.Tensor) -> GLIDEPipelineOutput | tuple:
        images = self.image_processor.postprocess(image, call.output_type)
        self.maybe_free_model_hooks()
        return GLIDEPipelineOutput(images) if call.return_dict else (images,)

    def _check_channels(self, super_res_unet: tuple[int, ...], unet: tuple[int, ...] = ()) -> None:
        """The UNets must be of a kind that fits the task, told by their input channels."""
        for name, allowed in (("unet", unet), ("super_res_unet", super_res_unet)):
            network = getattr(self, name)
            if network is not None and network.config.in_channels not in allowed:
                raise ValueError(
                    f"`{name}` has {network.config.in_channels} input channels; {type(self).__name__} needs one with "
                    f"{' or '.join(map(str, allowed))}."
                )

    def _prepare_images(
        self, name: str, images: list[Image.Image], batch_size: int, num_images_per_prompt: int = 1
    ) -> list[Image.Image]:
        """One picture for each that is drawn: a single one serves all prompts."""
        if len(images) not in (1, batch_size):
            allowed = "as there is one prompt" if batch_size == 1 else f"or {batch_size}, as the prompts are"
            raise ValueError(f"`{name}` must be one picture, {allowed}, got {len(images)}.")
        each = images * batch_size if len(images) == 1 else images
        return [image for image in each for _ in range(num_images_per_prompt)]

    def _picture_size(
        self, images: list[Image.Image], height: int | None, width: int | None
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size of the returned picture, the given pictures' own by default, and the size it is drawn at inside."""
        own = common_size("image", images) if height is None or width is None else (height, width)
        size = (own[0] if height is None else height, own[1] if width is None else width)
        for name, value in zip(("height", "width"), size, strict=True):
            check_positive_int(name, value)
        inside = self._padded(size)
        self._check_size(*inside)
        return size, inside

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (math.ceil(length / self.size_multiple) * self.size_multiple for length in size)
        return height, width

    def _check_size(self, height: int, width: int) -> None:
        """Judge the size that is drawn: far from the model's own is allowed, with a warning."""
        trained_height, trained_width = self.default_size
        ratio = height * width / (trained_height * trained_width)
        if not 0.5 <= ratio <= 2:
            logger.warning(
                f"The model was trained on pictures of {trained_height} x {trained_width} pixels; "
                f"{height} x {width} is far from that, and the picture may be incoherent."
            )

    # -- composition --------------------------------------------------------------------------------------------------

    @classmethod
    def from_pipe(
        cls,
        pipeline: DiffusionPipeline,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> GLIDEPipelineBase:
        """Another pipeline around the components of an existing one, which are shared and not copied.

        Args:
            pipeline (`DiffusionPipeline`): Where the components come from.
            dtype (`torch.dtype`, *optional*): Cast all components, in place; by default they stay as they are.
            torch_dtype (`torch.dtype`, *optional*): The older name of `dtype` in diffusers.
            kwargs: Components that take the place of the pipeline's, or that it lacks (`clip_model=...`).

        Returns:
            A pipeline of this class.

        Raises:
            TypeError: if a keyword is no component of this class.
            ValueError: if a component is missing.
        """
        dtype = torch_dtype if dtype is None else dtype
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


def enlargement(large: int | tuple[int, int], small: int | tuple[int, int]) -> int:
    """How many times larger than the base's pictures those of the upsampler are, by the `sample_size` of both.

    Raises:
        ValueError: if that is no whole number.
    """
    large, small = _pair(large)[0], _pair(small)[0]
    if large < small or large % small:
        raise ValueError(f"The upsampler's pictures must be a whole number of times the base's {small}, got {large}.")
    return large // small


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
