"""Bayes' rule on noised pictures: the density it stands on, and that nothing sees more."""

import itertools
import math

import pytest
import torch

from glide_pipelines.pixels import pictures_to_tensor
from glide_pipelines.shapes import Object, Scene, ShapesWorld, describe_fully, render
from glide_pipelines.shapes.ideal_observer import log_likelihoods


SIZE = 32
ALPHA_BAR = 0.2


def noised(scenes, alpha_bar=ALPHA_BAR, size=SIZE, seed=0):
    x_start = pictures_to_tensor([render(scene, size) for scene in scenes])
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(seed))
    return math.sqrt(alpha_bar) * x_start + math.sqrt(1 - alpha_bar) * noise


def brute_force(x_t, scenes):
    """The mean density over a list of scenes, each drawn."""
    means = math.sqrt(ALPHA_BAR) * pictures_to_tensor([render(scene, SIZE) for scene in scenes])
    distances = (x_t[:, None] - means).double().square().sum(dim=(2, 3, 4))
    return (-distances / (2 * (1 - ALPHA_BAR))).logsumexp(dim=1) - math.log(len(scenes))


def test_the_density_of_one_object_anywhere():
    one, other = Object("star", "red", "small", 0.3, 0.6), Object("square", "cyan", "large", 0.5, 0.5)
    x_t = noised([Scene((one,), "gray"), Scene((other,), "white")])
    found = log_likelihoods(x_t, ALPHA_BAR, [Scene((one,), "gray"), Scene((other,), "white")])
    expected = []
    for item, background, reach in ((one, "gray", 0.33), (other, "white", 0.2725)):
        # Every half pixel of blocks of two pixels that lie, at least in part, where the object has its distance
        blocks = [(block + 0.5) / 16 for block in range(16)]
        axis = [b + half / 64 for b in blocks if abs(b - 0.5) <= reach + 1 / 32 for half in (-1.5, -0.5, 0.5, 1.5)]
        axis = [value for value in axis if abs(value - 0.5) <= 0.5 - item.width / 2]  # a few leave the picture
        places = [Object(item.shape, item.colour, item.size, x, y) for x, y in itertools.product(axis, axis)]
        expected.append(brute_force(x_t, [Scene((place,), background) for place in places]))
    # Densities are meant up to a constant
    found, expected = found - found[:, :1], torch.stack(expected, dim=1)
    torch.testing.assert_close(found, expected - expected[:, :1], atol=0.2, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_clean_picture_is_known_and_pure_noise_is_not(count):
    world = ShapesWorld(3)
    scenes = [scene for scene in map(world.scene, range(400)) if len(scene.objects) == count][:12]
    captions = [str(describe_fully(scene)) for scene in scenes]
    assert len(set(captions)) == 12
    shares = []
    for alpha_bar in (1.0, 0.1, 1e-5):
        scores = log_likelihoods(noised(scenes, alpha_bar, 32), alpha_bar, scenes)
        picks = scores.argmax(dim=1).tolist()
        shares.append(sum(captions[pick] == caption for pick, caption in zip(picks, captions, strict=True)) / 12)
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and shares[2] < 0.4


def test_one_blob_is_not_two_objects():
    """What explains the picture must be in different places."""
    alone = Scene((Object("circle", "red", "large", 0.5, 0.5),), "black")
    twice = Scene((Object("circle", "red", "large", 0.3, 0.3), Object("square", "red", "large", 0.7, 0.7)), "black")
    third = Object("star", "red", "small", 0.8, 0.2)
    thrice = Scene(
        (Object("circle", "red", "large", 0.3, 0.3), Object("cross", "red", "small", 0.2, 0.8), third), "black"
    )
    scenes = [alone, twice, thrice]
    assert log_likelihoods(noised(scenes), ALPHA_BAR, scenes).argmax(dim=1).tolist() == [0, 1, 2]


def test_bad_input():
    scene = Scene((Object("circle", "red", "large", 0.5, 0.5),), "black")
    for alpha_bar in (0.0, 1.1):
        with pytest.raises(ValueError, match="`alpha_bar` must lie above 0"):
            log_likelihoods(torch.zeros(1, 3, SIZE, SIZE), alpha_bar, [scene])
    with pytest.raises(ValueError, match="`x_t` must have an even width, got 15"):
        log_likelihoods(torch.zeros(1, 3, 15, 15), 0.5, [scene])
