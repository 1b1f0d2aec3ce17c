"""The small image that an upsampler is trained on."""

import numpy as np
import pytest
import torch
from PIL import Image

from glide_pipelines.images import images_to_tensor
from glide_pipelines.training import LowResolution


def test_small_and_large_crop_are_of_the_same_place():
    gradient = np.arange(32 * 32).reshape(32, 32) * 255 // 1024
    image = Image.fromarray(np.stack([gradient, gradient.T, gradient], axis=2).astype(np.uint8))
    for seed in range(5):
        high, low = LowResolution(32, 8, 16)(image, np.random.default_rng(seed))
        assert high.size == (16, 16) and low.shape == (3, 4, 4)
        torch.testing.assert_close(images_to_tensor([high.reduce(4)])[0], low)


def test_low_resolution_is_corrupted_in_8_bit():
    image = Image.new("RGB", (32, 32), (100, 150, 200))
    _, low = LowResolution(32, 8, low_res_noise=0.2)(image, np.random.default_rng(0))
    levels = (low + 1) * 127.5
    assert levels.std(dim=(1, 2)).min() > 0
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    edge = Image.new("RGB", (32, 32))
    edge.paste((255, 255, 255), (16, 0, 32, 32))
    values = [
        LowResolution(32, 8, low_res_blur=1.0)(edge, np.random.default_rng(seed))[1].unique().numel()
        for seed in range(5)
    ]
    assert max(values) > 2


@pytest.mark.parametrize("name", ["low_res_blur", "low_res_noise"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_values_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0"):
        LowResolution(32, 8, **{name: value})
