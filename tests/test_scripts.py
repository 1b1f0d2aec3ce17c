"""The programs of examples/: what is wrong with their options is said in one line."""

import re
import sys

import pytest
from scripts import ROOT, load_script

from glide_pipelines.training.arguments import run_script


PROGRAMS = [path.stem for path in sorted((ROOT / "examples").glob("*.py")) if not path.stem.startswith("train_")]


@pytest.mark.parametrize("name", [*PROGRAMS, "train_shapes_features"])
def test_bad_options_are_refused_in_one_line(name, capsys):
    if name == "app":
        pytest.importorskip("gradio", reason="the app needs the extra `app` (in a clone: `pip install -e '.[app]'`)")
    assert load_script(name).main(["--nosuch"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"\w+\.py: error: .*(--nosuch|--output).*\n", err)


@pytest.mark.parametrize("name", ["text_to_image", "inpaint", "noised_clip", "shapes_text_encoder"])
@pytest.mark.parametrize("options", [["--nosuch"], []])
def test_bad_options_of_training_are_refused_in_one_line(name, options, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"examples/train_{name}.py", *options])
    with pytest.raises(SystemExit, match="2"):
        run_script(load_script(f"train_{name}").main)
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(rf"train_{name}\.py: error: .*(--nosuch|--output_dir).*\n", err)
