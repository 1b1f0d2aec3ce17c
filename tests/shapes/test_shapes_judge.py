"""The judge is right on drawings, tolerant of rough ones, and strict with captions that are false."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from glide_pipelines.shapes import Caption, Mention, Object, Scene, ShapesWorld, detect, judge, render
from glide_pipelines.shapes.calibration import ALTERATIONS, calibrate, calibration_table


@pytest.fixture(scope="module")
def calibration():
    return calibrate(num_scenes=250, seed=3)


@pytest.fixture
def pair():
    """A large red circle above a small blue square, on white."""
    return Scene((Object("circle", "red", "large", 0.4, 0.3), Object("square", "blue", "small", 0.5, 0.8)), "white")


@pytest.mark.parametrize("size", [32, 128])
def test_true_captions_are_right(calibration, size):
    rows = calibration[f"clean {size}"]
    for name in ("whole", *ALTERATIONS):
        assert rows[f"true: {name}"][0] >= 0.99, name
    assert calibration[f"rough {size}"]["true: whole"][0] >= 0.97


@pytest.mark.parametrize("column", ["clean 32", "clean 128", "rough 32", "rough 128"])
def test_false_captions_are_wrong(calibration, column):
    rows = calibration[column]
    assert rows["false: whole"][0] >= 0.99
    for name in ALTERATIONS:
        share, cases = rows[f"false: {name}"]
        assert share >= 0.98 and cases > 30, name


def test_the_table_prints_every_row(calibration):
    lines = calibration_table(calibration).splitlines()
    assert len(lines) == 2 + 2 * (1 + len(ALTERATIONS))
    assert all(line.count("|") == 7 for line in lines)


@pytest.mark.parametrize("size", [32, 50, 64, 128, 256])
def test_images_of_any_kind_and_size(pair, size):
    text = "a large red circle above a small blue square on white"
    image = render(pair, size)
    pixels = np.asarray(image)
    for kind in (image, image.convert("RGBA"), pixels, pixels.astype(np.float32) / 255):
        assert judge(kind, text).correct


def test_the_verdict_names_what_is_wrong(pair):
    verdict = judge(render(pair, 64), "a small red square below a blue square and a star on black")
    assert not verdict.correct
    assert verdict.attributes() == {
        "colour": [True, True],
        "shape": [False, True, False],
        "size": [False],
        "relation": [False],
        "background": [False],
        "count": [False],
    }
    assert verdict.objects[2].found is None and verdict.objects[2].colour is None


def test_what_is_unstated_is_not_judged(pair):
    verdict = judge(render(pair, 64), "a shape above a blue shape".replace("a shape", "a circle"))
    assert verdict.correct
    assert (verdict.background, verdict.objects[0].colour, verdict.objects[1].shape) == (None, None, None)
    found = verdict.objects[0].found
    assert (found.shape, found.colour, found.size) == ("circle", "red", "large")
    assert (found.x, found.y) == pytest.approx((0.4, 0.3), abs=0.01)


def test_objects_are_matched_in_any_order(pair):
    assert judge(render(pair), "a blue square and a red circle").correct
    assert judge(render(pair), "a blue square below a red circle").correct
    assert not judge(render(pair), "a blue circle and a red square").correct


def test_specks_are_ignored_and_blur_is_tolerated(pair):
    image = render(pair, 128).filter(ImageFilter.GaussianBlur(2))
    ImageDraw.Draw(image).rectangle((110, 10, 117, 15), fill=(0, 160, 60))
    assert judge(image, "a large red circle above a small blue square on white").correct


def test_touching_objects_of_two_colours_are_two():
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 40, 59, 79), fill=(220, 30, 30))
    draw.ellipse((60, 40, 99, 79), fill=(255, 105, 200))
    assert [(item.colour, item.shape) for item in detect(image).objects] == [("red", "square"), ("pink", "circle")]


def test_an_image_need_not_be_square(pair):
    image = Image.new("RGB", (128, 64), "white")
    image.paste(render(pair, 64), (64, 0))
    assert judge(image, "a large red circle above a small blue square on white").correct
    circle, square = detect(image).objects
    assert (circle.x, circle.y, square.x, square.y) == pytest.approx((0.7, 0.3, 0.75, 0.8), abs=0.02)
    assert judge(image, "a large red circle on the right and a small blue square").correct


def test_what_is_no_shape_has_none():
    image = Image.new("RGB", (64, 64), "black")
    ImageDraw.Draw(image).rectangle((8, 20, 55, 27), fill=(220, 30, 30))
    verdict = judge(image, "a red square on black")
    assert verdict.objects[0].found.shape is None
    assert (verdict.objects[0].shape, verdict.objects[0].colour, verdict.correct) == (False, True, False)


def test_backgrounds_count_within_sixty():
    for level, name in ((255, "white"), (225, "white"), (200, None), (150, "gray"), (30, "black")):
        assert detect(np.full((32, 32, 3), level, dtype=np.uint8)).background == name


def test_images_of_nothing_in_particular_are_survived():
    rng = np.random.default_rng(0)
    caption = Caption((Mention("circle", "red", "small", "top left"),), background="white")
    for image in (rng.random((32, 32, 3)), rng.integers(0, 256, (128, 128, 3), dtype=np.uint8), np.ones((32, 32, 3))):
        assert not judge(image, caption).correct
    blocks = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64))
    assert not judge(blocks, caption).correct


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((32, 32), dtype=np.uint8),
        np.zeros((3, 32, 32), dtype=np.uint8),
        np.zeros((31, 31, 3), dtype=np.uint8),
        np.zeros((31, 64, 3), dtype=np.uint8),
        np.zeros((32, 32, 3), dtype=np.int64),
        np.full((32, 32, 3), -1.0),
        np.full((32, 32, 3), np.nan),
    ],
)
def test_bad_images_are_refused(image):
    with pytest.raises(ValueError, match="`image`"):
        detect(image)


def test_bad_captions_are_refused():
    image = render(ShapesWorld().scene(0), 32)
    with pytest.raises(ValueError, match="`caption`"):
        judge(image, "a corgi")
    with pytest.raises(TypeError, match="`text`"):
        judge(image, None)
