"""How much of a caption noise leaves to be seen: Bayes' rule, for someone who knows how the world draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..pixels import pictures_to_tensor
from .render import render
from .scene import BACKGROUNDS, BORDER, SIZES, Object, Scene


_BLOCK = 2  # pixels: the side of a place, in which an object is drawn at every half pixel
_OFFSETS = (-0.25, 0.25)  # of an object's middle from that of a pixel, in pixels
_LEAST_VARIANCE = 0.5  # of the noise: with less the weights of places would leave the range of float64


@torch.no_grad()
def log_likelihoods(x_t: torch.Tensor, alpha_bar: float, scenes: Sequence[Scene]) -> torch.Tensor:
    """
    How likely each noised picture is, given what a full caption says of a scene ([`describe_fully`]): shape, colour and
    size of every object and the background, but not where the objects are. If all captions are equally likely
    beforehand, the one of the largest likelihood is the best guess; no network is right more often.

    `x_t / sqrt(alpha_bar)` is the picture under noise of variance `(1 - alpha_bar) / alpha_bar`. Objects do not touch,
    so its log-density is that of the empty background plus a gain for each object: how well its drawing correlates. The
    density is averaged over where the objects may be. What is approximate: all allowed places are taken for equally
    likely, whether objects keep apart is told to a pixel, and of each size only the middle width is looked for.

    Args:
        x_t (`torch.Tensor` of shape `[N, 3, S, S]`): Noised pictures; `S` is even.
        alpha_bar (`float`): Share of the picture's variance that is left, above 0 and up to 1.
        scenes (`Sequence[Scene]`): M scenes, of which only what their full captions say is used.

    Returns:
        `torch.Tensor` of shape `[N, M]`: log-likelihoods in float64, up to a constant.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if not 0 < alpha_bar <= 1:
        raise ValueError(f"`alpha_bar` must lie above 0 and up to 1, got {alpha_bar}.")
    if x_t.shape[-1] % _BLOCK:
        raise ValueError(f"`x_t` must have an even width, got {x_t.shape[-1]}.")
    variance = max((1 - alpha_bar) / alpha_bar, _LEAST_VARIANCE)
    scores = torch.empty(len(x_t), len(scenes), dtype=torch.float64)
    for background, colour in BACKGROUNDS.items():
        rest = x_t / math.sqrt(alpha_bar) - (torch.tensor(colour).view(3, 1, 1) / 127.5 - 1)
        empty = -rest.double().square().sum(dim=(1, 2, 3)) / (2 * variance)
        gains: dict[tuple[str, str, str], torch.Tensor] = {}
        for column, scene in enumerate(scenes):
            if scene.background != background:
                continue
            kinds = [(item.shape, item.colour, item.size) for item in scene.objects]
            for kind in kinds:
                if kind not in gains:
                    gains[kind] = _gains(rest, variance, *kind, background)
            scores[:, column] = empty + _log_mean(
                [gains[kind] for kind in kinds], [kind[2] for kind in kinds], x_t.shape[-1] // _BLOCK
            )
    return scores


def _gains(rest: torch.Tensor, variance: float, shape: str, colour: str, size: str, background: str) -> torch.Tensor:
    """What an object at each place adds to the log-likelihood of `rest`, the picture less its background: `[N, P]`."""
    side = rest.shape[-1]
    middle, reach = side // 2, math.ceil(SIZES[size][1] * side / 2 + 1)
    around = slice(middle - reach, middle + reach + 1)
    positions = [(middle + 0.5 + offset) / side for offset in _OFFSETS]
    alone = [Scene((Object(shape, colour, size, x, y),), background) for y in positions for x in positions]
    pictures = pictures_to_tensor([render(scene, side) for scene in alone])
    drawings = (pictures - pictures[:, :, :1, :1])[:, :, around, around]
    # (|rest|^2 - |rest - drawing|^2) / 2
    gains = F.conv2d(rest, drawings, padding=reach) - drawings.square().sum(dim=(1, 2, 3)).view(-1, 1, 1) / 2
    blocks = F.pixel_unshuffle(gains.double() / variance, _BLOCK)  # dimension 1: the positions in a block
    means = blocks.logsumexp(dim=1) - math.log(blocks.shape[1])
    return means.flatten(1)[:, _allowed(size, side // _BLOCK)]


def _log_mean(gains: list[torch.Tensor], sizes: list[str], blocks: int) -> torch.Tensor:
    """Of one to three objects: the logarithm of the mean of exp(sum of gains) over all ways to place them, `[N]`."""
    middles = [_middles(blocks)[_allowed(size, blocks)] for size in sizes]
    largest = [gain.amax(dim=1, keepdim=True) for gain in gains]
    weights = [(gain - most).exp() for gain, most in zip(gains, largest, strict=True)]
    ways = _sum_apart([torch.ones_like(weight[:1]) for weight in weights], sizes, middles)
    return _sum_apart(weights, sizes, middles).log() - ways.log() + torch.cat(largest, dim=1).sum(dim=1)


def _sum_apart(weights: list[torch.Tensor], sizes: list[str], middles: list[torch.Tensor]) -> torch.Tensor:
    """The sum, over all ways to place objects that do not overlap, of the product of their weights `[N, P]`: `[N]`."""
    (first, *others), (size, *other_sizes), (here, *there) = weights, sizes, middles
    if not others:
        return first.sum(dim=1)
    # Of the least width, and without the gap that the world leaves: it is as wide as a place, and may lie in the two.
    apart = [
        ((here[:, None] - place).abs() >= (SIZES[size][0] + SIZES[other][0]) / 2).any(dim=2).to(first.dtype)
        for other, place in zip(other_sizes, there, strict=True)
    ]
    if len(others) == 1:
        return ((first @ apart[0]) * others[0]).sum(dim=1)
    total = torch.zeros_like(first[:, 0])
    for index in range(first.shape[1]):
        left = [other * free[index] for other, free in zip(others, apart, strict=True)]
        total += first[:, index] * _sum_apart(left, other_sizes, there)
    return total


def _middles(blocks: int) -> torch.Tensor:
    """Of all places, row by row: `[blocks ** 2, 2]`, in units of the picture."""
    line = (torch.arange(blocks) + 0.5) / blocks
    return torch.cartesian_prod(line, line)


def _allowed(size: str, blocks: int) -> torch.Tensor:
    """In which of the places, at least in a part of it, an object keeps its distance from the border."""
    return ((_middles(blocks) - 0.5).abs() <= 0.5 - BORDER - _width(size) / 2 + 0.5 / blocks).all(dim=1)


def _width(size: str) -> float:
    return sum(SIZES[size]) / 2
