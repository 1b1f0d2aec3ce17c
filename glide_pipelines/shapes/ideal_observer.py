"""How much of a caption noise leaves to be seen: Bayes' rule, for an observer who knows how the world renders."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from functools import cache

import torch
import torch.nn.functional as F

from ..images import images_to_tensor, scale_pixels
from .render import render
from .scene import BACKGROUNDS, BORDER, SIZES, Object, Scene


Kind = tuple[str, str, str]  # shape, colour and size of an object

_SIDE = 16  # places along each side of an image: about as wide as the gap that the world leaves between objects
_OFFSETS = (-0.25, 0.25)  # of an object's middle from that of a pixel, in pixels: objects are looked for at half pixels
# Of the noise, in an image of 32 pixels. With less, the weights of places would leave the range of float64.
_LEAST_VARIANCE = 0.5


@torch.no_grad()
def log_likelihoods(x_t: torch.Tensor, alpha_bar: float, scenes: Sequence[Scene]) -> torch.Tensor:
    """How likely each noised image is, given what a full caption says of a scene ([`describe_fully`]): shape, colour
    and size of every object and the background, but not where the objects are. With the logarithm of the prior added,
    the largest is the best guess of the caption that can be made.

    `x_t / sqrt(alpha_bar)` is the image under noise of variance `(1 - alpha_bar) / alpha_bar` (arXiv 2006.11239,
    equation 4). Objects do not touch, so the log-density of a scene is that of its empty background plus a gain for
    each object: the correlation with its image less half that image's energy, over the variance. The density is
    averaged over where the objects may be.

    Approximations: all places are taken for equally likely; whether objects keep apart, and from the border, is told to
    a sixteenth of the image; of each size only the middle width is looked for; noise of a variance below
    `0.5 * (S / 32) ** 2`, which hides next to nothing, is taken for that much.

    Args:
        x_t (`torch.Tensor` of shape `[N, 3, S, S]`): Noised images; `S` is a multiple of 16.
        alpha_bar (`float`): Share of the image's variance that is left, above 0 and up to 1.
        scenes (`Sequence[Scene]`): M scenes, of which only what their full captions say is used.

    Returns:
        `torch.Tensor` of shape `[N, M]`: log-likelihoods in float64 on the CPU, up to a constant.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if not 0 < alpha_bar <= 1:
        raise ValueError(f"`alpha_bar` must lie above 0 and up to 1, got {alpha_bar}.")
    if x_t.ndim != 4 or x_t.shape[1] != 3 or x_t.shape[2] != x_t.shape[3] or x_t.shape[3] % _SIDE:
        raise ValueError(f"`x_t` must be [N, 3, S, S] with S a multiple of {_SIDE}, got {list(x_t.shape)}.")
    variance = max((1 - alpha_bar) / alpha_bar, _LEAST_VARIANCE * (x_t.shape[3] / 32) ** 2)
    noised = x_t.float().cpu() / math.sqrt(alpha_bar)
    scores = torch.empty(len(x_t), len(scenes), dtype=torch.float64)
    for background, colour in BACKGROUNDS.items():
        kinds = {
            column: [(item.shape, item.colour, item.size) for item in scene.objects]
            for column, scene in enumerate(scenes)
            if scene.background == background
        }
        rest = noised - scale_pixels(torch.tensor(colour)).view(3, 1, 1)
        empty = -rest.double().square().sum(dim=(1, 2, 3)) / (2 * variance)
        gains = _gains(rest, variance, background, set().union(*kinds.values()))
        for column, objects in kinds.items():
            scores[:, column] = empty + _log_mean([gains[kind] for kind in objects], [kind[2] for kind in objects])
    return scores


def _gains(rest: torch.Tensor, variance: float, background: str, kinds: Collection[Kind]) -> dict[Kind, torch.Tensor]:
    """What an object at each of its P places adds to the log-likelihood of `rest`, the image less its background:
    `[N, P]` for each kind."""
    side = rest.shape[3]
    positions = [(side // 2 + 0.5 + offset) / side for offset in _OFFSETS]
    gains = {}
    for kind in kinds:
        shape, colour, size = kind
        reach = math.ceil(SIZES[size][1] * side / 2 + 1)
        window = slice(side // 2 - reach, side // 2 + reach + 1)
        alone = [Scene((Object(shape, colour, size, x, y),), background) for y in positions for x in positions]
        images = images_to_tensor([render(scene, side) for scene in alone])
        templates = (images - images[:, :, :1, :1])[:, :, window, window]
        # (|rest|^2 - |rest - template|^2) / 2, for each position of the template's middle
        gain = F.conv2d(rest, templates, padding=reach) - templates.square().sum(dim=(1, 2, 3)).view(-1, 1, 1) / 2
        in_places = F.pixel_unshuffle(gain.double() / variance, side // _SIDE)  # [N, positions in it, places]
        mean = in_places.logsumexp(dim=1) - math.log(in_places.shape[1])
        gains[kind] = mean.flatten(1)[:, _allowed(size)]
    return gains


def _log_mean(gains: list[torch.Tensor], sizes: list[str]) -> torch.Tensor:
    """Of one to three objects: the logarithm of the mean of exp(sum of gains) over all ways to place them, `[N]`."""
    largest = [gain.amax(dim=1, keepdim=True) for gain in gains]
    weights = [(gain - most).exp() for gain, most in zip(gains, largest, strict=True)]
    total = _sum_apart(weights, sizes).log() + torch.cat(largest, dim=1).sum(dim=1)
    return total - math.log(_num_ways(tuple(sizes)))


def _sum_apart(weights: list[torch.Tensor], sizes: Sequence[str]) -> torch.Tensor:
    """The sum, over all ways to place objects that do not overlap, of the product of their weights `[N, P]`: `[N]`."""
    first, *others = weights
    if not others:
        return first.sum(dim=1)
    apart = [_apart(sizes[0], size).to(first.dtype) for size in sizes[1:]]
    if len(others) == 1:
        return ((first @ apart[0]) * others[0]).sum(dim=1)
    from_both = (apart[0][:, :, None] * apart[1][:, None]).flatten(1)  # [P, P * P]
    around = (first @ from_both).unflatten(1, (apart[0].shape[1], apart[1].shape[1])) * _apart(*sizes[1:])
    return torch.einsum("nj,njk,nk->n", others[0], around, others[1])


@cache
def _num_ways(sizes: tuple[str, ...]) -> float:
    """To place objects of these sizes."""
    return _sum_apart([torch.ones(1, int(_allowed(size).sum()), dtype=torch.float64) for size in sizes], sizes).item()


@cache
def _apart(size: str, other: str) -> torch.Tensor:
    """Which places of two objects leave room for both: `[P, P]`."""
    middles, others = (_middles()[_allowed(name)] for name in (size, other))
    # Of the least width, and without the gap that the world leaves: it may lie within the two places.
    return ((middles[:, None] - others).abs() >= (SIZES[size][0] + SIZES[other][0]) / 2).any(dim=2)


@cache
def _allowed(size: str) -> torch.Tensor:
    """Which places have a part where an object keeps its distance from the border: `[_SIDE ** 2]`."""
    width = sum(SIZES[size]) / 2
    return ((_middles() - 0.5).abs() <= 0.5 - BORDER - width / 2 + 0.5 / _SIDE).all(dim=1)


def _middles() -> torch.Tensor:
    """Of all places, row by row: `[_SIDE ** 2, 2]`, in units of the image."""
    line = (torch.arange(_SIDE) + 0.5) / _SIDE
    return torch.cartesian_prod(line, line)
