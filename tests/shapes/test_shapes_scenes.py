"""Scenes, images and the endless sequence: what a user of the data relies on."""

import json
import subprocess
import sys

import numpy as np
import pytest

from glide_pipelines.shapes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Object,
    Scene,
    ShapesWorld,
    render,
    render_sizes,
    sample_scene,
)


@pytest.fixture(scope="module")
def scenes():
    return [ShapesWorld(seed=1, held_out=None).scene(index) for index in range(2000)]


def test_objects_keep_apart_and_inside(scenes):
    for scene in scenes:
        for index, item in enumerate(scene.objects):
            low, high = SIZES[item.size]
            assert low <= item.width <= high
            assert item.width / 2 + 0.029 <= min(item.x, item.y) and max(item.x, item.y) <= 0.971 - item.width / 2
            for other in scene.objects[:index]:
                apart = max(abs(item.x - other.x), abs(item.y - other.y))
                assert apart >= (item.width + other.width) / 2 + 0.0625


def test_everything_is_drawn(scenes):
    objects = [item for scene in scenes for item in scene.objects]
    assert {item.shape for item in objects} == set(SHAPES)
    assert {item.colour for item in objects} == set(COLOURS)
    assert {item.size for item in objects} == set(SIZES)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    shares = np.bincount([len(scene.objects) for scene in scenes])[1:] / len(scenes)
    np.testing.assert_allclose(shares, [0.4, 0.4, 0.2], atol=0.05)
    for scene in scenes:
        pairs = [(item.colour, item.shape) for item in scene.objects]
        assert len(set(pairs)) == len(pairs)


def test_splits_share_no_combination(scenes):
    trained = {ShapesWorld(0, False).scene(index).combination for index in range(1500)}
    kept = {ShapesWorld(0, True).scene(index).combination for index in range(1500)}
    assert trained and kept and not trained & kept
    assert 0.07 < np.mean([scene.held_out for scene in scenes]) < 0.13


def test_the_split_looks_at_the_combination_only():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene(rng, held_out=True, num_objects=2)
        moved = Scene(
            tuple(Object(o.shape, o.colour, "small", x, 0.5) for o, x in zip(scene.objects, (0.8, 0.2), strict=True)),
            scene.background,
        )
        assert moved.held_out and Scene(moved.objects[::-1], moved.background).held_out


def test_number_of_objects_can_be_chosen():
    rng = np.random.default_rng(0)
    for count in (1, 2, 3):
        assert {len(sample_scene(rng, num_objects=count).objects) for _ in range(20)} == {count}


def test_how_many_scenes_have_one_two_and_three_objects():
    def counted(**shares):
        numbers = [len(ShapesWorld(0, **shares).scene(index).objects) for index in range(1000)]
        return [numbers.count(number) / 1000 for number in (1, 2, 3)]

    assert counted() == pytest.approx([0.4, 0.4, 0.2], abs=0.05)
    assert counted(num_objects_shares=(0.1, 0.0, 0.9)) == pytest.approx([0.1, 0.0, 0.9], abs=0.05)


def test_the_sequence_is_the_same_in_another_process_and_order():
    indices = [7, 3, 123_456_789_012]
    code = (
        "from glide_pipelines.shapes import ShapesWorld; import json; w = ShapesWorld(5, True);"
        f"print(json.dumps([[repr(w.scene(i)), str(w.caption(i))] for i in {indices[::-1]}]))"
    )
    other = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    world = ShapesWorld(5, True)
    mine = [[repr(world.example(i).scene), str(world.example(i).caption)] for i in indices]
    assert mine == other[::-1]
    assert ShapesWorld(6, True).scene(7) != world.scene(7)


def test_the_sequence_stays_what_checkpoints_were_trained_on():
    world = ShapesWorld(seed=0)
    assert [str(world.caption(index)) for index in range(3)] == [
        "a large blue circle in the top left and a blue triangle in the bottom right on a black background",
        "a large blue triangle above a small cyan triangle, and an orange triangle",
        "a yellow square",
    ]


def test_small_images_are_box_averages_of_large_ones(scenes):
    for scene in scenes[:20]:
        small, large = render_sizes(scene, (32, 128))
        assert small.size == (32, 32) and large.size == (128, 128) and small.mode == "RGB"
        average = np.asarray(large, dtype=float).reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
        assert np.abs(average - np.asarray(small)).max() <= 1
        assert np.array_equal(np.asarray(render(scene, 128)), np.asarray(large))


def test_images_show_colour_and_background_and_soft_edges():
    pixels = np.asarray(render(Scene((Object("circle", "red", "large", 0.4, 0.6),), "gray"), 64))
    assert tuple(pixels[38, 25]) == COLOURS["red"]
    assert tuple(pixels[2, 2]) == BACKGROUNDS["gray"]
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize("size", [33, 100, 700])
def test_sizes_that_do_not_divide_the_canvas(scenes, size):
    assert render(scenes[0], size).size == (size, size)


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: Object("heart", "red", "small", 0.5, 0.5), "`shape`"),
        (lambda: Object("circle", "teal", "small", 0.5, 0.5), "`colour`"),
        (lambda: Object("circle", "red", "huge", 0.5, 0.5), "`size`"),
        (lambda: Object("circle", "red", "small", 0.05, 0.5), "`x`"),
        (lambda: Object("circle", "red", "small", 0.5, 1.5), "`y`"),
        (lambda: Object("circle", "red", "small", 0.5, 0.5, 0.9), "`width`"),
        (lambda: Scene(()), "`objects`"),
        (lambda: Scene((Object("circle", "red", "small", 0.5, 0.5),), "red"), "`background`"),
        (lambda: sample_scene(np.random.default_rng(), num_objects=4), "`num_objects`"),
        (lambda: sample_scene(np.random.default_rng(), num_objects_shares=(0.5, 0.5)), "`num_objects_shares`"),
        (lambda: sample_scene(np.random.default_rng(), held_out="yes"), "`held_out`"),
        (lambda: ShapesWorld(num_objects_shares=(2, -1, 0)), "`num_objects_shares`"),
        (lambda: ShapesWorld(seed=-1), "`seed`"),
        (lambda: ShapesWorld().scene(-1), "`index`"),
        (lambda: render(ShapesWorld().scene(0), 4), "`size`"),
        (lambda: render(ShapesWorld().scene(0), 64.0), "`size`"),
    ],
)
def test_bad_input_names_the_argument(call, argument):
    with pytest.raises(ValueError, match=argument):
        call()
