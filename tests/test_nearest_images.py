"""tools/nearest_images.py: each generated image beside the training image most like it and the true one."""

import json

import pytest
import torch
from PIL import Image
from scripts import load_script

from glide_pipelines.evaluation import Features


pytest.importorskip("datasets")


class Colours(torch.nn.Module):
    """Features that can be told by eye: the mean colour."""

    def __init__(self):
        super().__init__()
        self.device_marker = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return Features(images.float().mean(dim=(2, 3)), None)


def make_folder(folder, images):
    folder.mkdir()
    lines = []
    for number, (caption, colour) in enumerate(images.items()):
        Image.new("RGB", (32, 32), colour).save(folder / f"{number:06}.png")
        lines.append(json.dumps({"file_name": f"{number:06}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    script = load_script("nearest_images", "tools")
    monkeypatch.setattr(script, "load_network", lambda name: Colours())
    train = make_folder(tmp_path / "train", {"a blue car": "blue", "a red car": "red", "a lime": (120, 255, 0)})
    true = make_folder(tmp_path / "true", {"a green car": "lime", "a pink car": (255, 0, 60)})
    # In place of green this model has a lime, and in place of pink its red car.
    made = make_folder(tmp_path / "made", {"a green car": (110, 250, 0), "a pink car": (250, 0, 30)})

    def call(*options):
        folders = [str(made), "--data-dir", str(true), "--train-data-dir", str(train), "--features", "colours"]
        return script.main([*folders, "--size", "32", "--output", str(tmp_path / "page.png"), *options])

    return call


def test_the_page_shows_what_was_recalled(run, tmp_path, capsys):
    assert run("--columns", "1") == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["a green car: a lime (1.00)", "a pink car: a red car (0.99)"]
    with Image.open(tmp_path / "page.png") as page:
        cell = 32 + 1  # and the gap
        colours = [page.getpixel((column * cell + 16, 16)) for column in range(3)]
    assert colours == [(110, 250, 0), (120, 255, 0), (0, 255, 0)]


def test_an_image_that_is_missing_is_an_error(run, tmp_path, capsys):
    (tmp_path / "made/000001.png").unlink()
    assert run() == 2
    assert "000001.png" in capsys.readouterr().err and not (tmp_path / "page.png").exists()
