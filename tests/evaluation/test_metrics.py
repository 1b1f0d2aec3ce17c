"""The metrics, against independent computations on small arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from glide_pipelines.evaluation import frechet_distance, inception_score, precision_recall


def normal(count, width, seed, shift=0.0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, width, generator=generator) + shift


def frechet_by_eigenvalues(real, generated):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2): the symmetric form, in NumPy."""
    real, generated = (features.double().numpy() for features in (real, generated))
    first, second = (np.cov(features, rowvar=False) for features in (real, generated))
    values, vectors = np.linalg.eigh(first)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    difference = real.mean(axis=0) - generated.mean(axis=0)
    return difference @ difference + np.trace(first) + np.trace(second) - 2 * cross


@pytest.mark.parametrize(("count", "width"), [(200, 5), (40, 16), (9, 16)])  # the last: fewer images than features
def test_frechet_distance(count, width):
    mix = normal(width, width, 3)
    real, generated = normal(count, width, 0), normal(count + 7, width, 1, shift=0.3) @ mix
    assert frechet_distance(real, generated) == pytest.approx(frechet_by_eigenvalues(real, generated), rel=1e-6)
    assert frechet_distance(generated, real) == pytest.approx(frechet_distance(real, generated), rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    """Independent axes: the sum of (m1 - m2)^2 + (s1 - s2)^2."""
    axis = torch.tensor([[-1.0], [1.0]]) / math.sqrt(2)  # mean 0, variance 1
    real = torch.cat([torch.cartesian_prod(*2 * [axis.flatten()])])
    standard_deviation = real.std(dim=0)[0].item()
    generated = real * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])
    expected = 1 + 4 + (2 * standard_deviation) ** 2 + (0.5 * standard_deviation) ** 2
    assert frechet_distance(real, generated) == pytest.approx(expected)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


@pytest.mark.filterwarnings("ignore")
def test_inception_score_is_torchmetrics():
    logits = 3 * normal(50, 7, 0)
    metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.update(logits.double())
    assert inception_score(logits.log_softmax(dim=1)) == pytest.approx(metric.compute()[0].item())


def test_inception_score_at_its_ends():
    certain = torch.eye(6).repeat(4, 1).log()
    assert inception_score(certain.clamp(min=-100)) == pytest.approx(6)
    assert inception_score(torch.full((9, 6), 1 / 6).log()) == pytest.approx(1)
    assert inception_score(certain[:1].repeat(8, 1).clamp(min=-100)) == pytest.approx(1), "all alike"


def brute_force(points, centres, neighbours):
    """Equation 2 of arXiv 1904.06991, one point at a time."""
    points, centres = points.double().numpy(), centres.double().numpy()
    covered = 0
    for point in points:
        for index, centre in enumerate(centres):
            others = [np.linalg.norm(centre - other) for place, other in enumerate(centres) if place != index]
            if np.linalg.norm(point - centre) <= sorted(others)[neighbours - 1]:
                covered += 1
                break
    return covered / len(points)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_precision_and_recall(neighbours):
    real, generated = normal(60, 4, 0), normal(40, 4, 1, shift=1.5, scale=0.7)
    precision, recall = precision_recall(real, generated, neighbours)
    assert precision == brute_force(generated, real, neighbours)
    assert recall == brute_force(real, generated, neighbours)
    assert 0 < recall < 1 and 0 < precision < 1 and recall != precision


def test_precision_and_recall_tell_fidelity_from_diversity():
    real = torch.cat([normal(50, 3, 0), normal(50, 3, 1, shift=20)])
    one_mode, everything = (
        normal(50, 3, 2),
        torch.cat([normal(50, 3, 3), normal(50, 3, 4, shift=20), normal(50, 3, 5, 60)]),
    )
    precision, recall = precision_recall(real, one_mode)
    assert precision > 0.8 and recall < 0.55
    precision, recall = precision_recall(real, everything)
    assert 0.5 < precision < 0.7 and recall > 0.8
    assert precision_recall(real, real) == (1, 1)


def test_rows_are_compared_in_chunks_of_any_size(monkeypatch):
    from glide_pipelines.evaluation import metrics

    real, generated = normal(40, 4, 0), normal(30, 4, 1)
    expected = precision_recall(real, generated)
    distances = metrics._distances
    monkeypatch.setattr(metrics, "_distances", lambda points, centres: distances(points, centres, rows=7))
    assert precision_recall(real, generated) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: precision_recall(normal(9, 4, 0), normal(3, 4, 1)), "`generated` must hold 4 images or more, got 3"),
        (lambda: precision_recall(normal(3, 4, 0), normal(9, 4, 1)), "`real` must hold 4 images or more, got 3"),
        (lambda: precision_recall(normal(9, 4, 0), normal(9, 4, 1), 0), "`neighbours` must be at least 1, got 0"),
        (lambda: frechet_distance(normal(9, 4, 0), normal(1, 4, 1)), "`generated` must hold 2 images or more, got 1"),
        (lambda: frechet_distance(normal(9, 4, 0), normal(9, 5, 1)), "`generated` must have the shape"),
        (lambda: frechet_distance(normal(9, 4, 0), normal(9, 4, 1) / 0), "`generated` must hold finite features"),
        (lambda: inception_score(torch.zeros(0, 4)), r"`log_probabilities` must have the shape \[N, C\], got \[0, 4\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
