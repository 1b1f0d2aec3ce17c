import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer

from glide_pipelines import GLIDEDDPMScheduler, NoisedCLIPConfig, NoisedCLIPModel
from glide_pipelines.shapes import Example, ShapesWorld, describe, render
from glide_pipelines.shapes.retrieval import FULL, IDEAL, OWN, TRUE, caption_retrieval


SIZE, COUNT = 16, 40


class Oracle(NoisedCLIPModel):
    """Knows the images by heart: it gives an image the vector of the nearest clean one's caption."""

    def __init__(self, world):
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        vision = {**shape, "image_size": SIZE}
        super().__init__(NoisedCLIPConfig(text_config={**shape, "vocab_size": 258}, vision_config=vision))
        scenes = [world.example(index).scene for index in range(COUNT)]
        images = np.stack([np.asarray(render(scene, SIZE)) for scene in scenes])
        self.known = torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1) / 127.5 - 1

    def get_text_features(self, input_ids, attention_mask=None):
        return torch.eye(COUNT) * torch.linspace(0.1, 9, COUNT)[:, None]  # no two of the same length

    def get_image_features(self, sample, timesteps):
        return torch.eye(COUNT)[torch.cdist(sample.flatten(1), self.known).argmin(dim=1)]


def measure(world=ShapesWorld, **changes):
    settings = {"timesteps": (0, 999), "num_captions": COUNT, "seed": 5, "batch_size": 16}
    return caption_retrieval(
        Oracle(world(5, held_out=True)), tiny_tokenizer(), GLIDEDDPMScheduler(), **settings | changes
    )


def test_a_model_that_knows_is_right_on_clean_images_and_lost_in_noise():
    rates = measure()
    assert rates[0][OWN]["share"] == rates[0][TRUE]["share"] == rates[0][FULL]["share"] == 1
    assert rates[0][OWN]["cases"] == rates[0][FULL]["cases"] == COUNT
    assert rates[0][IDEAL]["share"] == 1 and rates[999][IDEAL]["share"] < 0.5
    assert rates[999][FULL]["share"] < 0.5 and rates[999][OWN]["share"] <= rates[999][TRUE]["share"] < 0.5


def test_the_figures_repeat_and_do_not_depend_on_the_batch():
    assert measure() == measure(batch_size=7)
    assert measure(seed=6)[0][OWN]["share"] < 0.2  # other scenes than it knows


def test_captions_that_say_the_same_count_as_right(monkeypatch):
    class Same(ShapesWorld):
        def example(self, index):
            return super().example(index // 2)

    monkeypatch.setattr("glide_pipelines.shapes.retrieval.ShapesWorld", Same)
    assert measure(Same, timesteps=[0])[0][OWN]["share"] == pytest.approx(1)


def test_a_true_caption_of_another_picture_is_true_and_not_its_own(monkeypatch):
    class Twice(ShapesWorld):
        def example(self, index):
            scene, caption = super().example(index // 2)
            return Example(scene, caption if index % 2 else describe(scene, np.random.default_rng(index)))

    monkeypatch.setattr("glide_pipelines.shapes.retrieval.ShapesWorld", Twice)
    rates = measure(Twice, timesteps=[0])[0]
    assert rates[TRUE]["share"] == 1 and 0.4 < rates[OWN]["share"] < 0.8


def test_the_ideal_observer_knows_how_often_each_caption_is_there(monkeypatch):
    """In pure noise the commonest caption is the best guess."""

    class Often(ShapesWorld):
        def example(self, index):
            return super().example(max(index - COUNT // 2, 0))

    monkeypatch.setattr("glide_pipelines.shapes.retrieval.ShapesWorld", Often)
    assert measure(Often, timesteps=[999])[999][IDEAL]["right"] == COUNT // 2 + 1
