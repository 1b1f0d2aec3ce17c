"""`glide train` and the scripts that are doors to it."""

import re
import runpy
import subprocess
import sys

import pytest
from scripts import ROOT

import glide_cli
from glide_cli.train import TRAININGS


@pytest.mark.parametrize("name", ["text_to_image", "inpaint", "noised_clip", "shapes_text_encoder"])
@pytest.mark.parametrize("options", [["--nosuch"], []])
def test_bad_options_are_refused_in_one_line(name, options, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"examples/train_{name}.py", *options])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "examples" / f"train_{name}.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(rf"train_{name}\.py: error: .*(--nosuch|--output_dir).*\n", err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "TRAINING"),
        (["text-to-video"], "text-to-video"),
        (["text-to-image"], "--output_dir"),
        (["text-to-image", "--output_dir", "x", "--max_train_steps", "1"], "There is no training data"),
    ],
)
def test_bad_options_of_the_command_are_refused_in_one_line(arguments, words, capsys):
    assert glide_cli.main(["train", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("glide train") and words in err


def test_help_does_not_load_torch():
    """It takes seconds."""
    code = "import sys, glide_cli; code = glide_cli.main(sys.argv[1:]); print('torch' in sys.modules, code)"
    for training in TRAININGS:
        command = [sys.executable, "-c", code, "train", training, "--output_dir", "x", "--max_train_steps", "1"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert result.stdout == "False 2\n", result.stderr
