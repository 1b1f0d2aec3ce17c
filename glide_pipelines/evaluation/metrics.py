"""The numbers of the paper's figure 6, from features of images. All are computed in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from torch import nn


def frechet_distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    """The FID (arXiv 1706.08500, equation 6): the Fréchet distance of two Gaussians with the moments of the features.

    It is biased upwards where images are few: compare figures of equal numbers of images only.

    Args:
        real (`torch.Tensor` of shape `[N, D]`): Features of real images, two or more.
        generated (`torch.Tensor` of shape `[M, D]`): Features of generated images, two or more.

    Returns:
        `float`: 0 or more; lower is better.

    Raises:
        ValueError: if the shapes do not fit, there are too few images, or a feature is not finite.
        ImportError: if torchmetrics is not installed.
    """
    real, generated = _checked(real, generated, at_least=2)
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except ImportError as error:
        raise ImportError('The FID needs the extra `eval` (in a clone: `pip install ".[eval]"`).') from error

    identity = _Identity(real.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps its state in memory
        # Every process has all features already: added up over the processes, they would count twice.
        metric = FrechetInceptionDistance(identity, sync_on_compute=False)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    return max(0.0, metric.compute().item())


def inception_score(log_probabilities: torch.Tensor) -> float:
    """The Inception score (arXiv 1606.03498, section 4), over all images at once: exp E[KL(p(y|x) || p(y))].

    Args:
        log_probabilities (`torch.Tensor` of shape `[N, C]`): log p(y|x) of a classifier.

    Returns:
        `float`: 1 (the classifier says the same of all) to C; higher is better.

    Raises:
        ValueError: if there are no images.
    """
    if log_probabilities.ndim != 2 or len(log_probabilities) == 0:
        raise ValueError(f"`log_probabilities` must have the shape [N, C], got {list(log_probabilities.shape)}.")
    # torchmetrics' InceptionScore has no standard deviation over one split, shuffles by the global random state, and
    # gives NaN where the probability of a class underflows; in logarithms none does.
    log_conditional = log_probabilities.double().log_softmax(dim=1)
    log_marginal = log_conditional.logsumexp(dim=0) - math.log(len(log_conditional))
    divergence = (log_conditional.exp() * (log_conditional - log_marginal)).sum(dim=1)
    return divergence.mean().exp().item()


def precision_recall(real: torch.Tensor, generated: torch.Tensor, neighbours: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, equations 1 and 2).

    The manifold of a set of images is made of balls around their features, each reaching to the k-th nearest other one.
    Precision is the share of generated images on the real manifold, recall that of real images on the generated one.

    Args:
        real (`torch.Tensor` of shape `[N, D]`): Features of real images, more than `neighbours`.
        generated (`torch.Tensor` of shape `[M, D]`): Features of generated images, more than `neighbours`.
        neighbours (`int`, defaults to 3): k.

    Returns:
        `tuple[float, float]`: precision and recall, 0 to 1; higher is better.

    Raises:
        ValueError: if the shapes do not fit, there are too few images, or a feature is not finite.
    """
    if neighbours < 1:
        raise ValueError(f"`neighbours` must be at least 1, got {neighbours}.")
    real, generated = _checked(real, generated, at_least=neighbours + 1)
    return _covered(generated, real, neighbours), _covered(real, generated, neighbours)


def _covered(points: torch.Tensor, centres: torch.Tensor, neighbours: int) -> float:
    """The share of points in one of the balls around the centres."""
    # A centre's nearest one is itself.
    radii = torch.cat([rows.kthvalue(neighbours + 1, dim=1).values for rows in _distances(centres, centres)])
    inside = torch.cat([(rows <= radii).any(dim=1) for rows in _distances(points, centres)])
    return inside.double().mean().item()


def _distances(points: torch.Tensor, centres: torch.Tensor, rows: int = 1024) -> Iterator[torch.Tensor]:
    """The distances of all points to all centres, so many rows at a time."""
    return (torch.cdist(chunk, centres) for chunk in points.split(rows))


class _Identity(nn.Identity):
    """Features as they are, as torchmetrics asks for a network of features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _checked(real: torch.Tensor, generated: torch.Tensor, at_least: int) -> tuple[torch.Tensor, torch.Tensor]:
    for name, features in (("real", real), ("generated", generated)):
        if features.ndim != 2 or features.shape[1] != real.shape[-1]:
            raise ValueError(f"`{name}` must have the shape [images, width], got {list(features.shape)}.")
        if len(features) < at_least:
            raise ValueError(f"`{name}` must hold {at_least} images or more, got {len(features)}.")
        if not features.isfinite().all():
            raise ValueError(f"`{name}` must hold finite features.")
    return real.double(), generated.double()
