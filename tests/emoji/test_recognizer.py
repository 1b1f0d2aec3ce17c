"""The classifier that judges generated emoji: what it learns from, and that its folder serves as a feature network."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image, ImageDraw
from scripts import load_script

from glide_pipelines.emoji import open_package
from glide_pipelines.emoji.recognizer import SIZE, accuracy, augment, read_renderings
from glide_pipelines.evaluation import class_numbers, load_feature_network


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A red disc and a blue square, on transparent ground."""
    folder = tmp_path_factory.mktemp("npm")
    names = []
    for name in ("pictures", "names"):
        (folder / name).mkdir()
    for codepoint, name, colour in (("1f34e", "RED APPLE", "red"), ("1f4d8", "BLUE BOOK", "blue")):
        picture = Image.new("RGBA", (256, 256))
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if colour == "red" else draw.rectangle)((40, 40, 216, 216), fill=colour)
        picture.save(folder / f"pictures/{codepoint}.png")
        names.append({"unified": codepoint.upper(), "name": name, "short_names": [name.lower()]})
        names[-1] |= {"category": "Objects", "subcategory": "tool"}
    (folder / "names/emoji.json").write_text(json.dumps(names))
    return folder


def test_renderings_keep_their_transparency(packages):
    pictures, names = (open_package(name, packages / name) for name in ("pictures", "names"))
    found, renderings = read_renderings(pictures, names)
    assert len(found) == 2 and renderings.shape == (2, 4, SIZE, SIZE) and renderings.dtype == torch.uint8
    assert renderings[0, :, 32, 32].tolist() == [255, 0, 0, 255] and renderings[:, 3, 2, 2].tolist() == [0, 0]


def test_augmented_renderings_stand_on_backgrounds_in_many_places(packages):
    pictures, names = (open_package(name, packages / name) for name in ("pictures", "names"))
    _, renderings = read_renderings(pictures, names)
    images = augment(renderings[:1].expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    assert images.shape == (64, 3, SIZE, SIZE) and images.min() > -2 and images.max() < 2
    corners = images[:, :, 1, 1]
    assert 0.2 < (corners > 0.6).all(dim=1).float().mean() < 0.9  # white, for a good part
    assert corners.std(dim=0).min() > 0.2
    red = (images[:, 0] - images[:, 2] > 0.5).float()
    left = red.flatten(1).argmax(dim=1) % SIZE
    assert left.unique().numel() > 8  # it stands in many places
    again = augment(renderings[:1].expand(64, -1, -1, -1), torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_the_tool_makes_a_classifier_that_evaluation_takes(packages, tmp_path, capsys):
    script = load_script("train_emoji_recognizer", "tools")
    options = ["--steps", "40", "--batch-size", "16", "--pictures", str(packages / "pictures")]
    assert script.main(["--output", str(tmp_path / "out"), "--names", str(packages / "names"), *options]) == 0
    assert "Of 2 renderings" in capsys.readouterr().out
    network = load_feature_network(str(tmp_path / "out"))
    pictures, names = (open_package(name, packages / name) for name in ("pictures", "names"))
    found, renderings = read_renderings(pictures, names)
    assert network.class_names == found
    assert accuracy(network.model, renderings.repeat(8, 1, 1, 1)[:2], seed=3)[0] == 1
    # As large images on white, which the classifier reduces by itself.
    large = torch.full((2, 3, 128, 128), 255, dtype=torch.uint8)
    large[0, 1:, 30:100, 30:100] = 0
    large[1, :2, 30:100, 30:100] = 0
    labelled = type("Labelled", (), {"labels": found})
    assert network(large).log_probabilities.argmax(dim=1).tolist() == class_numbers(labelled, network).tolist()
