"""Training examples: functions of the seed and their number, with independent randomness."""

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer

from glide_pipelines.shapes import BACKGROUNDS, ShapesSource
from glide_pipelines.training import LowResolution, TextToImageDataset, TimestepWeighting


LOW_RESOLUTION = LowResolution(32, 8, 16, low_res_blur=0.5, low_res_noise=0.1)


def make_dataset(resolution=16, **changes):
    arguments = {"seed": 3, "proportion_empty_prompts": 0.2} | changes
    return TextToImageDataset(ShapesSource(resolution, 3), tiny_tokenizer(), TimestepWeighting(1000), **arguments)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_an_example_depends_on_its_number_alone():
    dataset = make_dataset(32, low_resolution=LOW_RESOLUTION)
    later = dataset[1000]
    dataset[7]
    assert_same(later, dataset[1000])
    assert_same(later, make_dataset(32, low_resolution=LOW_RESOLUTION)[1000])
    assert not torch.equal(later["noise"], dataset[1001]["noise"])
    other_seed = make_dataset(32, seed=4, low_resolution=LOW_RESOLUTION)[1000]
    assert not torch.equal(later["noise"], other_seed["noise"])


def test_images_are_of_8_bit_and_noise_is_standard():
    dataset = make_dataset()
    examples = [dataset[index] for index in range(64)]
    images = torch.stack([example["pixel_values"] for example in examples])
    levels = (images + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert images.min() == -1 and images.max() == 1
    noise = torch.stack([example["noise"] for example in examples])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_noise_offset_moves_whole_channels():
    plain, offset = make_dataset(), make_dataset(noise_offset=0.5)
    moved = torch.stack([offset[index]["noise"] - plain[index]["noise"] for index in range(200)])
    torch.testing.assert_close(moved, moved[..., :1, :1].expand_as(moved), atol=1e-6, rtol=0)
    assert moved[..., 0, 0].std() == pytest.approx(0.5, abs=0.05)
    assert moved[:, 0].mean() != moved[:, 1].mean()
    with pytest.raises(ValueError, match="`noise_offset`"):
        make_dataset(noise_offset=-1.0)


def test_captions_are_replaced_by_the_empty_one():
    dataset = make_dataset(8)
    examples = [dataset[index] for index in range(300)]
    empty = [example for example in examples if not example["attention_mask"].any()]
    assert len(empty) / len(examples) == pytest.approx(0.2, abs=0.06)
    tokenizer = dataset.tokenizer
    assert all((example["input_ids"] == tokenizer.pad_token_id).all() for example in empty)
    assert all(make_dataset(8, proportion_empty_prompts=0.0)[index]["attention_mask"].any() for index in range(50))
    assert not make_dataset(8, proportion_empty_prompts=1.0)[0]["attention_mask"].any()
    with pytest.raises(ValueError, match="`proportion_empty_prompts`"):
        make_dataset(proportion_empty_prompts=1.1)


def test_the_randomness_of_an_example_tells_nothing_of_its_scene():
    """Even if data set and world have the same seed: whose captions are dropped, and what the noise is."""
    dataset = make_dataset(8)
    scenes = [dataset.source.world.scene(index) for index in range(1500)]
    examples = [dataset[index] for index in range(1500)]
    dropped = [not example["attention_mask"].any() for example in examples]
    for count in (1, 2, 3):
        share = np.mean([drop for drop, scene in zip(dropped, scenes, strict=True) if len(scene.objects) == count])
        assert abs(share - 0.2) < 0.09  # 4 standard deviations of the rarest
    for background in BACKGROUNDS:
        of_it = [e["noise"][0, 0] for e, scene in zip(examples, scenes, strict=True) if scene.background == background]
        assert ((torch.stack(of_it).abs().mean(dim=0) - 0.798).abs() < 0.135).all()  # 5 of them, of |noise|
