"""Bayes' rule on noised images: the density that it stands on, and whether it knows how sure it may be."""

import itertools
import math

import pytest
import torch

from glide_pipelines.images import images_to_tensor
from glide_pipelines.shapes import Object, Scene, ShapesWorld, describe_fully, render
from glide_pipelines.shapes.ideal_observer import _allowed, _middles, _sum_apart, log_likelihoods
from glide_pipelines.shapes.scene import SIZES


SIZE = 32
ALPHA_BAR = 0.2


def noised(scenes, alpha_bar=ALPHA_BAR, size=SIZE, seed=0):
    x_start = images_to_tensor([render(scene, size) for scene in scenes])
    noise = torch.randn(x_start.shape, generator=torch.Generator().manual_seed(seed))
    return math.sqrt(alpha_bar) * x_start + math.sqrt(1 - alpha_bar) * noise


def brute_force(x_t, scenes):
    """The mean density over a list of scenes, each drawn."""
    means = math.sqrt(ALPHA_BAR) * images_to_tensor([render(scene, SIZE) for scene in scenes])
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
        axis = [value for value in axis if abs(value - 0.5) <= 0.5 - item.width / 2]  # a few leave the image
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
    """What explains the image must be in different places."""
    alone = Scene((Object("circle", "red", "large", 0.5, 0.5),), "black")
    twice = Scene((Object("circle", "red", "large", 0.3, 0.3), Object("square", "red", "large", 0.7, 0.7)), "black")
    third = Object("star", "red", "small", 0.8, 0.2)
    thrice = Scene(
        (Object("circle", "red", "large", 0.3, 0.3), Object("cross", "red", "small", 0.2, 0.8), third), "black"
    )
    scenes = [alone, twice, thrice]
    assert log_likelihoods(noised(scenes), ALPHA_BAR, scenes).argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_where_nothing_is_nothing_is_likelier_on_the_average(count):
    """The mean of a likelihood ratio over what its denominator draws is 1; every constant factor would show."""
    objects = (Object("circle", "red", "large", 0.5, 0.2), Object("square", "blue", "small", 0.2, 0.7))
    scene = Scene((*objects, Object("star", "pink", "small", 0.8, 0.8))[:count], "gray")
    alpha_bar, colour = 0.01, 128 / 127.5 - 1
    noise = torch.randn(2000, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))
    x_t = math.sqrt(alpha_bar) * colour + math.sqrt(1 - alpha_bar) * noise
    empty = -noise.double().square().sum(dim=(1, 2, 3)) / 2
    ratios = (log_likelihoods(x_t, alpha_bar, [scene])[:, 0] - empty).exp()
    assert ratios.mean().item() == pytest.approx(1, abs=0.1)


def test_it_knows_how_sure_it_may_be():
    world = ShapesWorld(0)
    scenes = [world.scene(index) for index in range(150)]
    captions = [str(describe_fully(scene)) for scene in scenes]
    prior = torch.tensor([math.log(captions.count(caption)) for caption in captions])
    distinct = [captions.index(caption) for caption in dict.fromkeys(captions)]
    alpha_bar = 0.08  # at timestep 500 of the linear schedule
    posterior = log_likelihoods(noised(scenes, alpha_bar), alpha_bar, [scenes[index] for index in distinct])
    sure, picks = (posterior + prior[distinct]).softmax(dim=1).max(dim=1)
    right = [captions[distinct[pick]] == own for pick, own in zip(picks.tolist(), captions, strict=True)]
    assert 0.3 < sure.mean() < 0.9
    assert sum(right) / len(right) == pytest.approx(sure.mean().item(), abs=0.1)


def test_ways_to_place_objects_are_all_counted_and_none_twice():
    sizes = ["large", "small", "small"]
    middles = [_middles()[_allowed(size)] for size in sizes]
    generator = torch.Generator().manual_seed(0)
    weights = [torch.rand(2, len(places), generator=generator, dtype=torch.float64) for places in middles]
    for weight in weights:
        weight *= torch.rand(weight.shape, generator=generator) < 0.2  # so that counting one by one takes no time

    def keep_apart(one, other):
        (size, place), (other_size, other_place) = one, other
        needed = (SIZES[size][0] + SIZES[other_size][0]) / 2
        return any(abs(a - b) >= needed for a, b in zip(place.tolist(), other_place.tolist(), strict=True))

    for image in range(2):
        there = [
            [(size, place, weight.item()) for place, weight in zip(places, row[image], strict=True) if weight]
            for size, places, row in zip(sizes, middles, weights, strict=True)
        ]
        expected = sum(
            math.prod(weight for *_, weight in chosen)
            for chosen in itertools.product(*there)
            if all(keep_apart(one[:2], other[:2]) for one, other in itertools.combinations(chosen, 2))
        )
        assert _sum_apart(weights, sizes)[image].item() == pytest.approx(expected)


def test_one_object_s_best_place_may_be_another_s():
    """Of colours that resemble each other, in the larger size that OpenAI's models see."""
    pair = (Object("square", "purple", "large", 0.25, 0.25), Object("square", "pink", "large", 0.75, 0.75))
    scenes = [Scene(pair, "black"), Scene(pair[:1], "black"), Scene(pair[1:], "black")]
    for alpha_bar in (1.0, 0.5):
        scores = log_likelihoods(noised(scenes, alpha_bar, 64), alpha_bar, scenes)
        assert scores.diagonal().isfinite().all() and scores.argmax(dim=1).tolist() == [0, 1, 2]


def test_bad_input():
    scene = Scene((Object("circle", "red", "large", 0.5, 0.5),), "black")
    for alpha_bar in (0.0, 1.1):
        with pytest.raises(ValueError, match="`alpha_bar` must lie above 0"):
            log_likelihoods(torch.zeros(1, 3, SIZE, SIZE), alpha_bar, [scene])
    for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 3, 30, 30), (1, 3, 16, 32)):
        with pytest.raises(ValueError, match=r"`x_t` must be \[N, 3, S, S\] with S a multiple of 16"):
            log_likelihoods(torch.zeros(shape), 0.5, [scene])
