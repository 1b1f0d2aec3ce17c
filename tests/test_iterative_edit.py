"""The story of edits on one picture."""

import numpy as np
import pytest
from PIL import Image
from scripts import load_script
from tiny import tiny_inpaint_pipeline, tiny_pipeline

from glide_pipelines import GLIDEInpaintPipeline
from glide_pipelines.shapes import knows


@pytest.fixture
def script():
    return load_script("iterative_edit")


def test_each_picture_is_the_one_before_edited(script):
    pipe = tiny_inpaint_pipeline()
    masks = script.make_masks((32, 32))
    pictures = [np.asarray(picture) for picture in script.tell(quick(pipe), masks, seed=0)]
    assert len(pictures) == 1 + len(script.STORY) and (pictures[0] == 255).all()
    for before, after, mask in zip(pictures, pictures[1:], masks, strict=False):
        hole = np.asarray(mask) > 0
        assert (after[hole] != before[hole]).any()
        np.testing.assert_array_equal(after[~hole], before[~hole])


def quick(pipe):
    return lambda *args, **call: pipe(*args, **call, num_inference_steps=2, super_res_num_inference_steps=2)


@pytest.mark.parametrize(("make", "mode"), [(tiny_inpaint_pipeline, "fine-tuned"), (tiny_pipeline, "implicit")])
def test_the_strip(script, tmp_path, capsys, monkeypatch, make, mode):
    make().save_pretrained(tmp_path / "model")
    call = GLIDEInpaintPipeline.__call__
    steps = {"num_inference_steps": 2, "super_res_num_inference_steps": 2}
    monkeypatch.setattr(GLIDEInpaintPipeline, "__call__", lambda *args, **given: call(*args, **given, **steps))
    output = tmp_path / "story.png"
    script.main(["--output", str(output), "--model", str(tmp_path / "model")])
    strip = Image.open(output)
    count = 1 + len(script.STORY)
    assert strip.width == count * 33 - 1 and strip.height > 64
    said = capsys.readouterr().out
    assert f"inpainted in {mode} mode" in said
    numbers = [int(word) for word in said.split() if word.isdigit()]
    assert len(numbers) == 2 and numbers[0] == numbers[1] > 0


def test_the_prompts_are_of_the_world_that_the_checkpoint_knows(script):
    assert all(knows(prompt) for prompt, _ in script.STORY)


@pytest.mark.parametrize(
    ("name", "folder"), [("make_grid", "tools"), ("iterative_edit", "examples"), ("classifier_guidance", "examples")]
)
def test_an_ending_that_cannot_be_written_is_refused_before_drawing(name, folder, tmp_path, capsys):
    assert load_script(name, folder).main(["--output", str(tmp_path / "picture.txt")]) == 2
    assert "--output: must end in .png" in capsys.readouterr().err
