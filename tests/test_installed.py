"""The wheel in an empty environment, outside the clone: every command does its work there.

    pytest -m slow -n 0 tests/test_installed.py

in one process, because each makes an environment of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from scripts import ROOT, load_script

from glide_cli import COMMANDS


pytestmark = pytest.mark.slow
QUICK = ("--steps", "2", "--super-res-steps", "2")
TRAIN = ("--max_train_steps", "2", "--train_batch_size", "4", "--dataset_name", "shapes")
Glide = Callable[..., str]


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """`bin` of an environment that holds the wheel with the extras that its commands need."""
    folder = tmp_path_factory.mktemp("installed")
    python = folder / "venv/bin/python"
    shutil.copytree(
        ROOT, folder / "tree", ignore=shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs")
    )
    build = f"from setuptools import build_meta; print(build_meta.build_wheel({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", build], cwd=folder / "tree", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 50 * 2**20
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    # All that the extra `eval` brings but torch-fidelity, whose torchvision must be of the same build as torch.
    evaluation = ["matplotlib", "torchmetrics"]
    pin = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    for what in ([pin], ["-c", str(ROOT / "constraints.txt"), f"{wheel}[app,train]", *evaluation]):
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-compile", *what], check=True)
    return python.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the commands run, one after the other, with what those before them wrote."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def glide(environment, folder) -> Glide:
    """Run the installed command, and return what it prints."""

    def run(*words: str | Path) -> str:
        command = [environment / "glide", *map(str, words)]
        result = subprocess.run(command, cwd=folder, env=clean(), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def clean() -> dict[str, str]:
    """This process's environment variables without those that lead to the clone."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def test_it_is_not_the_clone_s(environment, folder):
    code = "import glide_pipelines, glide_cli; print(glide_pipelines.__file__, glide_cli.__file__)"
    said = subprocess.check_output([environment / "python", "-c", code], cwd=folder, env=clean(), text=True)
    assert said.count("site-packages") == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_help(glide, command):
    assert glide(command, "--help").startswith("usage: glide")


def test_generate_and_again_and_edit(glide, folder):
    glide("a red circle above a blue square", "-o", "image.png", "--seed", "7", *QUICK, "--animate", "steps.webp")
    glide("--like", "image.png", "-o", "again.png")
    assert Image.open(folder / "image.png").tobytes() == Image.open(folder / "again.png").tobytes()
    glide("draw", "a star", "-o", "stars/", "--num-images", "2", "--fast", *QUICK)
    assert len(list((folder / "stars").iterdir())) == 2
    Image.new("L", (128, 128), 255).save(folder / "mask.png")
    for task in (("--mask", "mask.png"), ("--strength", "0.5"), ("--clip-guidance-scale", "2")):
        given = () if "--clip-guidance-scale" in task else ("--image", "image.png")
        glide("a green star above a blue square", *given, *task, "-o", "edited.png", *QUICK)
    glide("a star", "--image", "image.png", "--enlarge", "--super-res-steps", "1", "-o", "large.png")
    assert Image.open(folder / "large.png").size == (512, 512)


def test_convert(glide, folder):
    small = load_script("small", folder="tests/conversion")
    files = {"checkpoint_path": "base", "super_res_checkpoint_path": "upsample"}
    paths = {option: small.write_checkpoint(folder, kind) for option, kind in files.items()}
    tokenizer = small.write_tokenizer(folder)
    glide("convert", *small.arguments(**paths, tokenizer=tokenizer, dump_path="converted", **small.OPTIONS))
    glide("a red circle", "--model", "converted", "-o", "converted.png", *QUICK)
    glide("convert", "--model-path", "converted", "--dump-path", "back")
    assert {path.name for path in (folder / "back").iterdir()} >= {"base.pt", "upsample.pt"}


def test_train(glide, folder):
    glide("train", "text-to-image", *TRAIN, "--output_dir", "runs/base")
    glide("a red circle", "--model", "runs/base/pipeline", "-o", "trained.png", "--steps", "2")
    pretrained = ("--pretrained_model_name_or_path", "runs/base/pipeline")
    glide("train", "inpaint", *TRAIN, *pretrained, "--output_dir", "runs/inpaint")
    glide("train", "noised-clip", *TRAIN, "--output_dir", "runs/clip")
    assert (folder / "runs/inpaint/pipeline/model_index.json").exists()


def test_evaluate_and_benchmark(glide, environment, folder):
    few = ("--num-captions", "8", "--batch-size", "8", "--guidance-scale", "2", *QUICK)
    assert "FID" in glide("evaluate", "--output", "runs/evaluation", *few)
    assert "whole caption" in glide("evaluate-shapes", "--output", "shapes.json", *few)
    (model,) = environment.parent.glob("lib/*/site-packages/glide_pipelines/checkpoints/text-to-image")
    glide("benchmark", "--model", model, "--repeats", "1", "--steps", "1", "--output", "benchmark.json")
    assert (folder / "benchmark.json").stat().st_size


def test_the_app_answers(environment, folder):
    app = subprocess.Popen(
        [environment / "glide", "app", "--fast"],
        cwd=folder,
        env=clean(),
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, they ignore Ctrl-C, and their children would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = app.stdout.readline()  # the address, as soon as the page is there
        address = line.split()[4]
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"GLIDE" in answer.read()
    finally:
        app.send_signal(signal.SIGINT)
    assert app.wait(timeout=60) in (0, 130)
