"""FID and CLIP score while a model is trained."""

import itertools
import shutil
import time
from types import SimpleNamespace

import numpy as np
import pytest
from image_files import captioned_folder, noise_folder
from PIL import Image
from tiny import tiny_pipeline
from trainings import launch, make_config, read_log, run, run_training

from glide_cli import UserError
from glide_pipelines.evaluation import DatasetImages, PipelineMetrics, SampledImages, generate_images
from glide_pipelines.shapes.features import ShapesNetwork
from glide_pipelines.training import log


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("datasets")
    pixels = [np.random.default_rng(n).integers(0, 256, (8, 8, 3), dtype=np.uint8) for n in range(6)]
    return captioned_folder(tmp_path / "data", map(Image.fromarray, pixels), text=[f"caption {n}" for n in range(6)])


def test_sampled_images_are_those_that_a_folder_would_hold(tmp_path):
    pipe = tiny_pipeline(upsampler=False)
    captions = [f"caption {number}" for number in range(5)]
    generate_images(pipe, captions, tmp_path, seed=3, batch_size=2, num_inference_steps=2)
    sampled = SampledImages(pipe, captions, seed=3, batch_size=2, num_inference_steps=2)
    for number in range(5):
        assert sampled.image(number, 8).tobytes() == Image.open(tmp_path / f"{number:06}.png").tobytes()


def test_the_metrics_change_with_the_weights_alone(folder):
    pipe = tiny_pipeline(upsampler=False)
    metrics = PipelineMetrics(DatasetImages(6, data_dir=str(folder)), 8, ShapesNetwork(), num_inference_steps=2)
    first = metrics(pipe)
    assert {"fid", "precision", "recall"} <= first.keys() and first["fid"] > 0
    assert metrics(pipe) == first
    pipe.unet.conv_out.bias.data += 1
    assert metrics(pipe)["fid"] != first["fid"]
    with pytest.raises(ValueError, match="must hold 4 images or more, got 3"):
        PipelineMetrics(DatasetImages(3, data_dir=str(folder)), 8, ShapesNetwork())


def arguments(folder, *more):
    tiny_pipeline().save_pretrained(folder.parent / "tiny")
    data = ["--train_data_dir", str(folder), "--validation_data_dir", str(folder)]
    model = ["--pretrained_model_name_or_path", str(folder.parent / "tiny"), "--train_batch_size", "2"]
    return [*data, *model, "--output_dir", str(folder.parent / "run"), "--max_train_steps", "3", *more]


def test_too_few_images_are_refused_by_the_names_of_the_options(folder):
    message = (
        "`validation_data_dir` or `max_validation_samples`, for the metrics: `real` must hold 4 images or more, got 3"
    )
    with pytest.raises(ValueError, match=message):
        run_training("text-to-image", arguments(folder, *METRICS, "--max_validation_samples", "3"))


METRICS = ["--validation_metrics_steps", "2", "--features", "shapes", "--validation_inference_steps", "2"]


def test_the_log_of_a_run_has_them(folder, tmp_path):
    """Every two steps and at the end, whatever else is saved; and the run is what it is without. Of a folder of several
    splits it is the held-out one that is measured on."""
    shutil.copytree(folder, tmp_path / "splits" / "test")
    noise_folder(tmp_path / "splits" / "train", 2)  # too few to measure on
    data = ("--validation_data_dir", str(tmp_path / "splits"))
    run_training("text-to-image", arguments(folder, *METRICS, "--clip", "shapes", *data))
    measured = [line for line in read_log(tmp_path / "run") if "validation_fid" in line]
    assert [line["step"] for line in measured] == [2, 3]
    assert all(
        line.keys() >= {"validation_precision", "validation_recall", "validation_clip_score"} for line in measured
    )
    assert measured[0]["validation_fid"] != measured[1]["validation_fid"]
    (tmp_path / "run").rename(tmp_path / "measured")
    run_training("text-to-image", arguments(folder))
    files = [tmp_path / name / "checkpoint-3" / "model.safetensors" for name in ("run", "measured")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_processes_share_the_work(folder, tmp_path):
    run_training("text-to-image", arguments(folder, *METRICS, "--learning_rate", "1e-9"))
    result = launch(2, arguments(folder, *METRICS, "--learning_rate", "1e-9", "--output_dir", str(tmp_path / "two")))
    assert result.returncode == 0, result.stderr
    one, two = ([line for line in read_log(tmp_path / n) if "validation_fid" in line] for n in ("run", "two"))
    assert [line["step"] for line in two] == [line["step"] for line in one] == [2, 3]
    assert [line["validation_fid"] for line in two] == pytest.approx([line["validation_fid"] for line in one], rel=1e-3)


def test_it_comes_with_checkpoints_of_its_own_and_takes_no_time_of_the_steps(tmp_path, monkeypatch):
    steps, saved, seconds = [], [], itertools.count()
    monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: next(seconds), strftime=time.strftime))

    def measure(step):
        steps.append(step)
        saved.append((tmp_path / f"checkpoint-{step}").is_dir())
        for _ in range(1000):
            next(seconds)
        return {"validation_fid": 1.0}

    run(make_config(tmp_path, max_train_steps=5, validation_metrics_steps=2), on_checkpoint=measure)
    assert steps == [2, 4, 5] and all(saved)
    assert all(line.get("seconds_per_step", 0) < 10 for line in read_log(tmp_path))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--features", "shapes"], "`features` needs `validation_metrics_steps`"),
        (["--validation_metrics_steps", "2"], "`validation_metrics_steps` needs `features`: the network of the FID"),
    ],
)
def test_options_that_do_not_fit_are_named(folder, more, message):
    with pytest.raises(UserError, match=message):
        run_training("text-to-image", arguments(folder, *more))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--features", "/no/such"], "`features` must be .inception. or a vision model of transformers, got ./no/such"),
        (["--clip", "/no/such"], "`clip` must be a CLIP with its tokenizer, got ./no/such"),
        (["--max_validation_samples", "3"], "must hold 4 images or more, got 3"),
        (["--validation_inference_steps", "1001"], "`num_inference_steps` must"),
    ],
)
def test_what_cannot_be_measured_is_told_before_the_first_step(folder, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        run_training("text-to-image", arguments(folder, *METRICS, *more))
    assert not list((tmp_path / "run").glob("checkpoint-*"))
