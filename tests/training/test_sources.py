"""Images and captions of a folder, in the order of a run."""

import json

import numpy as np
import pytest
from image_files import captioned_folder
from PIL import Image

from glide_pipelines.datasets import load_captioned_rows
from glide_pipelines.training import DatasetSource


@pytest.fixture
def image_folder(tmp_path):
    pytest.importorskip("datasets")
    numbers = range(4)
    images = [Image.new("RGB", (24, 16), (60 * n, 0, 0)) for n in numbers]
    several = [[f"a{n}", f"b{n}"] for n in numbers]
    return captioned_folder(tmp_path, images, text=[f"caption {n}" for n in numbers], several=several)


def make_source(folder, caption_column="text", **options):
    rows = load_captioned_rows(None, str(folder), "image", caption_column, split="train")
    return DatasetSource(rows, 8, seed=0, caption_column=caption_column, **options)


def test_a_folder_is_read_in_another_order_each_epoch(image_folder):
    source = make_source(image_folder)
    rng = np.random.default_rng(0)
    captions = [source(index, rng)[1] for index in range(40)]
    epochs = [captions[start : start + 4] for start in range(0, 40, 4)]
    assert all(sorted(epoch) == [f"caption {index}" for index in range(4)] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 3
    image, caption = source(7, rng)
    assert image.size == (8, 8)
    assert image.getpixel((4, 4))[0] == 60 * int(caption[-1])
    assert make_source(image_folder)(7, rng)[1] == caption


def test_one_of_several_captions_is_chosen(image_folder):
    source = make_source(image_folder, caption_column="several")
    assert {source(0, np.random.default_rng(seed))[1][0] for seed in range(20)} == {"a", "b"}


def test_flips_only_when_asked(tmp_path):
    pytest.importorskip("datasets")
    image = Image.new("RGB", (8, 8))
    image.paste((255, 255, 255), (0, 0, 4, 8))
    image.save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "white on the left"}) + "\n")
    for flip, expected in ((False, {255}), (True, {0, 255})):
        source = make_source(tmp_path, random_flip=flip)
        left = {source(0, np.random.default_rng(seed))[0].getpixel((0, 0))[0] for seed in range(20)}
        assert left == expected


def test_images_are_read_as_the_pipelines_read_them(image_folder):
    left = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    left.paste((255, 0, 0, 255), (0, 0, 8, 16))
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 3  # upside down
    for index in range(4):
        left.save(image_folder / f"{index}.png", exif=exif)
    image, _ = make_source(image_folder)(0, np.random.default_rng(0))
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((7, 0)) == (255, 0, 0)


def change_row(folder, number, **changes):
    metadata = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[number] |= changes
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("column", "value"), [("text", None), ("several", None), ("several", []), ("several", [None])])
def test_rows_without_a_caption_are_named(image_folder, column, value):
    change_row(image_folder, 2, **{column: value})
    (image_folder / "3.png").write_bytes(b"no image")  # none is opened for this
    message = (
        rf"`caption_column` '{column}' must hold a caption for every image, got none in 1 of 4 rows: 2 \(2\.png\)\."
    )
    with pytest.raises(ValueError, match=message):
        make_source(image_folder, caption_column=column)


@pytest.mark.parametrize(("column", "value"), [("text", ""), ("several", ["", None])])
def test_a_blank_caption_is_the_empty_prompt(image_folder, column, value):
    change_row(image_folder, 2, **{column: value})
    source = make_source(image_folder, caption_column=column)
    assert [source(index, np.random.default_rng(index))[1] for index in range(4)].count("") == 1


def test_what_is_missing_is_named(image_folder):
    with pytest.raises(ValueError, match=r"`caption_column` must be one of .*text.*, got 'label'"):
        make_source(image_folder, caption_column="label")
    rows = load_captioned_rows(None, str(image_folder), "image", "text", split="train")
    with pytest.raises(ValueError, match=r"`image_column` must be one of .*image.*, got 'picture'"):
        DatasetSource(rows, 8, seed=0, image_column="picture")
    with pytest.raises(ValueError, match="The dataset is empty"):
        DatasetSource(rows.select([]), 8, seed=0)
