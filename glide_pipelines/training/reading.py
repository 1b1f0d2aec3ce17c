"""Teaches a text encoder of the shapes world to read before it meets pictures.

A diffusion loss teaches binding (which colour belongs to which shape, what is above what) late: the words alone, in any
order, explain most of a picture, and the rest makes little difference to the error. From captions alone binding is
learned in minutes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ..models import GLIDETextEncoder, tokenize_prompts
from ..shapes import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Caption, ShapesWorld
from .learning_rate import LearningRate


UNSAID = None
# What each word of an object is to tell: of the object, of its part in the relation, and of the whole scene.
READINGS: dict[str, tuple[str | int | None, ...]] = {
    "colour": (UNSAID, *COLOURS),
    "shape": (UNSAID, *SHAPES),
    "size": (UNSAID, *SIZES),
    "place": (UNSAID, *PLACES),
    "relation": (UNSAID, *RELATIONS),
    "background": (UNSAID, *BACKGROUNDS),
    "count": (1, 2, 3),
}
# Deviation of the noise that the outputs are read through, in units of their root mean square. What is told must be
# told loudly, or a UNet takes long to hear it.
READING_NOISE = 1.0
# Weight of what the outputs at empty positions say. There are more of them than words, and a UNet that can will read
# the sum of all words off them rather than ask each word: a bag of words, which it does not leave again.
PADDING_WEIGHT = 3.0
INVERSE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_ADJECTIVES = {*SIZES, *COLOURS}
_NOUNS = {*SHAPES, "shape"}


def readings(caption: Caption, words: list[str]) -> list[tuple[int, list[int]]]:
    """What the words of a caption are to tell.

    Args:
        caption ([`Caption`]): Drawn by the shapes world.
        words (`list[str]`): The words of its text, in order.

    Returns:
        `list[tuple[int, list[int]]]`: for each size, colour and shape that is named, the word's position and the
        numbers of the values in [`READINGS`]: `"red"` of `"a red circle above a blue square"` tells of a circle that
        is above something.
    """
    found, phrase, mentions = [], [], iter(enumerate(caption.objects))
    for position, word in enumerate(words):
        if word not in _ADJECTIVES | _NOUNS:
            continue
        phrase.append(position)
        if word in _NOUNS:  # which ends what is said of an object's looks
            number, mention = next(mentions)
            told = {
                "colour": mention.colour,
                "shape": mention.shape,
                "size": mention.size,
                "place": mention.place,
                "relation": (caption.relation, INVERSE.get(caption.relation), UNSAID)[number],
                "background": caption.background,
                "count": len(caption.objects),
            }
            numbers = [values.index(told[name]) for name, values in READINGS.items()]
            found += [(place, numbers) for place in phrase]
            phrase = []
    return found


def train_reading(
    text_encoder: GLIDETextEncoder,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    batch_size: int = 96,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[int, float, dict[str, float]], None] = lambda step, loss, shares: None,
) -> None:
    """Trains a text encoder so that each word of an object tells, through noise and one linear layer, all that the
    caption says of the object, and so that empty positions tell nothing. The layers are thrown away afterwards.

    Args:
        text_encoder ([`GLIDETextEncoder`]): In float32; changed in place.
        tokenizer (`PreTrainedTokenizerBase`): That of the shapes world, to which each word is one token.
        steps (`int`): Of AdamW, each on captions that were not seen before.
        batch_size (`int`, defaults to 96): Captions per step.
        learning_rate (`float`, defaults to 1e-3): At first; it decays to 0 along a cosine.
        seed (`int`, defaults to 0): Of captions and linear layers.
        report (`Callable[[int, float, dict[str, float]], None]`): Called after each step with its number, from 1, its
            loss, and the share of each of [`READINGS`] that was read right.

    Raises:
        ValueError: if the tokenizer splits a word of the shapes world.
    """
    spelled = {word: tokenizer.encode(f" {word}") for word in (*COLOURS, *SHAPES, *SIZES, "shape")}
    for word, ids in spelled.items():
        if len(ids) != 1:
            raise ValueError(f"`tokenizer` must have a token for each word of the shapes world, not {word!r}: {ids}.")
    words = {ids[0]: word for word, ids in spelled.items()}
    width = text_encoder.config.hidden_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        heads = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in READINGS.items()})
    parameters = [*text_encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01)
    rate = LearningRate(learning_rate, steps, warmup_steps=min(50, steps // 10), decay="cosine")
    world, generator = ShapesWorld(seed), torch.Generator().manual_seed(seed)
    text_encoder.train()
    for step in range(steps):
        captions = [world.caption(step * batch_size + index) for index in range(batch_size)]
        tokens = tokenize_prompts(tokenizer, [str(caption) for caption in captions])
        where, told = [], []
        for row, (caption, ids) in enumerate(zip(captions, tokens.input_ids.tolist(), strict=True)):
            for position, numbers in readings(caption, [words.get(token, "") for token in ids]):
                where.append((row, position))
                told.append(numbers)
        rows, positions = torch.tensor(where).T
        labels = torch.tensor(told).T

        hidden_states = text_encoder(**tokens).last_hidden_state
        told_by = hidden_states[rows, positions]
        noise = torch.randn(told_by.shape, generator=generator)
        told_by = told_by + READING_NOISE * told_by.detach().square().mean().sqrt() * noise
        logits = {name: head(told_by) for name, head in heads.items()}
        loss = sum(F.cross_entropy(logits[name], label) for name, label in zip(READINGS, labels, strict=True))
        total = loss + PADDING_WEIGHT * _caption_dependence(hidden_states, tokens.attention_mask)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right = {name: (logits[name].argmax(1) == label).float() for name, label in zip(READINGS, labels, strict=True)}
        report(step + 1, loss.item(), {name: share.mean().item() for name, share in right.items()})
    text_encoder.eval()


def _caption_dependence(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """How much the outputs at empty positions differ between captions, relative to the mean square of all outputs."""
    empty = ~attention_mask.bool()[..., None]
    count = empty.sum(0).clamp(min=1)
    mean = (hidden_states * empty).sum(0) / count
    variance = ((hidden_states - mean).square() * empty).sum() / empty.sum().clamp(min=1) / hidden_states.shape[-1]
    return variance / hidden_states.square().mean().detach()
