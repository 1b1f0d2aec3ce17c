"""Guidance by a noised CLIP: its gradient steers sampling towards a caption (arXiv 2112.10741, section 2.3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from ..arguments import check_number, check_tensor
from ..models import NoisedCLIPModel, tokenize_prompts
from ..models.tokenization import check_text


# What CLIP is to look for in one image, or in each: a caption, or captions with weights.
CLIPPrompt = str | dict[str, float] | list[str | dict[str, float]]


class CLIPGuidance:
    """A score gradient that any pipeline takes as `cond_fn`: that of CLIP's similarity between x_t and a caption.

    With classifier-free guidance or in its place. A pipeline works on a copy that is bound to the call.

    Args:
        clip_model ([`NoisedCLIPModel`]): Reads the images of the stage that is guided, under its noise schedule.
        clip_tokenizer (`PreTrainedTokenizerBase`, *optional*): CLIP's own; its `model_max_length` is its text context.
        prompt (`str`, `dict` or a list of them, *optional*): What CLIP looks for, where it is not the prompt of the
            call: a caption for all images, or a list with one for each prompt. In place of a caption a dict of
            captions and their weights may stand, see [`encode_clip_prompt`]; they must not sum to zero.
        scale (`float`, defaults to 3.0): Factor on the gradient; 0 switches it off. It may be changed between steps.
        start, end (`float`, default to 0.0 and 1.0): The part of the steps in which CLIP guides.
        prompt_embeds (`torch.Tensor` of shape `[B, D]`, *optional*): What CLIP looks for as vectors of any length, one
            for each prompt, in place of `prompt`.

    Raises:
        ValueError, TypeError: naming the argument, what was given and what is allowed.

    Examples:
        ```py
        >>> guidance = CLIPGuidance(clip_model, clip_tokenizer, "a red circle", scale=3.0)
        >>> pipe("a circle", cond_fn=guidance).images[0].save("circle.png")
        ```
    """

    # What the arguments are called in errors; those of CLIPGuidedPipeline have longer names.
    _names: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        clip_model: NoisedCLIPModel,
        clip_tokenizer: PreTrainedTokenizerBase | None = None,
        prompt: CLIPPrompt | None = None,
        scale: float = 3.0,
        start: float = 0.0,
        end: float = 1.0,
        prompt_embeds: torch.Tensor | None = None,
    ) -> None:
        check_number(self._name("scale"), scale)
        check_number(self._name("start"), start, 0, 1)
        check_number(self._name("end"), end, 0, 1)
        if start >= end:
            raise ValueError(f"`{self._name('start')}` must be below `{self._name('end')}`, got {start} and {end}.")
        if prompt is not None and prompt_embeds is not None:
            raise ValueError(f"Pass either `{self._name('prompt')}` or `{self._name('prompt_embeds')}`, not both.")
        if prompt is not None:
            self._check_prompt(prompt)
        if prompt_embeds is not None:
            self._check_embeds(prompt_embeds, clip_model.config.projection_dim)
        _check_tokenizer(clip_model, clip_tokenizer)
        self.clip_model = clip_model
        self.clip_tokenizer = clip_tokenizer
        self.prompt = prompt
        self.scale = float(scale)
        self.start = start
        self.end = end
        self.prompt_embeds = prompt_embeds
        self.num_images_per_prompt = 1
        self._max_batch_size: int | None = None
        self._text_features: torch.Tensor | None = None
        self._is_on = True

    def bind(
        self,
        prompt: str | list[str] | None,
        batch_size: int,
        num_images_per_prompt: int,
        size: tuple[int, int],
        num_train_timesteps: int,
        scale_factor: int = 1,
        max_batch_size: int | None = None,
    ) -> CLIPGuidance:
        """A copy for one call of a pipeline, checked against what the call generates; no network runs.

        Args:
            prompt (`str` or `list[str]`, *optional*): Of the call; what CLIP looks for if it has no prompt of its own.
            batch_size (`int`): `B`, the prompts of the call.
            num_images_per_prompt (`int`): `N`.
            size (`tuple[int, int]`): Height and width of the images of the guided stage.
            num_train_timesteps (`int`): Of its noise schedule.
            scale_factor (`int`, defaults to 1): How many times larger the returned images are.
            max_batch_size (`int`, *optional*): CLIP reads at most so many images at a time.

        Raises:
            ValueError: if CLIP has nothing to look for, or reads other images.
        """
        vision = self.clip_model.config.vision_config
        if vision.num_train_timesteps != num_train_timesteps:
            raise ValueError(
                f"`clip_model` was trained with {vision.num_train_timesteps} timesteps, but `scheduler` has "
                f"{num_train_timesteps}: they must share a noise schedule."
            )
        if size != (vision.image_size, vision.image_size):
            raise ValueError(
                f"`clip_model` reads images of {vision.image_size} x {vision.image_size} pixels, but the guided stage "
                f"of this call has {size[0]} x {size[1]}: choose `height` and `width` of "
                f"{vision.image_size * scale_factor}."
            )
        bound = copy.copy(self)
        bound.num_images_per_prompt = num_images_per_prompt
        bound._max_batch_size = max_batch_size
        if bound.prompt_embeds is None:
            own = prompt if bound.prompt is None else bound.prompt
            if own is None:
                raise ValueError(
                    f"Pass `prompt`, `{self._name('prompt')}` or `{self._name('prompt_embeds')}`: there is nothing to "
                    "guide to."
                )
            if self.clip_tokenizer is None:
                raise ValueError(
                    f"A prompt for CLIP needs `clip_tokenizer`; without it pass `{self._name('prompt_embeds')}`."
                )
            entries = [own] * batch_size if isinstance(own, str | dict) else list(own)
            self._check_batch("prompt", len(entries), batch_size)
            bound.prompt = entries
        else:
            self._check_batch("prompt_embeds", len(bound.prompt_embeds), batch_size)
        return bound

    def set_state(self, step: int, num_inference_steps: int, timestep: torch.Tensor) -> None:
        """Tell where in a run the next call is; CLIP guides in steps that lie wholly between `start` and `end`."""
        self._is_on = self.start <= step / num_inference_steps and (step + 1) / num_inference_steps <= self.end

    def __call__(self, x_t: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor | None:
        """The gradient for x_t `[B, 3, S, S]` at `timestep` `[B]`; None where CLIP does not guide."""
        if not self._is_on or self.scale == 0:
            return None
        if self._text_features is None:
            self._text_features = self.text_features()
        batch = (x_t, timestep, self._text_features)
        parts = zip(*(tensor.split(self._max_batch_size or len(x_t)) for tensor in batch), strict=True)
        return self.scale * torch.cat([clip_gradient(self.clip_model, *part) for part in parts])

    @torch.no_grad()
    def text_features(self) -> torch.Tensor:
        """What CLIP looks for: for each image one vector of unit length, `[B * N, D]`."""
        embeds = self.prompt_embeds
        if embeds is None:
            if self.prompt is None or self.clip_tokenizer is None:
                raise ValueError(f"Pass `{self._name('prompt')}` or `{self._name('prompt_embeds')}`.")
            embeds = encode_clip_prompt(self.clip_model, self.clip_tokenizer, self.prompt)
        embeds = F.normalize(embeds.to(self.clip_model.device, torch.float32), dim=-1)
        return embeds.repeat_interleave(self.num_images_per_prompt, dim=0)

    def _name(self, name: str) -> str:
        return self._names.get(name, name)

    def _check_batch(self, name: str, given: int, batch_size: int) -> None:
        if given != batch_size:
            name = self._name(name)
            raise ValueError(f"`{name}` must have a batch of {batch_size}, as the prompts have, got {given}.")

    def _check_prompt(self, prompt: Any) -> None:
        name = self._name("prompt")
        if isinstance(prompt, list) and not prompt:
            raise ValueError(f"`{name}` must not be an empty list.")
        for entry in prompt if isinstance(prompt, list) else [prompt]:
            if isinstance(entry, str):
                check_text(name, entry)
                continue
            if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry):
                raise TypeError(
                    f"`{name}` must be a string, a dict of strings and their weights, or a list of these, "
                    f"got {entry!r} ({type(entry).__name__})."
                )
            for text, weight in entry.items():
                check_text(name, text)
                check_number(f"{name}[{text!r}]", weight)
            if math.isclose(sum(entry.values()), 0, abs_tol=1e-6):
                raise ValueError(f"The weights in `{name}` must not sum to zero, got {entry}.")

    def _check_embeds(self, embeds: Any, width: int) -> None:
        name = self._name("prompt_embeds")
        check_tensor(name, embeds, "batch", width)
        if not embeds.isfinite().all() or not embeds.any(dim=1).all():
            raise ValueError(f"`{name}` must be finite and not zero: the direction of each vector is what counts.")


def clip_gradient(
    clip_model: NoisedCLIPModel, x_t: torch.Tensor, timestep: torch.Tensor, text_features: torch.Tensor
) -> torch.Tensor:
    """The gradient of f(x_t) . g(c) with respect to x_t (GLIDE, section 2.3, without scale and variance).

    Args:
        clip_model ([`NoisedCLIPModel`]): f and g.
        x_t (`torch.Tensor` of shape `[B, 3, S, S]`): The noised images.
        timestep (`torch.Tensor` of shape `[B]`): Timestep of each.
        text_features (`torch.Tensor` of shape `[B, D]`): g(c), of any length.

    Returns:
        `torch.Tensor` of shape `[B, 3, S, S]`, in the dtype and on the device of `x_t`.
    """
    # Copies, since what was made in inference mode takes part in no gradient.
    with torch.inference_mode(False), torch.enable_grad():
        sample = x_t.detach().clone().to(clip_model.device).requires_grad_()
        similarity = clip_model.similarity(sample, timestep.clone().to(sample.device), text_features.clone())
        (gradient,) = torch.autograd.grad(similarity.sum(), sample)
    return gradient.to(x_t)


@torch.no_grad()
def encode_clip_prompt(
    clip_model: NoisedCLIPModel, clip_tokenizer: PreTrainedTokenizerBase, prompt: CLIPPrompt
) -> torch.Tensor:
    """What CLIP's gradient is to lead to, before its length is set to 1.

    Args:
        clip_model ([`NoisedCLIPModel`]): Encodes the captions.
        clip_tokenizer (`PreTrainedTokenizerBase`): CLIP's own.
        prompt (`str`, `dict` or a list of them): `B` captions. A dict holds several with their weights, such as
            `{"a red circle": 1.0, "a blue square": -0.5}`: the vectors of its captions, each of unit length, are added
            up by weight; a negative weight leads away from a caption.

    Returns:
        `torch.Tensor` of shape `[B, D]`.
    """
    entries = prompt if isinstance(prompt, list) else [prompt]
    weighted = [{entry: 1.0} if isinstance(entry, str) else entry for entry in entries]
    texts = list(dict.fromkeys(text for entry in weighted for text in entry))
    tokens = tokenize_prompts(clip_tokenizer, texts, "CLIP prompt").to(clip_model.device)
    features = clip_model.get_text_features(tokens.input_ids, tokens.attention_mask).float()
    weights = features.new_tensor([[entry.get(text, 0.0) for text in texts] for entry in weighted])
    return weights @ F.normalize(features, dim=-1)


def _check_tokenizer(clip_model: NoisedCLIPModel, clip_tokenizer: PreTrainedTokenizerBase | None) -> None:
    """The CLIP must read what its tokenizer writes."""
    if clip_tokenizer is None:
        return
    text = clip_model.config.text_config
    for what, given, allowed in (
        ("entries", len(clip_tokenizer), text.vocab_size),
        ("tokens of context", clip_tokenizer.model_max_length, text.max_position_embeddings),
    ):
        if given > allowed:
            raise ValueError(f"`clip_tokenizer` has {given} {what}; `clip_model` reads {allowed}.")
