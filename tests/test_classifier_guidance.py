"""`examples/classifier_guidance.py`: the classifier learns, its gradient leads to the label, and the script runs."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from scripts import load_script

from glide_pipelines import GLIDEDDPMScheduler
from glide_pipelines.images import to_tensor
from glide_pipelines.shapes import BACKGROUNDS, ShapesWorld, render


@pytest.fixture(scope="module")
def example():
    module = load_script("classifier_guidance")
    module.NUM_TRAINING_IMAGES = 200
    return module


def test_the_classifier_learns_and_its_gradient_leads_to_the_label(example):
    scheduler = GLIDEDDPMScheduler(beta_schedule="squaredcos_cap_v2")
    classifier = example.train_classifier(scheduler, size=16, steps=150)
    scenes = [ShapesWorld(7).scene(index) for index in range(100)]
    pictures = to_tensor([render(scene, 16) for scene in scenes], (16, 16))
    labels = torch.tensor([list(BACKGROUNDS).index(scene.background) for scene in scenes])
    timesteps = torch.full((100,), 100)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    x_t = scheduler.add_noise(pictures, noise, timesteps)
    logits = classifier(x_t, timesteps)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.8
    gradient = example.towards(classifier, "black", 0.01)(x_t, timesteps)
    torch.testing.assert_close(2 * gradient, example.towards(classifier, "black", 0.02)(x_t, timesteps))
    black = list(BACKGROUNDS).index("black")
    before, after = (classifier(x, timesteps).log_softmax(dim=1)[:, black].mean() for x in (x_t, x_t + gradient))
    assert after > before


def test_the_script(example, tmp_path, capsys):
    picture = tmp_path / "grid.png"
    options = ["--scales", "0", "5", "--num-images", "2", "--steps", "2", "--train-steps", "2", "--background", "white"]
    example.main(["--output", str(picture), *options])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| scale | white background, of 2 | a red circle |"
    assert [line.split()[1] for line in lines[2:]] == ["0", "5"]
    assert Image.open(picture).width > Image.open(picture).height / 2
