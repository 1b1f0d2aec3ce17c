"""What a model is measured against: scenes, and datasets of captioned images with their faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from image_files import captioned_folder, damaged_avif
from PIL import Image

from glide_pipelines.evaluation import DatasetImages
from glide_pipelines.shapes import ShapesWorld, render
from glide_pipelines.shapes.images import ShapesImages


@pytest.fixture
def folder(tmp_path):
    """Four captioned images, wide ones."""

    def make(captions=("one", "two", "three", "four"), column="text"):
        images = [Image.new("RGB", (32, 16), (60 * index, 0, 0)) for index in range(len(captions))]
        return str(captioned_folder(tmp_path, images, **{column: captions}))

    return make


def test_scenes_and_the_ones_after_them():
    images = ShapesImages(3, seed=5)
    world = ShapesWorld(5, held_out=True)
    assert images.captions == [str(world.caption(index)) for index in range(3)]
    assert images.others().captions == [str(world.caption(index)) for index in range(3, 6)]
    assert np.array_equal(images.image(1, 32), render(world.scene(1), 32))


def test_pictures_of_a_folder_in_their_order(folder):
    images = DatasetImages(3, data_dir=folder())
    assert images.captions == ["one", "two", "three"]
    image = images.image(2, 8)
    assert image.size == (8, 8) and image.mode == "RGB" and image.getpixel((4, 4)) == (120, 0, 0)
    assert len(DatasetImages(100, data_dir=folder()).captions) == 4


def test_a_random_choice_keeps_images_and_captions_together(folder):
    first = DatasetImages(4, data_dir=folder())
    for seed in range(3):
        some = DatasetImages(2, data_dir=folder(), shuffle_seed=seed)
        places = [first.captions.index(caption) for caption in some.captions]
        assert [some.name(0), some.name(1)] == [first.name(place) for place in places]
        assert DatasetImages(2, data_dir=folder(), shuffle_seed=seed).captions == some.captions
    assert len({DatasetImages(1, data_dir=folder(), shuffle_seed=seed).captions[0] for seed in range(8)}) > 1


def test_the_column_of_classes(folder):
    data = folder(["one", "two"])
    assert DatasetImages(1, data_dir=data).labels is None
    assert DatasetImages(1, data_dir=data, label_column="text").labels == ["one"]
    with pytest.raises(ValueError, match="`label_column` must be one of image, text, got 'name'"):
        DatasetImages(1, data_dir=data, label_column="name")


def test_of_several_captions_the_first_is_taken(folder):
    data = folder([["one", "uno"], ["two", "due"]], "names")
    assert DatasetImages(2, data_dir=data, caption_column="names").captions == ["one", "two"]
    data = folder([["", None, "one"], ["two", "due"]], "names")
    assert DatasetImages(2, data_dir=data, caption_column="names").captions == ["one", "two"]


def test_pictures_are_read_as_the_pipelines_read_them(folder):
    data = folder()
    left = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    left.paste((255, 0, 0, 255), (0, 0, 8, 16))
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 3  # upside down
    left.save(Path(data) / "0.png", exif=exif)
    image = DatasetImages(1, data_dir=data).image(0, 8)
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((7, 0)) == (255, 0, 0)


def test_a_picture_that_cannot_be_read_is_named(folder, caplog):
    data = folder()
    (folder_file := Path(data) / "1.png").write_bytes(b"no image")
    images = DatasetImages(4, data_dir=data)
    assert images.image(1, 8) is None and images.image(0, 8) is not None
    assert f"{folder_file} cannot be read as an image" in caplog.text
    assert images.name(1) == str(folder_file)
    folder_file.write_bytes(damaged_avif())
    assert images.image(1, 8) is None
    assert f"{folder_file} cannot be read as an image: Failed to decode" in caplog.text


def test_a_row_without_an_image_is_named(tmp_path, caplog):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    rows = {"image": [Image.new("RGB", (8, 8)), None], "text": ["one", "two"]}
    Dataset.from_dict(rows, Features(image=ImageFeature(), text=Value("string"))).save_to_disk(tmp_path)
    images = DatasetImages(2, data_dir=str(tmp_path))
    assert images.image(0, 8) is not None and images.image(1, 8) is None
    assert "row 1 cannot be read as an image" in caplog.text


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        (
            ["one", "", None, "four"],
            {},
            r"`caption_column` 'text' must hold a caption .* got none in 2 of 4 rows: 1, 2\.",
        ),
        ([[], ["two"]], {}, r"`caption_column` 'text' must hold a caption .* got none in 1 of 2 rows: 0\."),
        ([1, 2], {}, r"got none in 2 of 2 rows: 0, 1\."),
        (["one"], {"caption_column": "title"}, "`caption_column` must be one of image, text, got 'title'"),
        (["one"], {"image_column": "photo"}, "`image_column` must be one of image, text, got 'photo'"),
        (["one"], {"split": "test"}, "split"),
        (["one"], {"data_dir": "nowhere"}, "`data_dir` must be a folder, got 'nowhere'"),
    ],
)
def test_faults_are_named(folder, captions, options, message):
    with pytest.raises(ValueError, match=message):
        DatasetImages(10, **{"data_dir": folder(captions)} | options)


def test_pictures_that_no_metadata_lists_are_counted_and_named(folder):
    data = Path(folder())
    for name in ("extra.png", "EXTRA.JPG", "deep/extra.jpeg"):
        (data / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(data / name)
    (data / "notes.txt").write_text("no image")
    for options in ({}, {"split": "train[:2]"}):
        with pytest.raises(
            ValueError,
            match=r"3 of the 7 images in .* no row of its metadata: EXTRA\.JPG, deep/extra\.jpeg, extra\.png\.",
        ):
            DatasetImages(4, data_dir=str(data), **options)


def test_a_picture_beside_the_captioned_one_is_listed(folder):
    data = Path(folder())
    rows = [json.loads(line) for line in (data / "metadata.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        row["mask_file_name"] = f"mask{index}.png"
        Image.new("L", (32, 16)).save(data / row["mask_file_name"])
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = DatasetImages(4, data_dir=str(data))
    assert images.name(3) == str(data / "3.png") and len(images.captions) == 4


def test_datasets_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"is in no file of {tmp_path}: .*; there are no files\."):
        DatasetImages(4, data_dir=str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "../elsewhere.png", "text": "one"}))
    with pytest.raises(ValueError, match=r"names 1 files that are not there, as `file_name`: \.\./elsewhere\.png;"):
        DatasetImages(4, data_dir=str(tmp_path))

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'some/dataset' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(ValueError, match="`dataset_name` 'some/dataset' cannot be read: Couldn't reach"):
        DatasetImages(4, dataset_name="some/dataset")


def test_a_folder_without_captions_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(
        ValueError, match=r"`caption_column` 'text' is in no file of .*: it must hold .*; there are a\.png\."
    ):
        DatasetImages(10, data_dir=str(tmp_path))
