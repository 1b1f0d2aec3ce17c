"""From noise to pictures: the loop that every pipeline runs, once per stage."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.guiders import BaseGuidance
from diffusers.utils.torch_utils import randn_tensor

from ..images import round_pixels
from ..models import GLIDEUNet2DConditionModel
from ..schedulers import SchedulerAdapter
from .known_region import KnownRegion


# (x_t [B, 3, h, w], timestep [B]) to the gradient [B, 3, h, w] of a log-likelihood with respect to x_t, or None.
CondFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]


@dataclass
class Call:
    """One call of a pipeline, its arguments checked.

    Attributes:
        batch_size: Prompts.
        num_images_per_prompt: Pictures for each of them.
        base, super_res: The run of each stage's scheduler; None for a stage that does not run.
        prompt: The arguments of `encode_prompt` that name prompts and embeddings.
        generator: Source of all noise.
        upsample_temperature: Factor on the upsampler's starting noise.
        output_type: `"pil"`, `"np"` or `"pt"`.
        return_dict: False gives a tuple.
        guider: In place of classifier-free guidance.
        cond_fn: Gradient that is added to the score of the base stage.
        callback, callback_inputs: Called after each step, with these tensors.
        prompt_embeds, negative_prompt_embeds, super_res_prompt_embeds: Filled by `_encode_call`.
    """

    batch_size: int
    num_images_per_prompt: int
    base: SchedulerAdapter | None
    super_res: SchedulerAdapter | None
    prompt: dict[str, Any]
    generator: torch.Generator | list[torch.Generator] | None
    upsample_temperature: float
    output_type: str
    return_dict: bool
    guider: BaseGuidance | None
    cond_fn: CondFn | None
    callback: Callable | None
    callback_inputs: Sequence[str]
    prompt_embeds: torch.Tensor | None = field(default=None, init=False)
    negative_prompt_embeds: torch.Tensor | None = field(default=None, init=False)
    super_res_prompt_embeds: torch.Tensor | None = field(default=None, init=False)

    @property
    def num_images(self) -> int:
        """Pictures in all."""
        return self.batch_size * self.num_images_per_prompt


class SamplingMixin:
    """The two stages of a GLIDE pipeline, over its `unet` and `super_res_unet`."""

    def prepare_latents(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        scale: float | torch.Tensor = 1.0,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """The noise that sampling starts from, in float32, as the sample stays whatever the networks' dtype is.

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

    def _draw_base(self, call: Call, latents: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """The base stage: noise `[B, 3, h, w]` to pictures in [-1, 1]."""
        with self._run_stage("base"):
            return self._denoise(
                call,
                self.unet,
                call.base,
                latents,
                call.prompt_embeds,
                call.negative_prompt_embeds,
                cond_fn=call.cond_fn,
                **kwargs,
            )

    def _enlarge(
        self,
        call: Call,
        low_res: torch.Tensor,
        size: tuple[int, int],
        latents: torch.Tensor | None = None,
        unet: Callable | None = None,
        conditions: dict[str, torch.Tensor] | None = None,
        denoised_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The upsampler's stage: pictures in [-1, 1] of shape `[B, 3, h, w]` to `size`, without guidance.

        Where a callback has interrupted the base stage, its picture as it is, enlarged bilinearly.
        """
        if self.interrupt:
            return F.interpolate(low_res.clamp(-1, 1), size, mode="bilinear", align_corners=False)
        # Training pictures came from 8-bit files: round the small picture as they were.
        low_res = round_pixels(low_res)
        if self.config.low_res_consistency:
            denoised_fn = _consistent_with(low_res, denoised_fn)
        scale = call.upsample_temperature * call.super_res.init_noise_sigma
        latents = self.prepare_latents((low_res.shape[0], 3, *size), call.generator, latents, scale)
        with self._run_stage("super_res"):
            return self._denoise(
                call,
                unet or self.super_res_unet,
                call.super_res,
                latents,
                call.super_res_prompt_embeds,
                conditions={"low_res": low_res, **(conditions or {})},
                denoised_fn=denoised_fn,
                **kwargs,
            )

    @contextlib.contextmanager
    def _run_stage(self, stage: str) -> Iterator[None]:
        self._stage = stage
        try:
            yield
        finally:
            self._stage = None

    def _denoise(
        self,
        call: Call,
        unet: GLIDEUNet2DConditionModel,
        adapter: SchedulerAdapter,
        latents: torch.Tensor,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None = None,
        conditions: dict[str, torch.Tensor] | None = None,
        denoised_fn: Callable[[torch.Tensor], torch.Tensor] | None = None,
        known: KnownRegion | None = None,
        cond_fn: CondFn | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """One stage: the UNet predicts, guidance combines, the scheduler steps."""
        timesteps = adapter.start(latents.device)
        conditions = {name: condition.to(unet.dtype) for name, condition in (conditions or {}).items()}
        # With resampling (RePaint) each step is taken several times; callbacks see every time.
        repeats = known.num_resample if known is not None else 1
        visits = [(i, repeat) for i in range(len(timesteps)) for repeat in range(repeats)]
        # Callbacks see one running index over both stages.
        first_step = 0 if self.stage == "base" else self.num_timesteps - len(visits)
        run_unet = functools.partial(unet, cross_attention_kwargs=cross_attention_kwargs)
        with self.progress_bar(total=len(visits)) as progress_bar:
            if "desc" not in self._progress_bar_config:
                mode = ", implicit" if known is not None else ", fine-tuned" if "image" in conditions else ""
                progress_bar.set_description(f"{self.stage} {latents.shape[-1]}x{latents.shape[-2]}{mode}")
            for visit, (i, repeat) in enumerate(visits):
                if self.interrupt:
                    break
                timestep = timesteps[i]
                if known is not None:
                    latents = known.noise_in(latents, adapter, i)
                model_input = adapter.scheduler.scale_model_input(latents, timestep)
                if call.guider is not None and negative_prompt_embeds is not None:
                    call.guider.set_state(step=i, num_inference_steps=len(timesteps), timestep=timestep)
                noise_pred, model_variance = self._predict(
                    run_unet,
                    model_input.to(unet.dtype),
                    timestep,
                    prompt_embeds.to(unet.dtype),
                    None if negative_prompt_embeds is None else negative_prompt_embeds.to(unet.dtype),
                    conditions,
                    call.guider,
                )
                cond_grad = None
                if cond_fn is not None:
                    cond_grad = score_gradient(cond_fn, model_input, timestep.expand(len(model_input)))
                latents = adapter.step(i, noise_pred, model_variance, latents, model_input, denoised_fn, cond_grad)
                if repeat < repeats - 1:
                    latents = known.step_back(latents, adapter, i)

                if call.callback is not None:
                    tensors = {
                        "latents": latents,
                        "prompt_embeds": prompt_embeds,
                        "negative_prompt_embeds": negative_prompt_embeds,
                    }
                    asked = {name: tensors[name] for name in call.callback_inputs}
                    tensors.update(call.callback(self, first_step + visit, timestep, asked) or {})
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

        Guidance acts on the noise; the variance is that of the prompt (GLIDE, section 2.2 and the released code). Only
        the base stage has negative embeddings: the upsampler runs without guidance.
        """
        guided = negative_prompt_embeds is not None
        if not guided and self.stage == "base" and self.do_classifier_free_guidance:
            raise ValueError("`guidance_scale` was 1 when the call began: a callback cannot switch guidance on.")
        embeds, batches = [prompt_embeds], None
        if guided and guider is not None:
            batches = guider.prepare_inputs({"encoder_hidden_states": (prompt_embeds, negative_prompt_embeds)})
            embeds = [batch.encoder_hidden_states for batch in batches]
        elif guided and self.do_classifier_free_guidance:
            embeds = [prompt_embeds, negative_prompt_embeds]
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
        if batches is not None:
            for batch, prediction in zip(batches, predictions, strict=True):
                batch.noise_pred = prediction
            return guider(batches).pred, model_variance
        if copies == 1:
            return noise_pred, model_variance
        cond, uncond = predictions
        # Classifier-free guidance: GLIDE, equation 6.
        return uncond + self.guidance_scale * (cond - uncond), model_variance


def score_gradient(cond_fn: CondFn, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor | None:
    """What `cond_fn` gives for x_t, checked, in the dtype of x_t."""
    gradient = cond_fn(x_t, timestep)
    if gradient is None:
        return None
    if not isinstance(gradient, torch.Tensor) or gradient.shape != x_t.shape:
        given = list(gradient.shape) if isinstance(gradient, torch.Tensor) else repr(gradient)
        raise ValueError(
            f"`cond_fn` must return a tensor of the shape of x_t, {list(x_t.shape)}, or None, got {given}."
        )
    return gradient.to(x_t)


def _consistent_with(
    low_res: torch.Tensor, then: Callable[[torch.Tensor], torch.Tensor] | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Corrects an estimate of x_0 so that, reduced, it is the small picture (DDNM, arXiv 2212.00490, section 3.2)."""

    def correct(x_start: torch.Tensor) -> torch.Tensor:
        x_start = x_start.clamp(-1, 1)
        missing = low_res - F.adaptive_avg_pool2d(x_start, low_res.shape[-2:])
        # Spread smoothly: where the correction is not constant, blocks would show.
        x_start = x_start + F.interpolate(missing, x_start.shape[-2:], mode="bilinear", align_corners=False)
        return x_start if then is None else then(x_start)

    return correct
