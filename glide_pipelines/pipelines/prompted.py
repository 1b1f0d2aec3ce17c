"""Prompts to the embeddings of each stage."""

from __future__ import annotations

import os
import pkgutil
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from transformers import BatchEncoding, GPT2Tokenizer

from ..arguments import check_tensor
from ..models import GLIDETextEncoder, tokenize_prompts
from ..sampling import STAGE_PREFIXES, Stage
from .call import Call
from .component_checks import check_components, check_index
from .input_checks import check_embeds, check_prompt


logger = logging.get_logger(__name__)

# For each world that a checkpoint may name as its `prompt_domain`, the function that tells what to say of a prompt
# outside it: `"module:name"`, imported when it is asked. A name in a file must not decide what is imported.
PROMPT_DOMAINS: dict[str, str] = {}


class PromptedPipeline(DiffusionPipeline):
    """A pipeline over one or two stages that are conditioned on text.

    Which stages there are follows from the components, see [`Stage.of`].
    """

    tokenizer: GPT2Tokenizer | None

    def register_modules(self, **kwargs: Any) -> None:
        super().register_modules(**kwargs)
        check_components(self)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """As any config of diffusers, checked before anything it names is loaded."""
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        check_index(config, cls._get_signature_keys(cls)[0], pretrained_model_name_or_path)
        return config

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages that the pipeline runs, in order, by name."""
        stages = {name: Stage.of(self, name) for name in STAGE_PREFIXES}
        return {name: stage for name, stage in stages.items() if stage is not None}

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
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
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
        # A pipeline may hold text encoders without their UNets, to encode prompts only.
        encoders = {name: getattr(self, Stage.component_names(name)[0], None) for name in STAGE_PREFIXES}
        has_base = encoders["base"] is not None or getattr(self, "unet", None) is not None
        if prompt is None and (prompt_embeds if has_base else super_res_prompt_embeds) is None:
            raise ValueError("Pass `prompt` or `prompt_embeds`: there is nothing to encode.")
        device = device or self._execution_device
        tokens = None
        if prompt is not None:
            self._warn_outside_domain(prompt)
            tokens = self.tokenize(prompt).to(device)

        def encode(name: str, tokens: BatchEncoding | None) -> torch.Tensor | None:
            text_encoder = encoders[name]
            if tokens is None or text_encoder is None:
                return None
            return self._graphed(text_encoder)(**tokens).last_hidden_state

        if prompt_embeds is None:
            prompt_embeds = encode("base", tokens)
        if not do_classifier_free_guidance or prompt_embeds is None:
            negative_prompt_embeds = None
        elif negative_prompt_embeds is None:
            self._check_can_encode_negative_prompt(encoders["base"])
            # One prompt for the whole batch is encoded once.
            encoded = encode("base", self.tokenize(negative_prompt or "").to(device))
            negative_prompt_embeds = None if encoded is None else encoded.expand(prompt_embeds.shape[0], -1, -1)
        if super_res_prompt_embeds is None:
            super_res_prompt_embeds = encode("super_res", tokens)

        def repeat(embeds: torch.Tensor | None) -> torch.Tensor | None:
            return None if embeds is None else embeds.to(device).repeat_interleave(num_images_per_prompt, dim=0)

        return repeat(prompt_embeds), repeat(negative_prompt_embeds), repeat(super_res_prompt_embeds)

    def _warn_outside_domain(self, prompt: str | list[str]) -> None:
        """A model of a small world that ships with the package says so when it is asked for something else."""
        domain = self.config.get("prompt_domain")
        if domain not in list(PROMPT_DOMAINS):  # none, or one of somebody else's package
            return
        if any(hasattr(model, "peft_config") for model in self.components.values()):  # a LoRA may know other words
            return
        prompt_warning = pkgutil.resolve_name(PROMPT_DOMAINS[domain])
        for text in [prompt] if isinstance(prompt, str) else prompt:
            warning = prompt_warning(text)
            if warning is not None:
                logger.warning(warning)

    def _check_prompts(self, call: Call) -> int:
        """Check everything about a call's prompts and their embeddings, and return the batch size."""
        prompt, negative_prompt, prompt_embeds = call.prompt, call.negative_prompt, call.prompt_embeds
        negative_prompt_embeds, super_res_prompt_embeds = call.negative_prompt_embeds, call.super_res_prompt_embeds
        given = {"base": prompt_embeds, "super_res": super_res_prompt_embeds}
        # The first stage decides the batch.
        first = next(iter(call.stages.values()))
        embeds, embeds_name = given[first.name], f"{first.prefix}prompt_embeds"
        if prompt is None and embeds is None:
            raise ValueError(f"Pass `prompt` or `{embeds_name}`: there is nothing to generate.")
        if prompt is not None and embeds is not None:
            raise ValueError(f"Pass either `prompt` or `{embeds_name}`, not both.")
        if negative_prompt is not None and negative_prompt_embeds is not None:
            raise ValueError("Pass either `negative_prompt` or `negative_prompt_embeds`, not both.")
        if prompt is not None:
            check_prompt("prompt", prompt)
            if first.text_encoder is None or self.tokenizer is None:
                raise ValueError(
                    f"`prompt` needs a tokenizer and `{first.prefix}text_encoder`; without them pass `{embeds_name}`."
                )
            batch_size = 1 if isinstance(prompt, str) else len(prompt)
        else:
            batch_size = len(check_embeds(embeds_name, embeds, first))
        if negative_prompt is not None:
            check_prompt("negative_prompt", negative_prompt)
            if isinstance(negative_prompt, list) and len(negative_prompt) != batch_size:
                raise ValueError(
                    f"`negative_prompt` must be one string or a list of {batch_size}, as the prompts are, "
                    f"got {len(negative_prompt)}."
                )
        if negative_prompt_embeds is not None:
            check_embeds("negative_prompt_embeds", negative_prompt_embeds, first, batch_size)
        elif call.is_guided:
            self._check_can_encode_negative_prompt(first.text_encoder)
        if call.is_guided:
            context = None if self.tokenizer is None else self.tokenizer.model_max_length
            own, negative = (
                context if each is None else each.shape[1] for each in (prompt_embeds, negative_prompt_embeds)
            )
            if own != negative:
                raise ValueError(
                    "`prompt_embeds` and `negative_prompt_embeds` must have the same number of tokens, and an encoded "
                    f"prompt has {context}: got {own} and {negative}."
                )
        super_res = call.stages.get("super_res")
        if super_res is None and super_res_prompt_embeds is not None:
            check_tensor("super_res_prompt_embeds", super_res_prompt_embeds, batch_size, "tokens", "width")
        if super_res is not None and super_res is not first:
            if super_res_prompt_embeds is not None:
                check_embeds("super_res_prompt_embeds", super_res_prompt_embeds, super_res, batch_size)
            elif prompt is None:
                raise ValueError("`prompt_embeds` without `prompt` needs `super_res_prompt_embeds` for the upsampler.")
            elif super_res.text_encoder is None:
                raise ValueError("The upsampler needs `super_res_text_encoder`, or `super_res_prompt_embeds`.")
        return batch_size

    def _check_can_encode_negative_prompt(self, text_encoder: GLIDETextEncoder | None) -> None:
        if text_encoder is None or self.tokenizer is None:
            raise ValueError("Guidance without a tokenizer and `text_encoder` needs `negative_prompt_embeds`.")
