"""Training examples: every random choice about an example is a function of the seed and the example's number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from ..images import images_to_tensor
from ..models import tokenize_prompts
from .low_resolution import LowResolution
from .randomness import random_stream, standard_normal
from .sources import Source
from .timesteps import TimestepWeighting


class SourceDataset(Dataset[dict[str, torch.Tensor]]):
    """Examples made of a source's images and captions, by the example's number in the run, without end.

    Args:
        source (`Callable[[int, np.random.Generator], tuple[Image.Image, str]]`): Images and captions by number.
        tokenizer (`PreTrainedTokenizerBase`): The text encoder's; its `model_max_length` is the text context `L`.
        seed (`int`): The seed of every random choice made here.
    """

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        self.source, self.tokenizer, self.seed = source, tokenizer, seed

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """What tells the source's images and captions from others, if it says so."""
        return getattr(self.source, "fingerprint", None)

    @property
    def bad_rows(self) -> dict[str, str]:
        """What the source skipped so far in this process, and why."""
        return getattr(self.source, "bad_rows", {})


class TextToImageDataset(SourceDataset):
    """The inputs of a training step for each example, by the example's number in the run, without end.

    Args:
        source (`Callable[[int, np.random.Generator], tuple[Image.Image, str]]`): Images and captions by number.
        tokenizer (`PreTrainedTokenizerBase`): The text encoder's; its `model_max_length` is the text context `L`.
        weighting ([`TimestepWeighting`]): Samples the timesteps.
        seed (`int`): The seed of every random choice made here.
        proportion_empty_prompts (`float`, defaults to 0.2): Share of captions that are replaced by the empty one, for
            classifier-free guidance. The default is the paper's.
        low_resolution ([`LowResolution`], *optional*): For upsamplers.
        noise_offset (`float`, defaults to 0): Standard deviation of a constant that is added to the noise of each
            channel. An upsampler then cannot read the mean colour off x_t, and learns to take it from the small image.
        make_mask (`Callable[[np.random.Generator, int, int], torch.Tensor]`, *optional*): For inpainting models: makes
            a mask `[1, H, W]`, 1 = repaint, of a given height and width, such as [`random_mask`].

    Raises:
        ValueError: if `proportion_empty_prompts` or `noise_offset` is out of its range.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: PreTrainedTokenizerBase,
        weighting: TimestepWeighting,
        seed: int,
        proportion_empty_prompts: float = 0.2,
        low_resolution: LowResolution | None = None,
        noise_offset: float = 0.0,
        make_mask: Callable[[np.random.Generator, int, int], torch.Tensor] | None = None,
    ) -> None:
        if not 0 <= proportion_empty_prompts <= 1:
            raise ValueError(f"`proportion_empty_prompts` must lie between 0 and 1, got {proportion_empty_prompts}.")
        if not noise_offset >= 0:
            raise ValueError(f"`noise_offset` must be at least 0, got {noise_offset}.")
        super().__init__(source, tokenizer, seed)
        self.weighting = weighting
        self.proportion_empty_prompts = proportion_empty_prompts
        self.low_resolution = low_resolution
        self.noise_offset = noise_offset
        self.make_mask = make_mask

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`pixel_values` and `noise` `[3, H, W]`, `timesteps` `[]`, `input_ids` and `attention_mask` `[L]`; for
        upsamplers `low_res` `[3, h, w]`, for inpainting models `image` `[3, H, W]` and `mask` `[1, H, W]`."""
        rng = random_stream(self.seed, index)
        image, caption = self.source(index, rng)
        if rng.random() < self.proportion_empty_prompts:
            caption = ""
        tokens = tokenize_prompts(self.tokenizer, [caption])
        example = {name: tokens[name][0] for name in ("input_ids", "attention_mask")}
        if self.low_resolution is not None:
            image, example["low_res"] = self.low_resolution(image, rng)
        example["pixel_values"] = images_to_tensor([image])[0]
        example["noise"] = standard_normal(rng, tuple(example["pixel_values"].shape))
        if self.noise_offset:
            example["noise"] += self.noise_offset * standard_normal(rng, (3, 1, 1))
        example["timesteps"] = torch.tensor(self.weighting.sample(index, self.seed))
        if self.make_mask is not None:
            _, height, width = example["pixel_values"].shape
            example["image"] = example["pixel_values"]
            example["mask"] = self.make_mask(rng, height, width)
        return example
