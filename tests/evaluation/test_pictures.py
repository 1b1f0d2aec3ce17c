"""What a model is measured against: scenes, and datasets of captioned pictures with their faults."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from glide_pipelines.evaluation import DatasetPictures, ShapesPictures
from glide_pipelines.shapes import ShapesWorld, render


@pytest.fixture
def folder(tmp_path):
    """Four captioned pictures, wide ones."""

    def make(captions=("one", "two", "three", "four"), column="text"):
        rows = []
        for index, caption in enumerate(captions):
            Image.new("RGB", (32, 16), (60 * index, 0, 0)).save(tmp_path / f"{index}.png")
            rows.append({"file_name": f"{index}.png", column: caption})
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path)

    return make


def test_scenes_and_the_ones_after_them():
    pictures = ShapesPictures(3, seed=5)
    world = ShapesWorld(5, held_out=True)
    assert pictures.captions == [str(world.caption(index)) for index in range(3)]
    assert pictures.others().captions == [str(world.caption(index)) for index in range(3, 6)]
    assert np.array_equal(pictures.picture(1, 32), render(world.scene(1), 32))


def test_pictures_of_a_folder_in_their_order(folder):
    pictures = DatasetPictures(3, data_dir=folder())
    assert pictures.captions == ["one", "two", "three"]
    picture = pictures.picture(2, 8)
    assert picture.size == (8, 8) and picture.mode == "RGB" and picture.getpixel((4, 4)) == (120, 0, 0)
    assert len(DatasetPictures(100, data_dir=folder()).captions) == 4


def test_of_several_captions_the_first_is_taken(folder):
    data = folder([["one", "uno"], ["two", "due"]], "names")
    assert DatasetPictures(2, data_dir=data, caption_column="names").captions == ["one", "two"]


def test_a_picture_that_cannot_be_read_is_named(folder, caplog):
    data = folder()
    (folder_file := __import__("pathlib").Path(data) / "1.png").write_bytes(b"no picture")
    pictures = DatasetPictures(4, data_dir=data)
    assert pictures.picture(1, 8) is None and pictures.picture(0, 8) is not None
    assert f"{folder_file} cannot be read as a picture" in caplog.text
    assert pictures.name(1) == str(folder_file)


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        (
            ["one", "", None, "four"],
            {},
            r"`caption_column` 'text' must hold a caption .* got none in 2 of 4 rows: 1, 2\.",
        ),
        (["one"], {"caption_column": "title"}, "`caption_column` must be one of image, text, got 'title'"),
        (["one"], {"image_column": "photo"}, "`image_column` must be one of image, text, got 'photo'"),
        (["one"], {"split": "test"}, "split"),
        (["one"], {"data_dir": "nowhere"}, "`data_dir` must be a folder, got 'nowhere'"),
    ],
)
def test_faults_are_named(folder, captions, options, message):
    with pytest.raises(ValueError, match=message):
        DatasetPictures(10, **{"data_dir": folder(captions)} | options)


def test_a_folder_without_captions_is_named(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="`caption_column` must be one of image, got 'text'"):
        DatasetPictures(10, data_dir=str(tmp_path))
