"""`examples/evaluate.py` and the sweep under it, on pipelines whose pictures are known."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline

from glide_pipelines import GLIDEPipeline
from glide_pipelines.evaluation import (
    CLASSIFIER_FREE,
    CLIP,
    DrawnPictures,
    Features,
    Guidance,
    ShapesPictures,
    draw_pictures,
    figures,
    measure,
    plot,
    run_sweep,
    table,
)
from glide_pipelines.shapes import render


ROOT = Path(__file__).parents[2]
QUICK = ("--num-captions", "6", "--batch-size", "2", "--steps", "1", "--super-res-steps", "1", "--device", "cpu")


def load_script():
    spec = importlib.util.spec_from_file_location("evaluate", ROOT / "examples" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


class Means(torch.nn.Module):
    """A feature network and a CLIP that can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.device_marker = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pictures, captions=None):
        if captions is not None:
            return pictures[:, 0, 0, 0].float() + torch.tensor([len(text) for text in captions])
        features = pictures.float().mean(dim=(2, 3))
        return Features(features, features.log_softmax(dim=1))


class Drawer(torch.nn.Module):
    """In place of a pipeline: draws the true scenes, at guidance above 1 the same one again and again."""

    default_size, device = (32, 32), torch.device("cpu")

    def __init__(self, pictures):
        super().__init__()
        self.components, self.calls = {}, []
        self.scenes = {str(caption): scene for scene, caption in pictures.examples}

    def __call__(self, prompt, guidance_scale, generator, **call):
        self.calls.append({"prompt": prompt, "guidance_scale": guidance_scale, "generator": generator, **call})
        scenes = [self.scenes[text] for text in prompt]
        if guidance_scale > 1:
            scenes = [next(iter(self.scenes.values()))] * len(prompt)
        return SimpleNamespace(images=[render(scene, 32) for scene in scenes])


@pytest.fixture
def pictures():
    return ShapesPictures(10, seed=0)


# -- drawing ------------------------------------------------------------------------------------------------------


def test_each_picture_is_drawn_from_its_own_seed_and_once(pictures, tmp_path):
    drawer = Drawer(pictures)
    for _ in range(2):
        draw_pictures(drawer, pictures.captions, tmp_path, seed=7, batch_size=4, guidance_scale=1.0, eta=0.5)
    assert [call["prompt"] for call in drawer.calls] == [
        pictures.captions[:4],
        pictures.captions[4:8],
        pictures.captions[8:],
    ]
    seeds = [generator.initial_seed() for call in drawer.calls for generator in call["generator"]]
    assert seeds == list(range(7, 17)) and all(call["eta"] == 0.5 for call in drawer.calls)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{index:06}.png" for index in range(10)]
    drawn = DrawnPictures(tmp_path, pictures.captions)
    assert all(np.array_equal(drawn.picture(index, 32), pictures.picture(index, 32)) for index in range(10))


def test_a_stopped_run_goes_on_with_the_same_pictures(pictures, tmp_path):
    drawer = Drawer(pictures)
    draw_pictures(drawer, pictures.captions, tmp_path, seed=7, batch_size=4, guidance_scale=1.0)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "000005.png").unlink()
    drawer.calls.clear()
    draw_pictures(drawer, pictures.captions, tmp_path, seed=7, batch_size=4, guidance_scale=1.0)
    assert [call["prompt"] for call in drawer.calls] == [pictures.captions[4:8]], "its batch, whole"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


# -- measuring ----------------------------------------------------------------------------------------------------


def test_what_is_measured_does_not_depend_on_the_batch(pictures):
    one, many = (measure(pictures, 32, Means(), Means(), batch_size, "") for batch_size in (1, 7))
    for name in ("features", "log_probabilities", "similarities"):
        assert torch.equal(getattr(one, name), getattr(many, name))
    pixels = np.stack([np.asarray(pictures.picture(index, 32)) for index in range(10)])
    assert torch.allclose(one.features, torch.tensor(pixels.mean(axis=(1, 2))).float())
    expected = pixels[:, 0, 0, 0].astype(float).mean() + np.mean([len(text) for text in pictures.captions])
    assert figures(None, one)["clip_score"] == pytest.approx(expected)


def test_pictures_that_cannot_be_read_are_left_out(pictures):
    whole = measure(pictures, 32, Means(), Means(), 3, "")
    picture = pictures.picture
    pictures.picture = lambda index, size: None if index in (3, 4, 5, 9) else picture(index, size)
    found = measure(pictures, 32, Means(), Means(), 3, "")
    assert found.unreadable == [3, 4, 5, 9]
    assert torch.equal(found.similarities, whole.similarities[[0, 1, 2, 6, 7, 8]])
    pictures.picture = lambda index, size: None
    with pytest.raises(ValueError, match="none of the pictures can be read"):
        measure(pictures, 32, Means(), None, 3, "")


def test_a_sweep_finds_the_model_that_repeats_itself(pictures, tmp_path):
    drawer = Drawer(pictures)
    sweep = [Guidance(CLASSIFIER_FREE, 1.0), Guidance(CLASSIFIER_FREE, 3.0)]
    results = run_sweep({CLASSIFIER_FREE: drawer}, sweep, pictures, tmp_path, {}, Means(), eta=0.5)
    true, repeated = results["sweep"]
    found = {name: value for name, value in true.items() if name not in ("name", "guidance", "scale")}
    assert found == {name: value for name, value in results["real"].items() if name != "name"}, "true drawings"
    assert true["fid"] > 1 and true["recall"] > 0.5 and true["whole_caption"] == 100
    assert (
        repeated["fid"] > true["fid"]
        and repeated["recall"] < true["recall"]
        and repeated["inception_score"] == pytest.approx(1)
    )
    assert repeated["whole_caption"] == pytest.approx(10) and "colour" in repeated["judge"]["accuracy"]
    assert "clip_score" not in true and results["unreadable"] == []
    assert [call["guidance_scale"] for call in drawer.calls] == [1.0, 3.0] and drawer.calls[0]["eta"] == 0.5


def test_pictures_of_other_settings_are_refused(pictures, tmp_path):
    drawer = Drawer(pictures)
    pipes, sweep = {CLASSIFIER_FREE: drawer}, [Guidance(CLASSIFIER_FREE, 1.0)]
    run_sweep(pipes, sweep, pictures, tmp_path, {"seed": 0}, Means())
    with pytest.raises(ValueError, match=r"`output`: the pictures in .* were made with seed 0 and not 1"):
        run_sweep(pipes, sweep, pictures, tmp_path, {"seed": 1}, Means())
    drawer.components["unet"] = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="were made with weights"):
        run_sweep(pipes, sweep, pictures, tmp_path, {"seed": 0}, Means())
    (tmp_path / "guidance-1/settings.json").write_text("[")
    with pytest.raises(ValueError, match="holds no settings of pictures"):
        run_sweep(pipes, sweep, pictures, tmp_path, {"seed": 0}, Means())
    assert len(drawer.calls) == 1


def test_fewer_pictures_than_neighbours_are_named(tmp_path):
    pictures = ShapesPictures(3, seed=0)
    with pytest.raises(ValueError, match="`pictures` must be more than the 3 `neighbours` of each, got 3"):
        run_sweep({CLASSIFIER_FREE: Drawer(pictures)}, [], pictures, tmp_path, {}, Means())


# -- table and plots ----------------------------------------------------------------------------------------------

ROWS = [
    {"name": "guidance-1", "guidance": CLASSIFIER_FREE, "scale": 1.0, "fid": 3.0, "precision": 0.5, "recall": 0.25},
    {"name": "clip-guidance-2.5", "guidance": CLIP, "scale": 2.5, "fid": 4.0, "precision": 0.75, "recall": 0.125},
]


def test_the_table_has_the_columns_that_were_measured():
    lines = table([{"name": "real pictures", "fid": 0.125}, *ROWS]).splitlines()
    assert lines[0] == "| pictures | FID | precision | recall |" and lines[1] == "|---|---|---|---|"
    assert lines[2] == "| real pictures | 0.12 |  |  |"
    assert lines[4] == "| clip-guidance-2.5 | 4.00 | 0.750 | 0.125 |"


def test_the_plots_show_a_curve_for_each_guidance(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    curves = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, label, **_: curves.append((x, y, label)))
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    scored = [{**row, "clip_score": row["scale"], "inception_score": 2 * row["scale"]} for row in ROWS]
    files = plot(scored, tmp_path)
    assert [file.name for file in files] == ["precision_recall.png", "inception_score_fid.png", "clip_score_fid.png"]
    assert curves[:2] == [([0.25], [0.5], CLASSIFIER_FREE), ([0.125], [0.75], CLIP)]
    assert curves[2:] == [
        ([3.0], [2.0], CLASSIFIER_FREE),
        ([4.0], [5.0], CLIP),
        ([3.0], [1.0], CLASSIFIER_FREE),
        ([4.0], [2.5], CLIP),
    ]
    monkeypatch.undo()
    files = plot(ROWS, tmp_path / "..")
    assert [file.name for file in files] == ["precision_recall.png"], "what was not measured has no plot"
    assert np.asarray(Image.open(files[0])).std() > 5


# -- the script ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = script.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_script_measures_a_checkpoint_and_goes_on(run, model, tmp_path):
    options = ("--output", tmp_path / "out", "--model", model, *QUICK)
    code, out, err = run(*options, "--guidance-scale", 1)
    assert code == 0, err
    assert out.startswith("| pictures | FID | Inception score | precision | recall | whole caption right, per cent |")
    first = json.loads((tmp_path / "out/results.json").read_text())
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/pictures/guidance-1").glob("*.png")}
    assert run(*options, "--guidance-scale", 1, 2)[0] == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn and len(drawn) == 6
    assert [row["name"] for row in results["sweep"]] == ["guidance-1", "guidance-2"]
    assert results["sweep"][0] == first["sweep"][0]
    assert results["settings"]["size"] == 32 and results["measured_by"]["features"] == "shapes"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    plots = {"precision_recall.png", "inception_score_fid.png", "accuracy_recall.png"}
    assert names == {"pictures", "results.json", "results.md"} | plots
    code, _, err = run(*options, "--guidance-scale", 1, "--seed", 3)
    assert code == 2 and err.count("\n") == 1 and "were made with seed 0 and not 3" in err


def test_it_guides_by_a_clip_and_scores_with_it(run, model, tmp_path):
    from tiny import tiny_clip, tiny_tokenizer

    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    clip = ("--clip", tmp_path / "clip", "--clip-model", tmp_path / "clip", "--clip-guidance-scale", 0, 500)
    code, out, err = run("--output", tmp_path / "out", "--model", model, *QUICK, "--guidance-scale", 1, *clip)
    assert code == 0, err
    rows = json.loads((tmp_path / "out/results.json").read_text())["sweep"]
    assert [row["name"] for row in rows] == ["guidance-1", "clip-guidance-0", "clip-guidance-500"]
    unguided, off, guided = rows
    assert unguided["clip_score"] == off["clip_score"] != guided["clip_score"]
    assert (tmp_path / "out/clip_score_fid.png").is_file() and "CLIP score" in out

    code, out, err = run(
        "--output", tmp_path / "out", "--model", model, *QUICK, "--guidance-scale", 2, *clip, "--clip-beside", 2
    )
    assert code == 0, err
    free, _, _, off, both = json.loads((tmp_path / "out/results.json").read_text())["sweep"]
    assert both["name"] == "guidance-2-clip-guidance-500" and both["guidance"] == "both guidances"
    assert free["clip_score"] == off["clip_score"] != both["clip_score"] != guided["clip_score"]


def test_the_comparison_is_the_evaluation_with_its_choices_made(monkeypatch, capsys, tmp_path):
    from tiny import tiny_clip, tiny_components, tiny_tokenizer, tiny_unet

    # Base pictures that the judge can read.
    model = GLIDEPipeline(**tiny_components(upsampler=False) | {"unet": tiny_unet(sample_size=32)})
    model.save_pretrained(tmp_path / "model")
    tiny_clip(image_size=32).save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    monkeypatch.syspath_prepend(ROOT / "examples")
    import compare_guidance
    import evaluate

    for module in (compare_guidance, evaluate):
        monkeypatch.setattr(module, "shapes_checkpoint", lambda name: tmp_path / name.replace("noised-", ""))
    few = ("--guidance-scale", "1", "3", "--clip-guidance-scale", "50")
    options = ("--output", tmp_path / "out", "--model", tmp_path / "model", *QUICK, *few)
    assert compare_guidance.main([str(option) for option in options]) == 0, capsys.readouterr().err
    names = {row["name"] for row in json.loads((tmp_path / "out/results.json").read_text())["sweep"]}
    assert names == {"guidance-1", "guidance-3", "clip-guidance-50", "guidance-3-clip-guidance-50"}
    for plot_file in ("precision_recall", "inception_score_fid", "clip_score_fid", "accuracy_recall"):
        assert (tmp_path / "out" / f"{plot_file}.png").is_file()


def test_it_measures_against_a_folder_of_pictures(run, model, tmp_path):
    rows = []
    data = tmp_path / "data"
    data.mkdir()
    for index in range(6):
        Image.new("RGB", (32, 40), (40 * index, 0, 90)).save(data / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"picture {index}"})
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "4.png").write_bytes(b"no picture")
    code, out, err = run(
        "--output",
        tmp_path / "out",
        "--model",
        model,
        "--data-dir",
        data,
        "--features",
        "shapes",
        *QUICK,
        "--guidance-scale",
        2,
    )
    assert code == 0, err
    assert "could not be read and are left out: 1 (" in out and "4.png)" in out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert len(results["unreadable"]) == 1 and set(results["real"]) == {"name", "inception_score"}
    assert "whole_caption" not in results["sweep"][0] and results["sweep"][0]["fid"] > 0


def test_two_processes_give_the_numbers_of_one(run, model, tmp_path):
    options = ("--model", model, *QUICK, "--guidance-scale", "1", "3")
    with socket.socket() as free:  # another run of the tests may be under way on this machine
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(ROOT / "examples/evaluate.py"), "--output", str(tmp_path / "two"), *options]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert run("--output", tmp_path / "one", *options)[0] == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["settings"] == one["settings"]
    for first, second in zip([one["real"], *one["sweep"]], [two["real"], *two["sweep"]], strict=True):
        assert first["name"] == second["name"]
        for name in ("fid", "inception_score", "precision", "recall", "whole_caption"):
            assert second[name] == pytest.approx(first[name], rel=1e-4), name
    pictures = sorted((tmp_path / "one/pictures").rglob("*.png"))
    assert len(pictures) == 12
    for path in pictures:
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert np.abs(np.asarray(Image.open(path), int) - np.asarray(Image.open(other), int)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-captions", "3"], "--num-captions must be more than the 3 --neighbours, got 3"),
        (["--guidance-scale", "nan"], "--guidance-scale: must be a finite number, got 'nan'"),
        (["--clip-guidance-scale", "inf"], "--clip-guidance-scale: must be a finite number, got 'inf'"),
        (["--guidance-scale"], "--guidance-scale or --clip-guidance-scale needs a scale"),
        (["--clip-beside", "3"], "--clip-beside needs --clip-guidance-scale"),
        (["--data-dir", "a", "--dataset-name", "b"], "--data-dir and --dataset-name: give one of them"),
        (["--data-dir", "nowhere"], "`data_dir` must be a folder, got 'nowhere'"),
        (["--features", "no/such/folder"], "`features` must be 'shapes', 'inception' or a vision model"),
        (["--clip", "no/such/folder"], "`clip` must be a CLIP with its tokenizer, got 'no/such/folder'"),
        (["--clip-guidance-scale", "1", "--clip-model", "no/such/folder"], "`clip_model` must be a noised CLIP"),
        (["--model", "no/such/folder"], "--model no/such/folder: no such folder"),
        (["--neighbours", "0"], "--neighbours: must be a whole number of 1 or more, got '0'"),
    ],
)
def test_bad_arguments_are_named_in_one_line(run, model, tmp_path, arguments, message):
    code, out, err = run("--output", tmp_path / "out", "--model", model, "--device", "cpu", *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("evaluate.py: error: ") and message in err
    assert not (tmp_path / "out").exists()
