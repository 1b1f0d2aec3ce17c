import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_tokenizer

from glide_pipelines.images import images_to_tensor
from glide_pipelines.shapes import BACKGROUNDS, ShapesWorld, describe_fully
from glide_pipelines.training import (
    DatasetSource,
    LowResolution,
    ShapesSource,
    TextToImageDataset,
    TimestepWeighting,
)
from glide_pipelines.training.data import crop_square, make_loader


ROOT = Path(__file__).parents[2]
LOW_RESOLUTION = LowResolution(32, 8, 16, low_res_blur=0.5, low_res_noise=0.1)


def make_dataset(resolution=16, **changes):
    arguments = {"seed": 3, "proportion_empty_prompts": 0.2} | changes
    return TextToImageDataset(ShapesSource(resolution, 3), tiny_tokenizer(), TimestepWeighting(1000), **arguments)


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def numbers(first, steps, batch, accumulation, rank, world):
    return list(make_loader(None, first, steps, batch, accumulation, rank, world, 0).batch_sampler)


def test_an_example_depends_on_its_number_alone():
    dataset = make_dataset(32, low_resolution=LOW_RESOLUTION)
    later = dataset[1000]
    dataset[7]
    assert_same(later, dataset[1000])
    assert_same(later, make_dataset(32, low_resolution=LOW_RESOLUTION)[1000])
    assert not torch.equal(later["noise"], dataset[1001]["noise"])
    other_seed = make_dataset(32, seed=4, low_resolution=LOW_RESOLUTION)[1000]
    assert not torch.equal(later["noise"], other_seed["noise"])


def test_pictures_are_of_8_bit_and_noise_is_unit():
    dataset = make_dataset()
    examples = [dataset[index] for index in range(64)]
    pictures = torch.stack([example["pixel_values"] for example in examples])
    levels = (pictures + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert pictures.min() == -1 and pictures.max() == 1
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


def test_what_is_drawn_for_an_example_tells_nothing_of_its_scene():
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


def test_processes_share_out_the_examples_of_one():
    whole = [numbers(first=40, steps=3, batch=8, accumulation=1, rank=0, world=1)]
    shared = [numbers(first=40, steps=3, batch=2, accumulation=2, rank=rank, world=2) for rank in range(2)]
    for step in range(3):
        micro_batches = shared[0][2 * step : 2 * step + 2] + shared[1][2 * step : 2 * step + 2]
        assert (
            [number for batch in micro_batches for number in batch]
            == whole[0][step]
            == list(range(40 + 8 * step, 48 + 8 * step))
        )


def test_small_and_large_crop_are_of_the_same_place():
    gradient = np.arange(32 * 32).reshape(32, 32) * 255 // 1024
    picture = Image.fromarray(np.stack([gradient, gradient.T, gradient], axis=2).astype(np.uint8))
    for seed in range(5):
        high, low = LowResolution(32, 8, 16)(picture, np.random.default_rng(seed))
        assert high.size == (16, 16) and low.shape == (3, 4, 4)
        torch.testing.assert_close(images_to_tensor([high.reduce(4)])[0], low)


def test_low_resolution_is_corrupted_in_8_bit():
    picture = Image.new("RGB", (32, 32), (100, 150, 200))
    _, low = LowResolution(32, 8, low_res_noise=0.2)(picture, np.random.default_rng(0))
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


def test_pictures_are_cropped_and_never_squashed():
    wide = Image.new("RGB", (60, 20), "black")
    wide.paste((255, 0, 0), (44, 0, 60, 20))
    assert crop_square(wide, 10, None).getcolors() == [(100, (0, 0, 0))]
    offsets = {
        crop_square(wide, 10, np.random.default_rng(seed)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        for seed in range(20)
    }
    assert len(offsets) > 3
    assert crop_square(Image.new("RGB", (7, 5)), 16, None).size == (16, 16)


@pytest.fixture
def picture_folder(tmp_path):
    pytest.importorskip("datasets")
    rows = []
    for index in range(4):
        Image.new("RGB", (24, 16), (60 * index, 0, 0)).save(tmp_path / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"caption {index}", "several": [f"a{index}", f"b{index}"]})
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_folder_is_read_in_another_order_each_epoch(picture_folder):
    source = DatasetSource(None, str(picture_folder), 8, seed=0)
    rng = np.random.default_rng(0)
    captions = [source(index, rng)[1] for index in range(40)]
    epochs = [captions[start : start + 4] for start in range(0, 40, 4)]
    assert all(sorted(epoch) == [f"caption {index}" for index in range(4)] for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 3
    picture, caption = source(7, rng)
    assert picture.size == (8, 8)
    assert picture.getpixel((4, 4))[0] == 60 * int(caption[-1])
    assert DatasetSource(None, str(picture_folder), 8, seed=0)(7, rng)[1] == caption


def test_one_of_several_captions_is_drawn(picture_folder):
    source = DatasetSource(None, str(picture_folder), 8, seed=0, caption_column="several")
    assert {source(0, np.random.default_rng(seed))[1][0] for seed in range(20)} == {"a", "b"}


def test_flips_only_when_asked(tmp_path):
    pytest.importorskip("datasets")
    picture = Image.new("RGB", (8, 8))
    picture.paste((255, 255, 255), (0, 0, 4, 8))
    picture.save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "white on the left"}) + "\n")
    for flip, expected in ((False, {255}), (True, {0, 255})):
        source = DatasetSource(None, str(tmp_path), 8, seed=0, random_flip=flip)
        left = {source(0, np.random.default_rng(seed))[0].getpixel((0, 0))[0] for seed in range(20)}
        assert left == expected


def test_pictures_are_read_as_the_pipelines_read_them(picture_folder):
    left = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    left.paste((255, 0, 0, 255), (0, 0, 8, 16))
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 3  # upside down
    for index in range(4):
        left.save(picture_folder / f"{index}.png", exif=exif)
    picture, _ = DatasetSource(None, str(picture_folder), 8, seed=0)(0, np.random.default_rng(0))
    assert picture.getpixel((0, 0)) == (255, 255, 255) and picture.getpixel((7, 0)) == (255, 0, 0)


def change_row(folder, number, **changes):
    metadata = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in metadata.read_text().splitlines()]
    rows[number] |= changes
    metadata.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(("column", "value"), [("text", None), ("several", None), ("several", []), ("several", [None])])
def test_rows_without_a_caption_are_named(picture_folder, column, value):
    change_row(picture_folder, 2, **{column: value})
    (picture_folder / "3.png").write_bytes(b"no picture")  # none is opened for this
    message = rf"`caption_column` '{column}' must hold a caption for every picture, got none in 1 of 4 rows: 2\."
    with pytest.raises(ValueError, match=message):
        DatasetSource(None, str(picture_folder), 8, seed=0, caption_column=column)


@pytest.mark.parametrize(("column", "value"), [("text", ""), ("several", ["", None])])
def test_a_blank_caption_is_the_empty_prompt(picture_folder, column, value):
    change_row(picture_folder, 2, **{column: value})
    source = DatasetSource(None, str(picture_folder), 8, seed=0, caption_column=column)
    assert [source(index, np.random.default_rng(index))[1] for index in range(4)].count("") == 1


def test_what_is_missing_is_named(picture_folder, tmp_path):
    with pytest.raises(ValueError, match=r"`caption_column` must be one of .*text.*, got 'label'"):
        DatasetSource(None, str(picture_folder), 8, seed=0, caption_column="label")
    with pytest.raises(ValueError, match="`train_data_dir` must be a folder"):
        DatasetSource(None, str(tmp_path / "nothing"), 8, seed=0)


def test_a_share_of_the_captions_leaves_nothing_unsaid():
    def captions(share):
        source = ShapesSource(8, 3, share)
        return [source(index, np.random.default_rng(index))[1] for index in range(200)]

    world = ShapesWorld(3)
    full = [str(describe_fully(world.scene(index))) for index in range(200)]
    assert captions(0.0) == [str(world.caption(index)) for index in range(200)]
    assert captions(1.0) == full
    assert 70 < sum(map(str.__eq__, captions(0.5), full)) < 130


GROUP_IS_STOPPED = """
import os, signal, sys, time
import torch
from glide_pipelines.training.data import make_loader
from glide_pipelines.training.trainer import _stop_signal

class Slow(torch.utils.data.Dataset):
    def __getitem__(self, index):
        time.sleep(0.05)
        return index

if __name__ == "__main__":
    torch.multiprocessing.set_start_method("spawn")  # a forked worker would handle Ctrl-C as its parent does
    with _stop_signal() as stop:
        for number, batch in enumerate(make_loader(Slow(), 0, 30, 1, 1, 0, 1, num_workers=1)):
            if number == 2:
                os.killpg(0, getattr(signal, sys.argv[1]))
    print(number, stop.is_set)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_workers_outlive_what_stops_the_run(name, tmp_path):
    """Ctrl-C and `timeout` reach them too; the trainer still needs them until it has saved its checkpoint."""
    script = tmp_path / "script.py"
    script.write_text(GROUP_IS_STOPPED)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), name]
    result = subprocess.run(
        command, env=environment, start_new_session=True, capture_output=True, text=True, timeout=300
    )
    assert result.stdout == "29 True\n", result.stderr
