"""`glide train` and the scripts that are doors to it."""

import argparse
import re
import runpy
import subprocess
import sys

import pytest
import torch
from scripts import ROOT
from trainings import parse

import glide_cli
from glide_cli import UserError
from glide_cli.train import TRAININGS
from glide_cli.train_finish import training_card
from glide_cli.train_options import make_accelerator, model_or_shapes, save_dtype
from glide_pipelines import pretrained_checkpoint


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
        ([], "text-to-image,inpaint,distill"),
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


def test_number_formats_have_the_names_of_the_other_commands_too():
    argv = ["--dataset_name", "shapes", "--output_dir", "x", "--max_train_steps", "1", "--save_dtype"]
    for name in ("bf16", "bfloat16"):
        assert save_dtype(parse("text-to-image", [*argv, name])) is torch.bfloat16


def test_the_model_to_start_from_may_be_one_that_ships(tmp_path):
    options = {"dataset_name": None, "pretrained_model_name_or_path": "emoji"}
    path = model_or_shapes(argparse.Namespace(**options), "pretrained_model_name_or_path", "the model")
    assert path == str(pretrained_checkpoint("emoji"))
    options["pretrained_model_name_or_path"] = str(tmp_path / "missing")
    with pytest.raises(UserError, match=r"^`pretrained_model_name_or_path` .*missing: no such folder"):
        model_or_shapes(argparse.Namespace(**options), "pretrained_model_name_or_path", "the model")


def test_the_card_of_a_lora_says_how_the_model_that_ships_is_opened():
    text = training_card("me/style", "GLIDEPipeline", "my_images", {}, adapts="emoji").text
    assert "from glide_pipelines import GLIDEPipeline, pretrained_checkpoint\n" in text
    assert 'GLIDEPipeline.from_pretrained(pretrained_checkpoint("emoji"))\n' in text


@pytest.mark.parametrize(("fast", "warned"), [("float32", True), ("bfloat16", False)])
def test_bf16_is_no_trap_where_the_processor_has_no_instructions_for_it(fast, warned, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("glide_cli.loading.find_dtype", lambda name, device: fast)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    argv = ["--dataset_name", "shapes", "--output_dir", str(tmp_path), "--mixed_precision", "bf16"]
    make_accelerator(parse("text-to-image", argv))
    assert ("faster without" in capsys.readouterr().out) is warned
