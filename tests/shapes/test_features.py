"""The classifier of the shapes world, whose features and classes measure models of that world."""

from __future__ import annotations

import pytest
import torch

from glide_pipelines.shapes import Object, Scene, ShapesWorld
from glide_pipelines.shapes.features import (
    ABSENT,
    LABELS,
    ShapesFeatures,
    ShapesNetwork,
    accuracy,
    scene_batch,
    scene_labels,
    train_shapes_features,
)


def test_labels_name_the_objects_from_the_left():
    scene = Scene((Object("star", "pink", "small", 0.8, 0.2), Object("circle", "green", "large", 0.3, 0.7)), "gray")
    labels = dict(zip(LABELS, scene_labels(scene), strict=True))
    assert labels["background"] == 2 and labels["count"] == 1
    left = [labels[f"{name} 0"] for name in ("colour", "shape", "size", "x", "y")]
    right = [labels[f"{name} 1"] for name in ("colour", "shape", "size", "x", "y")]
    assert left == [1, 0, 1, 1, 2] and right == [7, 4, 0, 3, 0]
    assert {labels[name] for name in LABELS if name.endswith("2")} == {ABSENT}


def test_the_shipped_classifier_knows_scenes_that_it_was_not_trained_on():
    network = ShapesNetwork()
    world = ShapesWorld(7, held_out=True)
    shares = accuracy(network.model, [world.scene(index) for index in range(200)])
    assert min(shares.values()) > 0.85 and shares["colour 0"] > 0.97 and shares["shape 0"] > 0.97


def test_its_classes_are_colour_and_shape_of_the_leftmost_object():
    network = ShapesNetwork()
    scenes = [Scene((Object("star", "pink", "large", x, 0.5),), "white") for x in (0.3, 0.5, 0.7)]
    with torch.no_grad():
        features, log_probabilities = network(scene_batch(scenes, 64)[0])
    assert features.shape == (3, 64) and log_probabilities.shape == (3, 48)
    assert log_probabilities.exp().sum(dim=1).tolist() == pytest.approx([1] * 3)
    assert log_probabilities.argmax(dim=1).tolist() == [7 * 6 + 4] * 3
    assert log_probabilities.max(dim=1).values.exp().min() > 0.9


def test_a_larger_picture_of_the_scene_has_almost_the_same_features():
    network = ShapesNetwork()
    scenes = [ShapesWorld(3).scene(index) for index in range(8)]
    with torch.no_grad():
        small, large = (network(scene_batch(scenes, size)[0]).features for size in (32, 128))
        far = (small - small.roll(1, 0)).norm(dim=1).mean()
    assert (small - large).norm(dim=1).max() < 0.05 * far


def test_training_learns_and_repeats_itself(tmp_path):
    losses = []
    model = train_shapes_features(20, batch_size=16, report=lambda step, loss: losses.append(loss))
    assert len(losses) == 20 and sum(losses[-5:]) < 0.95 * sum(losses[:5])
    again = train_shapes_features(20, batch_size=16)
    model.save_pretrained(tmp_path)
    loaded = ShapesFeatures.from_pretrained(tmp_path)
    for other in (again, loaded):
        for name, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], value)
