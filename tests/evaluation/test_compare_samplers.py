"""`tools/compare_samplers.py`: samplers by their number of steps, with and without a guidance interval."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image
from scripts import load_script
from tiny import tiny_components, tiny_unet

from glide_pipelines import GLIDEPipeline
from glide_pipelines.evaluation import plot_steps, steps_table
from glide_pipelines.shapes.images import ShapesImages


script = load_script("compare_samplers", folder="tools")
QUICK = ("--num-captions", "6", "--batch-size", "3", "--device", "cpu", "--guidance-scale", "5")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A tiny base model whose pictures the judge can read."""
    folder = tmp_path_factory.mktemp("model")
    GLIDEPipeline(**tiny_components(upsampler=False) | {"unet": tiny_unet(sample_size=32)}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(capsys, model):
    def call(*arguments):
        code = script.main([str(argument) for argument in ("--model", model, *QUICK, *arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_each_sampler_draws_at_each_number_of_steps_with_and_without_the_interval(run, model, tmp_path):
    options = ("--samplers", "ddim", "euler", "--num-steps", 4, 2, "--guidance-interval", "0.5", "1")
    code, out, err = run("--output", tmp_path / "out", *options)
    assert code == 0, err
    results = json.loads((tmp_path / "out/results.json").read_text())
    names = ["ddim-2", "ddim-4", "euler-2", "euler-4"]
    assert [row["name"] for row in results["sweep"]] == names + [f"{name}-guided-0.5-1" for name in names]
    assert "scheduler" not in results["settings"] and "steps" not in results["settings"]
    for name in names:
        assert f"| {name} | " in out and f"| {name}-guided-0.5-1 | " in out
    assert out.startswith("| whole caption right, per cent, by number of steps | 2 | 4 |")
    assert "| right, per cent | background | colour |" in out and "| spread of unstated attributes, bits |" in out
    assert (tmp_path / "out/accuracy_steps.png").is_file()

    def drawn(name):
        files = sorted((tmp_path / "out/pictures" / name).glob("*.png"))
        return np.stack([np.asarray(Image.open(file)) for file in files])

    # What is called a sampler's is that sampler's, and the interval is of its steps.
    pipe = GLIDEPipeline.from_pretrained(model)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    captions = ShapesImages(6, seed=0).captions[:3]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    guider = ClassifierFreeGuidance(5.0, start=0.5, stop=1.0)
    expected = pipe(captions, generator=generators, num_inference_steps=4, guider=guider).images
    assert np.array_equal(drawn("euler-4-guided-0.5-1")[:3], np.stack([np.asarray(image) for image in expected]))
    assert not np.array_equal(drawn("euler-4-guided-0.5-1"), drawn("euler-4"))
    assert not np.array_equal(drawn("euler-4"), drawn("ddim-4"))

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/pictures").rglob("*.png")}
    assert run("--output", tmp_path / "out", *options, "--num-steps", 4)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is drawn twice"


def test_the_model_is_in_memory_once(model):
    pipes = script.load_pipelines(script.parse_args(["--output", "x", "--model", model, "--device", "cpu"]))
    assert list(pipes) == ["dpm-solver++", "sde-dpm-solver++", "unipc", "ddim", "ddpm"]
    assert len({id(pipe.unet) for pipe in pipes.values()}) == 1
    assert len({type(pipe.scheduler) for pipe in pipes.values()}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--samplers", "best"], "argument --samplers: invalid choice: 'best'"),
        (["--num-steps", "0"], "argument --num-steps: must be a whole number of 1 or more, got '0'"),
        (["--guidance-interval", "0.5", "2"], "argument --guidance-interval: must be a number from 0 to 1, got '2'"),
        (["--guidance-interval", "0.5", "0.5"], "--guidance-interval must end after its START, got 0.5 0.5"),
        (["--num-captions", "3"], "`images` must be more than the 3 `neighbours` of each, got 3"),
    ],
)
def test_bad_options_are_named_in_one_line(run, tmp_path, options, message):
    code, out, err = run("--output", tmp_path / "out", *options)
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err
    assert not (tmp_path / "out").exists()


def test_the_plot_and_the_table_have_a_curve_for_each_sampler_and_interval(monkeypatch, tmp_path):
    from matplotlib.axes import Axes

    curves = {}
    draw = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, **how: (curves.update({how["label"]: (x, y)}), draw(self, x, y, **how))
    )
    rows = [
        {"sampler": sampler, "steps": steps, "interval": interval, "whole_caption": value}
        for sampler, steps, interval, value in [
            ("ddim", 20, None, 70.0),
            ("ddim", 5, None, 50.0),
            ("unipc", 5, None, 60.0),
            ("ddim", 5, [0.2, 0.8], 55.0),
        ]
    ]
    assert steps_table(rows).splitlines() == [
        "| whole caption right, per cent, by number of steps | 5 | 20 |",
        "|---|---|---|",
        "| ddim | 50.0 | 70.0 |",
        "| unipc | 60.0 |  |",
        "| ddim, guided from 0.2 to 0.8 | 55.0 |  |",
    ]
    assert plot_steps(rows, tmp_path) == [tmp_path / "accuracy_steps.png"]
    assert curves == {
        "ddim": ([5, 20], [50.0, 70.0]),
        "unipc": ([5], [60.0]),
        "ddim, guided from 0.2 to 0.8": ([5], [55.0]),
    }
    assert np.asarray(Image.open(tmp_path / "accuracy_steps.png")).std() > 5
