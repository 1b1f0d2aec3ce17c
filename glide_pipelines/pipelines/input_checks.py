"""Checks that every pipeline shares. Each names the argument, what was given and what is allowed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from diffusers.callbacks import (
    MultiPipelineCallbacks,
    SD3CFGCutoffCallback,
    SDCFGCutoffCallback,
    SDXLCFGCutoffCallback,
    SDXLControlnetCFGCutoffCallback,
)
from diffusers.guiders import BaseGuidance

from ..arguments import check_number, check_tensor, describe
from ..models.tokenization import check_text
from ..sampling import SchedulerRun, Stage


OUTPUT_TYPES = ("pil", "np", "pt", "latent")
# Of images, and of pixels on a side: torch counts elements in 64 bits.
MAX_INT = 2**20
# What attention layers pass to their processors anyway.
_ATTENTION_INPUTS = {
    "self",
    "attn",
    "hidden_states",
    "encoder_hidden_states",
    "attention_mask",
    "temb",
    "args",
    "kwargs",
}
# They switch guidance off by a scale of 0, which here generates what the negative prompt says.
GUIDANCE_CUTOFFS = (SDCFGCutoffCallback, SDXLCFGCutoffCallback, SDXLControlnetCFGCutoffCallback, SD3CFGCutoffCallback)


def check_prompt(name: str, prompt: Any) -> None:
    """`prompt` must be a string or a non-empty list of strings."""
    if isinstance(prompt, str):
        prompt = [prompt]
    if not isinstance(prompt, list) or not all(isinstance(text, str) for text in prompt):
        raise TypeError(f"`{name}` must be a string or a list of strings, got {describe(prompt)}.")
    if not prompt:
        raise ValueError(f"`{name}` must not be an empty list.")
    for text in prompt:
        check_text(name, text)


def check_embeds(name: str, embeds: Any, stage: Stage, batch_size: int | None = None) -> torch.Tensor:
    """`embeds` must be a finite tensor of shape `[batch_size, L, C]` that the stage's UNet takes; it is returned.

    `L` is the context of the stage's text encoder, if it has one; None leaves the batch open.
    """
    check_tensor(name, embeds, "batch", "tokens", stage.unet.config.cross_attention_dim or "width")
    if batch_size is not None and embeds.shape[0] != batch_size:
        raise ValueError(f"`{name}` must have a batch of {batch_size}, as the prompts have, got {embeds.shape[0]}.")
    if stage.text_encoder is not None:
        context = stage.text_encoder.config.max_position_embeddings
        if embeds.shape[1] != context:
            raise ValueError(f"`{name}` must have the {context} tokens of the text context, got {embeds.shape[1]}.")
    _check_values(name, embeds)
    return embeds


def check_positive_int(name: str, value: Any) -> None:
    """`value` must be an integer from 1 to `MAX_INT`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {describe(value)}.")
    if value < 1:
        raise ValueError(f"`{name}` must be 1 or more, got {value}.")
    if int(value) > MAX_INT:
        raise ValueError(f"`{name}` must be {MAX_INT} or less, got {value}.")


def check_multiple(name: str, value: Any, multiple: int) -> None:
    """`value` must be a positive multiple of `multiple`."""
    check_positive_int(name, value)
    if value % multiple:
        raise ValueError(f"`{name}` must be a multiple of {multiple}, got {value}.")


def check_generator(generator: Any, num_images: int) -> None:
    """`generator` must be None, a generator, or a list of `num_images` of them."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if not isinstance(generator, list) or not all(isinstance(entry, torch.Generator) for entry in generator):
        raise TypeError(f"`generator` must be a torch.Generator or a list of them, got {describe(generator)}.")
    if len(generator) != num_images:
        raise ValueError(
            f"`generator` is a list of {len(generator)}, but {num_images} images are asked for "
            "(prompts times `num_images_per_prompt`)."
        )


def check_latents(name: str, latents: Any, shape: tuple[int, ...]) -> None:
    """`latents` must be a finite tensor of the given shape."""
    check_tensor(name, latents, *shape)
    _check_values(name, latents)


def check_output_type(output_type: Any) -> None:
    """`output_type` must be one of `OUTPUT_TYPES`."""
    if not isinstance(output_type, str) or output_type not in OUTPUT_TYPES:
        raise ValueError(f"`output_type` must be one of {', '.join(map(repr, OUTPUT_TYPES))}, got {output_type!r}.")


def check_guider(guider: Any) -> None:
    """`guider` must be None or one of `diffusers.guiders` that works on the predictions alone."""
    if guider is None:
        return
    if not isinstance(guider, BaseGuidance):
        raise TypeError(f"`guider` must be one of `diffusers.guiders`, got {describe(guider)}.")
    hooks_model = type(guider).prepare_models is not BaseGuidance.prepare_models
    if hooks_model or not set(guider._input_predictions) <= {"pred_cond", "pred_uncond"}:
        raise ValueError(
            f"`guider` must only combine the conditional and the unconditional prediction; {type(guider).__name__} "
            "works on transformer layers, which GLIDE's UNet does not have."
        )


def rehearse_guider(guider: BaseGuidance | None, run: SchedulerRun) -> None:
    """Guide random predictions through all steps of a run: a `guider` that fails, or gives none, fails here, before any
    network runs."""
    if guider is None:
        return
    guider, name = copy.deepcopy(guider), type(guider).__name__
    cond, uncond = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for step in range(len(run)):
        try:
            guider.set_state(step=step, num_inference_steps=len(run), timestep=run.timesteps[step])
            branches = guider.prepare_inputs({"encoder_hidden_states": (cond, uncond)})
            for branch in branches:
                branch.noise_pred = branch.encoder_hidden_states
            pred = guider(branches).pred
        except Exception as error:  # what it raises depends on the guider
            raise ValueError(f"`guider` {name} fails at step {step + 1} of {len(run)}: {error}") from error
        if not isinstance(pred, torch.Tensor) or pred.shape != cond.shape or not pred.isfinite().all():
            raise ValueError(
                f"`guider` {name} must give a finite prediction of the shape of what it is given; at step {step + 1} "
                f"of {len(run)} it does not."
            )


def check_callable(name: str, value: Any) -> None:
    """`value` must be None or something that can be called."""
    if value is not None and not callable(value):
        raise TypeError(f"`{name}` must be callable, got {describe(value)}.")


def check_callback(callback: Any) -> None:
    """`callback_on_step_end` must be None or callable, and none of diffusers' that switch guidance off."""
    check_callable("callback_on_step_end", callback)
    for each in callback.callbacks if isinstance(callback, MultiPipelineCallbacks) else [callback]:
        if isinstance(each, GUIDANCE_CUTOFFS):
            raise ValueError(
                f"`callback_on_step_end` must not be diffusers' {type(each).__name__}, whose way to switch guidance "
                "off is that of other pipelines: set `pipe._guidance_scale = 1.0` in a callback of your own."
            )


def check_callback_inputs(names: Sequence[str], allowed: Sequence[str]) -> None:
    """Every name in `callback_on_step_end_tensor_inputs` must be one that the pipeline offers."""
    if not isinstance(names, list | tuple):
        raise TypeError(f"`callback_on_step_end_tensor_inputs` must be a list of strings, got {describe(names)}.")
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ValueError(
            f"`callback_on_step_end_tensor_inputs` may hold {', '.join(map(repr, allowed))}, got {unknown}."
        )


def check_callback_outputs(returned: Any, tensors: Mapping[str, torch.Tensor | None]) -> dict[str, torch.Tensor]:
    """What a callback returned must be None, or a dict with some of the tensors in their own shapes."""
    if returned is None:
        return {}
    name = "callback_on_step_end"
    if not isinstance(returned, dict):
        raise TypeError(f"`{name}` must return a dict of tensors or None, got {describe(returned)}.")
    for key, value in returned.items():
        if key not in tensors:
            raise ValueError(f"`{name}` may return {', '.join(map(repr, tensors))}, got {key!r}.")
        before = tensors[key]
        if value is before:
            continue
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            raise TypeError(f"`{name}` must return floating-point tensors, got {describe(value)} for {key!r}.")
        if before is None or value.shape != before.shape:
            shape = None if before is None else list(before.shape)
            raise ValueError(f"`{name}` must return {key!r} of the shape {shape}, got {list(value.shape)}.")
    return {key: value.to(tensors[key]) for key, value in returned.items() if value is not None}


def check_cross_attention_kwargs(value: Any, unet: Any) -> None:
    """`cross_attention_kwargs` must be None or a dict of what the UNet's attention processors take, or of `scale`, that
    of a LoRA, which must be a number."""
    if value is None:
        return
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"`cross_attention_kwargs` must be a dict with names as keys, got {describe(value)}.")
    processors = {type(processor) for processor in unet.attn_processors.values()}
    taken = {name for each in processors for name in inspect.signature(each.__call__).parameters}
    allowed = {"scale"} | taken - _ATTENTION_INPUTS
    unknown = sorted(set(value) - allowed)
    if unknown:
        raise ValueError(f"`cross_attention_kwargs` may hold {', '.join(sorted(allowed))}, got {', '.join(unknown)}.")
    if "scale" in value:
        check_number("cross_attention_kwargs['scale']", value["scale"])


def _check_values(name: str, tensor: torch.Tensor) -> None:
    """A tensor that takes part in the computation must hold finite values."""
    if tensor.is_meta:
        raise TypeError(f"`{name}` must have values, got a tensor on the meta device.")
    if not tensor.isfinite().all():
        raise ValueError(f"`{name}` holds NaN or infinity.")
