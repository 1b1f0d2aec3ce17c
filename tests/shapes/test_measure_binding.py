"""tools/measure_binding.py, on a model that has learned nothing and on captions that are known to be true or not."""

import itertools

import pytest
from scripts import load_script
from tiny import tiny_components, tiny_unet

from glide_pipelines import GLIDEPipeline
from glide_pipelines.shapes import judge, render


@pytest.fixture
def script():
    return load_script("measure_binding", "tools")


def test_only_the_true_caption_is_true(script):
    for item in itertools.islice(script.related_scenes(3), 40):
        image = render(item[0], 64)
        texts = script.captions(*item)
        assert judge(image, texts["true caption"]).correct
        assert not judge(image, texts["colours swapped"]).correct
        assert not judge(image, texts["relation turned round"]).correct


def test_a_row_for_each_timestep_and_errors_that_repeat(script, tmp_path, capsys):
    pipe = GLIDEPipeline(**tiny_components(upsampler=False) | {"unet": tiny_unet(sample_size=32)})
    pipe.save_pretrained(tmp_path)
    outputs = []
    for _ in range(2):
        script.main(["--model", str(tmp_path), "--num-scenes", "5"])
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    rows = outputs[0].splitlines()
    assert "colours swapped" in rows[0] and len(rows) == 2 + len(script.TIMESTEPS)
    assert all(0 < float(cell) < 4 for row in rows[2:] for cell in row.strip("| ").split(" | ")[1:])
