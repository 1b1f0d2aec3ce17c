"""Pretraining of the shapes world's text encoder on captions alone.

With a diffusion loss a text encoder learns binding (which colour belongs to which shape, what is above what) late: the
words alone, in any order, explain most of an image, and the rest makes little difference to the error. From captions
alone binding is learned in minutes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ..models import GLIDETextEncoder, tokenize_prompts
from ..training import LearningRate
from .captions import Caption
from .dataset import ShapesWorld
from .scene import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES


UNSTATED = None
# The attributes that a linear probe must read off each word of an object: of the object, of its part in the relation,
# and of the whole scene.
ATTRIBUTES: dict[str, tuple[str | int | None, ...]] = {
    "colour": (UNSTATED, *COLOURS),
    "shape": (UNSTATED, *SHAPES),
    "size": (UNSTATED, *SIZES),
    "place": (UNSTATED, *PLACES),
    "relation": (UNSTATED, *RELATIONS),
    "background": (UNSTATED, *BACKGROUNDS),
    "count": (1, 2, 3),
}
# Standard deviation of the noise on the outputs, in units of their root mean square. Without it an attribute may be
# encoded weakly, and a UNet learns weakly encoded information slowly.
PROBE_NOISE = 1.0
# Weight of the loss on the outputs at empty positions. There are more of these than words, and a UNet that can reads
# the sum of all words off them rather than attend to each word: a bag of words, in which it stays.
PADDING_WEIGHT = 3.0
INVERSE: dict[str | None, str] = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
_ADJECTIVES = {*SIZES, *COLOURS}
_NOUNS = {*SHAPES, "shape"}


def probe_targets(caption: Caption, words: list[str]) -> list[tuple[int, list[int]]]:
    """The attributes that must be read off the words of a caption.

    Args:
        caption ([`Caption`]): A caption of the shapes world.
        words (`list[str]`): The words of its text, in order.

    Returns:
        `list[tuple[int, list[int]]]`: for each word that names a size, a colour or a shape of an object, its position
        and the index of each attribute's value in [`ATTRIBUTES`]: in `"a red circle above a blue square"`, those of
        `"red"` are the attributes of a circle that is above something.
    """
    targets: list[tuple[int, list[int]]] = []
    phrase: list[int] = []
    mentions = iter(enumerate(caption.objects))
    for position, word in enumerate(words):
        if word not in _ADJECTIVES | _NOUNS:
            continue
        phrase.append(position)
        if word in _NOUNS:  # which ends the phrase
            number, mention = next(mentions)
            values = {
                "colour": mention.colour,
                "shape": mention.shape,
                "size": mention.size,
                "place": mention.place,
                "relation": (caption.relation, INVERSE.get(caption.relation), UNSTATED)[number],
                "background": caption.background,
                "count": len(caption.objects),
            }
            indices = [allowed.index(values[name]) for name, allowed in ATTRIBUTES.items()]
            targets += [(place, indices) for place in phrase]
            phrase = []
    return targets


def pretrain_text_encoder(
    text_encoder: GLIDETextEncoder,
    tokenizer: PreTrainedTokenizerBase,
    steps: int,
    batch_size: int = 96,
    learning_rate: float = 1e-3,
    seed: int = 0,
    report: Callable[[int, float, dict[str, float]], None] = lambda step, loss, accuracy: None,
) -> None:
    """Train a text encoder so that a linear probe reads all that a caption states of an object off each word of it,
    through noise, and so that its outputs at empty positions are the same for all captions. The probes are thrown away
    afterwards.

    Args:
        text_encoder ([`GLIDETextEncoder`]): In float32; changed in place.
        tokenizer (`PreTrainedTokenizerBase`): That of the shapes world, which has a token for each word.
        steps (`int`): Steps of AdamW, each on captions that were not seen before.
        batch_size (`int`, defaults to 96): Captions per step.
        learning_rate (`float`, defaults to 1e-3): At first; it decays to 0 along a cosine.
        seed (`int`, defaults to 0): The seed of captions, probes and noise.
        report (`Callable[[int, float, dict[str, float]], None]`): Called after each step with its number, from 1, its
            loss, and the accuracy of each of [`ATTRIBUTES`].

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
        probes = nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in ATTRIBUTES.items()})
    parameters = [*text_encoder.parameters(), *probes.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01)
    rate = LearningRate(learning_rate, steps, warmup_steps=min(50, steps // 10), decay="cosine")
    world, generator = ShapesWorld(seed), torch.Generator().manual_seed(seed)
    text_encoder.train()
    for step in range(steps):
        captions = [world.caption(step * batch_size + index) for index in range(batch_size)]
        tokens = tokenize_prompts(tokenizer, [str(caption) for caption in captions])
        where, targets = [], []
        for row, (caption, ids) in enumerate(zip(captions, tokens.input_ids.tolist(), strict=True)):
            for position, indices in probe_targets(caption, [words.get(token, "") for token in ids]):
                where.append((row, position))
                targets.append(indices)
        rows, positions = torch.tensor(where).T
        labels = dict(zip(ATTRIBUTES, torch.tensor(targets).T, strict=True))

        hidden_states = text_encoder(**tokens).last_hidden_state
        outputs = hidden_states[rows, positions]
        noise = torch.randn(outputs.shape, generator=generator)
        outputs = outputs + PROBE_NOISE * outputs.detach().square().mean().sqrt() * noise
        logits = {name: probe(outputs) for name, probe in probes.items()}
        loss = torch.stack([F.cross_entropy(logits[name], label) for name, label in labels.items()]).sum()
        total = loss + PADDING_WEIGHT * _caption_dependence(hidden_states, tokens.attention_mask)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        accuracy = {name: (logits[name].argmax(1) == label).float().mean().item() for name, label in labels.items()}
        report(step + 1, loss.item(), accuracy)
    text_encoder.eval()


def _caption_dependence(hidden_states: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Variance of the outputs at empty positions over captions, relative to the mean square of all outputs."""
    empty = ~attention_mask.bool()[..., None]
    count = empty.sum(0).clamp(min=1)
    mean = (hidden_states * empty).sum(0) / count
    variance = ((hidden_states - mean).square() * empty).sum() / empty.sum().clamp(min=1) / hidden_states.shape[-1]
    return variance / hidden_states.square().mean().detach()
