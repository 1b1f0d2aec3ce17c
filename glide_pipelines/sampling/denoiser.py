"""The denoiser: everything between x_t and what a scheduler steps, in one place.

The UNet predicts noise (or v) and variance, a guider combines its passes, x_0 is estimated and constrained, and score
gradients are added. The loop and the schedulers know none of it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance


if TYPE_CHECKING:
    from .run import SchedulerRun


# (x_t [B, 3, H, W], timestep [B]) to the gradient [B, 3, H, W] of a log-likelihood with respect to x_t, or None.
CondFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor | None]
# An estimate of x_0 [B, 3, H, W] to the one that is used.
Constraint = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Prediction:
    """What the denoiser says of x_t.

    Attributes:
        noise_pred (`torch.Tensor` of shape `[B, 3, H, W]`): The guided noise prediction.
        model_variance (`torch.Tensor` of shape `[B, 3, H, W]`, *optional*): The model's variance channels.
        x_start (`torch.Tensor` of shape `[B, 3, H, W]`): The estimate of x_0, constrained and limited.
        is_constrained (`bool`): Whether `x_start` may differ from what the noise prediction alone says.
        score_grad (`torch.Tensor` of shape `[B, 3, H, W]`, *optional*): Gradient to be added to the score.
    """

    noise_pred: torch.Tensor
    model_variance: torch.Tensor | None
    x_start: torch.Tensor
    is_constrained: bool
    score_grad: torch.Tensor | None


class Denoiser:
    """A stage's UNet with its text, guidance and conditions, over one run of a scheduler.

    Args:
        unet (`Callable`): A [`GLIDEUNet2DConditionModel`], or what is called like one.
        run ([`SchedulerRun`]): Whose noise levels and limit of x_0 count.
        prompt_embeds (`torch.Tensor` of shape `[B, L, C]`): The encoded prompts.
        negative_prompt_embeds (`torch.Tensor` of shape `[B, L, C]`, *optional*): Without them nothing is guided.
        guider (`BaseGuidance`, *optional*): Combines the passes with and without the prompt, see
            [`classifier_free_guidance`].
        conditions (`dict[str, torch.Tensor]`, *optional*): What the UNet takes besides: `low_res`, `image`, `mask`.
        constraint (`Callable`, *optional*): Changes the estimate of x_0, before it is limited.
        cond_fns (`Sequence[Callable]`): Score gradients, which are summed. One that has a method `set_state(step,
            num_inference_steps, timestep)` learns where the run is, as diffusers' guiders are.
        cross_attention_kwargs (`dict`, *optional*): Passed on to the UNet.
        max_batch_size (`int`, *optional*): The UNet takes at most so many inputs at a time, those of guidance counted.
    """

    def __init__(
        self,
        unet: Any,
        run: SchedulerRun,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None = None,
        guider: BaseGuidance | None = None,
        conditions: dict[str, torch.Tensor] | None = None,
        constraint: Constraint | None = None,
        cond_fns: Sequence[CondFn] = (),
        cross_attention_kwargs: dict[str, Any] | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        self.unet = unet
        self.run = run
        self.prompt_embeds = prompt_embeds
        self.negative_prompt_embeds = negative_prompt_embeds
        self.guider = guider
        self.conditions = {name: value.to(unet.dtype) for name, value in (conditions or {}).items()}
        self.constraint = constraint
        self.cond_fns = cond_fns
        self.cross_attention_kwargs = cross_attention_kwargs
        self.max_batch_size = max_batch_size
        self._kept: dict[str, tuple[tuple[int, ...], list[torch.Tensor], tuple[torch.Tensor, ...]]] = {}

    def __call__(self, x_t: torch.Tensor, index: int) -> Prediction:
        """Predict at the step `index` of the run, for x_t of shape `[B, 3, H, W]`.

        Raises:
            ValueError: if a score gradient is none.
        """
        state = {"step": index, "num_inference_steps": len(self.run), "timestep": self.run.timesteps[index]}
        noise_pred, model_variance = self._predict_noise(x_t, state)
        x_start = self.run.process.constrain_x_start(
            x_t, noise_pred, self.run.process_step(index), self.constraint, self.run.limit
        )
        is_constrained = self.constraint is not None or self.run.limit is not None
        return Prediction(noise_pred, model_variance, x_start, is_constrained, self._score_grad(x_t, state))

    def _predict_noise(self, x_t: torch.Tensor, state: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The guided noise prediction and the variance channels, in float32; one pass of the UNet.

        Guidance acts on the noise; the variance is that of the prompt (GLIDE, section 2.2 and the released code).
        """
        embeds, branches = [self.prompt_embeds], None
        if self.guider is not None and self.negative_prompt_embeds is not None:
            self.guider.set_state(**state)
            pair = (self.prompt_embeds, self.negative_prompt_embeds)
            branches = self.guider.prepare_inputs({"encoder_hidden_states": pair})
            embeds = [branch.encoder_hidden_states for branch in branches]
        copies = len(embeds)
        # The noise of a step is sampled for the whole batch; the UNet, which needs the memory, sees it in parts.
        size = self.max_batch_size or len(x_t) * copies
        samples = torch.cat([x_t.to(self.unet.dtype)] * copies).split(size)
        prompts = self._parts("encoder_hidden_states", embeds, size)
        conditions = {name: self._parts(name, [value] * copies, size) for name, value in self.conditions.items()}
        outputs = [
            self.unet(
                sample,
                state["timestep"],
                encoder_hidden_states=prompt,
                cross_attention_kwargs=self.cross_attention_kwargs,
                **{name: values[part] for name, values in conditions.items()},
            ).sample.float()
            for part, (sample, prompt) in enumerate(zip(samples, prompts, strict=True))
        ]
        output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        prediction, *variance = output.split(x_t.shape[1], dim=1)
        model_variance = variance[0][: len(x_t)] if variance else None
        noise_preds = [self.run.noise_of_prediction(each, x_t, state["step"]) for each in prediction.chunk(copies)]
        if branches is None or self.guider is None:
            return noise_preds[0], model_variance
        for branch, noise_pred in zip(branches, noise_preds, strict=True):
            branch.noise_pred = noise_pred
        return self.guider(branches).pred, model_variance

    def _parts(self, name: str, tensors: list[torch.Tensor], size: int) -> tuple[torch.Tensor, ...]:
        """Tensors as one batch in the UNet's dtype, in parts of a size: the same parts for as long as the tensors are
        the same, and [`~Denoiser.forget_inputs`] was not called."""
        state = size, *map(id, tensors)
        kept = self._kept.get(name)
        if kept is None or kept[0] != state:
            parts = torch.cat(tensors).to(self.unet.dtype).split(size)
            # With the tensors, so that no other one takes over their ids.
            kept = self._kept[name] = state, tensors, parts
        return kept[2]

    def forget_inputs(self) -> None:
        """Look at prompts and conditions anew, whose values may have changed in place."""
        self._kept.clear()

    def _score_grad(self, x_t: torch.Tensor, state: dict[str, Any]) -> torch.Tensor | None:
        total = None
        for cond_fn in self.cond_fns:
            if hasattr(cond_fn, "set_state"):
                cond_fn.set_state(**state)
            gradient = cond_fn(x_t, state["timestep"].expand(len(x_t)))
            if gradient is None:
                continue
            if not isinstance(gradient, torch.Tensor) or gradient.shape != x_t.shape:
                given = list(gradient.shape) if isinstance(gradient, torch.Tensor) else repr(gradient)
                raise ValueError(
                    f"`cond_fn` must return a tensor of the shape of x_t, {list(x_t.shape)}, or None, got {given}."
                )
            total = gradient.to(x_t) if total is None else total + gradient.to(x_t)
        return total


def classifier_free_guidance(guidance_scale: float) -> ClassifierFreeGuidance:
    """Classifier-free guidance (GLIDE, equation 6): the guider of a call that names none."""
    guider = copy.copy(_CLASSIFIER_FREE_GUIDANCE)
    guider.guidance_scale = guidance_scale
    return guider


def _make_quietly() -> ClassifierFreeGuidance:
    """diffusers warns whenever a guider is made, that their interface may change; here nobody has chosen one."""
    logger = logging.getLogger("diffusers.guiders.guider_utils")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        return ClassifierFreeGuidance()
    finally:
        logger.disabled = was_disabled


_CLASSIFIER_FREE_GUIDANCE = _make_quietly()
