import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.tracking import GeneralTracker
from diffusers import DPMSolverMultistepScheduler
from image_files import captioned_folder, noise
from PIL import Image
from safetensors.torch import load_file
from scripts import ROOT
from tiny import tiny_pipeline, tiny_text_encoder, tiny_tokenizer
from trainings import SMALL, launch, parse, run_training
from transformers import GPT2Tokenizer

from glide_cli import UserError, train_stage
from glide_cli.train_options import MODEL_CONFIGS, TrainingData, training_config
from glide_pipelines import (
    GLIDEDDIMScheduler,
    GLIDEDDPMScheduler,
    GLIDEPipeline,
    GLIDEUNet2DConditionModel,
    shapes_checkpoint,
    training,
)
from glide_pipelines.sampling import Stage
from glide_pipelines.shapes import ShapesSource, train_tokenizer
from glide_pipelines.training import (
    LearningRate,
    PipelineParts,
    ShardWriter,
    TextToImageDataset,
    TimestepWeighting,
    TrainingConfig,
    save_validation_images,
)


BASE, SUPER_RES, NOISED_CLIP = (MODEL_CONFIGS / f"shapes_{kind}.json" for kind in ("base", "super_res", "noised_clip"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(folder)
    return folder


@pytest.fixture
def arguments(tmp_path, tokenizer):
    """Arguments of a tiny run of a stage."""

    def make(stage, *more, steps=2, dataset_name="shapes"):
        sizes = json.loads(json.dumps(SMALL))
        if stage == "super_res":
            sizes["unet"] |= {"sample_size": 32, "in_channels": 6}
            sizes["scheduler"] = {"beta_schedule": "linear"}
            more = ("--crop_size", "16", "--low_res_blur", "0.5", "--low_res_noise", "0.05", *more)
        path = tmp_path / f"{stage}.json"
        path.write_text(json.dumps(sizes))
        fixed = {"stage": stage, "model_config": path, "output_dir": tmp_path / stage, "max_train_steps": steps}
        fixed |= {"train_batch_size": 2, "pipeline_dir": tmp_path / "pipeline"}
        fixed |= {"tokenizer_name": tokenizer}
        if dataset_name is not None:
            fixed["dataset_name"] = dataset_name
        return [part for name, value in fixed.items() for part in (f"--{name}", str(value))] + list(more)

    return make


def test_two_stages_make_one_pipeline(arguments, tmp_path, monkeypatch, capsys):
    # The upsampler may be ready first.
    run_training("text-to-image", arguments("super_res", "--save_dtype", "fp16"))
    folder = tmp_path / "pipeline"
    assert not (folder / "model_index.json").exists()
    lacking = f"It generates once a base is beside it: --stage base --pipeline_dir {folder}.\n"
    assert capsys.readouterr().out.endswith(f"The trained model is in {folder}.\n{lacking}")
    run_training("text-to-image", arguments("base", "--save_dtype", "fp16"))
    assert lacking not in capsys.readouterr().out
    assert not list(tmp_path.glob("*.partial"))

    pipe = GLIDEPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, GLIDEDDPMScheduler) and isinstance(pipe.super_res_scheduler, GLIDEDDIMScheduler)
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert pipe.super_res_scheduler.config.beta_schedule == "linear"
    assert pipe.config.prompt_domain == "shapes"
    assert load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.bias"].dtype == torch.float16
    image = pipe("a red circle", num_inference_steps=2, super_res_num_inference_steps=2).images[0]
    assert image.size == (32, 32)

    # Going on from it trains the same model further, at its own sizes, and leaves the other stage as it is.
    more = ["--pretrained_model_name_or_path", str(folder), "--learning_rate", "1e-2", "--ema_decay", "0"]
    for target in (folder, tmp_path / "tuned"):
        run = str(tmp_path / f"to-{target.name}")
        run_training("text-to-image", arguments("base", *more, "--output_dir", run, "--pipeline_dir", str(target)))
        tuned = GLIDEPipeline.from_pretrained(target)
        assert not torch.equal(tuned.unet.conv_in.weight, pipe.unet.conv_in.weight)
        assert torch.equal(tuned.super_res_unet.conv_in.weight, pipe.super_res_unet.conv_in.weight)
        assert isinstance(tuned.super_res_scheduler, GLIDEDDIMScheduler)


def test_other_images_may_need_more_steps_than_the_model_recommended(arguments, tmp_path, capfd):
    run_training("text-to-image", arguments("base", steps=1))
    run_training("text-to-image", arguments("super_res", steps=1))
    folder = tmp_path / "pipeline"
    pipe = GLIDEPipeline.from_pretrained(folder)
    for scheduler in (pipe.scheduler, pipe.super_res_scheduler):
        scheduler.register_to_config(default_timesteps=[999, 500])
    pipe.register_to_config(default_guidance_scale=1.0)
    pipe.save_pretrained(folder)
    more = ["--pretrained_model_name_or_path", str(folder), "--output_dir", str(tmp_path / "run")]
    run_training("text-to-image", arguments("base", *more, "--pipeline_dir", str(tmp_path / "tuned"), steps=1))
    tuned = GLIDEPipeline.from_pretrained(tmp_path / "tuned")
    assert (tuned.default_steps("base"), tuned.default_steps("super_res")) == ("100", 2)
    assert tuned.default_guidance_scale == 3.0
    assert "recommends neither few steps nor a guidance" in capfd.readouterr().out


@pytest.mark.parametrize("recorded", [True, None])
def test_the_other_stage_keeps_its_consistency(arguments, tmp_path, recorded):
    """Also where `model_index.json` was written before there was any."""
    run_training("text-to-image", arguments("super_res", steps=1))
    run_training("text-to-image", arguments("base", steps=1))
    path = tmp_path / "pipeline" / "model_index.json"
    index = json.loads(path.read_text()) | {"low_res_consistency": recorded}
    if recorded is None:
        del index["low_res_consistency"]
    path.write_text(json.dumps(index))
    run_training("text-to-image", arguments("base", "--output_dir", str(tmp_path / "again"), steps=1))
    assert json.loads(path.read_text())["low_res_consistency"] is bool(recorded)


def test_a_tokenizer_without_padding_pads_with_the_end(arguments, tokenizer, tmp_path):
    """GPT-2's own on the Hub has no padding token."""
    (tmp_path / "bare").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tokenizer / name, tmp_path / "bare")
    assert GPT2Tokenizer.from_pretrained(tmp_path / "bare").pad_token is None
    run_training("text-to-image", arguments("base", "--tokenizer_name", str(tmp_path / "bare")))
    trained = GLIDEPipeline.from_pretrained(tmp_path / "pipeline").tokenizer
    assert trained.pad_token == trained.eos_token == "<|endoftext|>"


@pytest.fixture
def image_folder(tmp_path):
    pytest.importorskip("datasets")
    images = [Image.new("RGB", (24, 16), (60 * index, 0, 0)) for index in range(3)]
    data = captioned_folder(tmp_path / "data", images, caption=[f"A Lighthouse {index}" for index in range(3)])
    return ["--train_data_dir", str(data), "--caption_column", "caption"]


def test_a_folder_of_images(arguments, image_folder, tmp_path):
    run_training("text-to-image", arguments("base", *image_folder, dataset_name=None))
    pipe = GLIDEPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.config.prompt_domain is None and pipe.super_res_unet is None


def test_epochs_of_some_of_the_images(arguments, image_folder, tmp_path, capsys):
    """Two of three images, five times, two at once."""
    options = arguments("base", *image_folder, "--num_train_epochs", "5", "--max_train_samples", "2", dataset_name=None)
    place = options.index("--max_train_steps")
    run_training("text-to-image", options[:place] + options[place + 2 :])
    state = json.loads((tmp_path / "base" / "checkpoint-5" / "state.json").read_text())
    assert state["progress"]["examples"] == 10 and "2" in str(state["progress"]["dataset"])


def test_another_resolution_of_a_resumed_run_is_told(arguments, tmp_path, capsys):
    run_training("text-to-image", arguments("base", "--resolution", "16"))
    more = ("--resume_from_checkpoint", "latest", "--resolution")
    for steps, size, told in ((3, "16", False), (4, "20", True)):
        capsys.readouterr()
        run_training("text-to-image", arguments("base", *more, size, steps=steps))
        assert ("The run goes on with `resolution` 20; it was 16." in capsys.readouterr().out) == told
    state = tmp_path / "base" / "checkpoint-4" / "state.json"  # as checkpoints were before they held it
    saved = json.loads(state.read_text())
    del saved["progress"]["settings"]["resolution"]
    state.write_text(json.dumps(saved))
    run_training("text-to-image", arguments("base", *more, "16", steps=5))
    assert "goes on with" not in capsys.readouterr().out


def test_the_held_out_part_of_a_dataset_is_measured_on(arguments, image_folder, tmp_path):
    """And not the part that is trained on, which would hide that a model learns its images by heart."""
    for split in ("train", "test"):
        captioned_folder(tmp_path / "splits" / split, [noise()], caption=["a caption"])
    (tmp_path / "splits" / "train" / "0.png").write_bytes(b"nobody reads it")
    data = ["--validation_data_dir", str(tmp_path / "splits")]
    run_training("text-to-image", arguments("base", *image_folder, *data, dataset_name=None))
    assert "validation_loss" in (tmp_path / "base" / "log.jsonl").read_text()


def test_held_out_images_are_measured_at_each_checkpoint(arguments, image_folder, tmp_path):
    folder = image_folder[image_folder.index("--train_data_dir") + 1]
    more = ["--validation_data_dir", folder, "--max_validation_samples", "2", "--checkpointing_steps", "1"]
    run_training("text-to-image", arguments("base", *image_folder, *more, dataset_name=None))
    lines = [json.loads(line) for line in (tmp_path / "base" / "log.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in measured] == [1, 2]
    assert len(measured[0]["validation_mse_by_quarter"]) == 4
    assert measured[0]["validation_loss"] != measured[1]["validation_loss"]
    with pytest.raises(ValueError, match="`validation_data_dir` must be a folder, got 'nothing'"):
        run_training("text-to-image", arguments("base", "--validation_data_dir", "nothing"))


def test_the_held_out_loss_is_the_same_whatever_the_batch():
    """Of the same images, noise and timesteps: only the weights change it."""
    parts = tiny_pipeline()
    stage = Stage.of(parts, "base")
    dataset = TextToImageDataset(ShapesSource(8, 0), parts.tokenizer, TimestepWeighting(1000), 0)
    first, again = (training.held_out_loss(stage, dataset, 8, batch_size) for batch_size in (8, 3))
    for name, value in first.items():
        assert again[name] == pytest.approx(value, rel=1e-4)
    stage.unet.conv_out.bias.data += 1
    assert training.held_out_loss(stage, dataset, 8, 8)["validation_mse"] > first["validation_mse"] + 0.1


def test_a_new_model_reads_the_captions_that_it_is_trained_on(arguments, image_folder, tmp_path, capsys):
    """In tokens of its own, of lower case like its prompts; not in those of the shapes world."""

    def train(stage, *more):
        options = arguments(stage, *image_folder, *more, dataset_name=None)
        place = options.index("--tokenizer_name")
        run_training("text-to-image", options[:place] + options[place + 2 :])
        return capsys.readouterr().out

    assert "tokenizer of 270 entries on the captions of data" in train("base")
    tokenizer = GLIDEPipeline.from_pretrained(tmp_path / "pipeline").tokenizer
    assert tokenizer.tokenize("a lighthouse") == ["a", "Ġlighthouse"]
    # The upsampler beside it must read the same tokens, whatever it is trained on.
    assert f"The tokenizer is that of the pipeline, {tmp_path / 'pipeline' / 'tokenizer'}" in train("super_res")
    assert GLIDEPipeline.from_pretrained(tmp_path / "pipeline").tokenizer.get_vocab() == tokenizer.get_vocab()


def test_tar_shards_and_how_many_captions_are_cut(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "data").mkdir()
    writer = ShardWriter(tmp_path / "data", shard_size=2)
    for index in range(3):
        file = io.BytesIO()
        Image.new("RGB", (24, 16), (60 * index, 0, 0)).save(file, "PNG")
        writer.add(file.getvalue(), ".png", f"a lighthouse {index}" + index * " of many words")
    writer.close()
    options = arguments("base", "--train_shards", str(tmp_path / "data/{000000..000001}.tar"), dataset_name=None)
    run_training("text-to-image", options)
    out = capsys.readouterr().out
    assert "1 of 3 captions (33 %) are longer than the text context of 24 tokens (tokenizer of" in out
    assert (tmp_path / "pipeline" / "model_index.json").exists()
    assert TrainingData.load(parse("text-to-image", [*options, "--max_train_samples", "2"])).num_images == 2
    with pytest.raises(UserError, match="Pass only one of `dataset_name` and `train_shards`"):
        run_training("text-to-image", [*options, "--dataset_name", "shapes"])
    with pytest.raises(UserError, match="`shuffle_buffer` is for `train_shards`"):
        run_training("text-to-image", arguments("base", "--shuffle_buffer", "5"))


@pytest.mark.parametrize("more", [[], ["--pretrained_model_name_or_path", str(shapes_checkpoint())]])
def test_nothing_is_trained_without_data(arguments, tmp_path, more):
    """Least of all a person's own model on coloured shapes."""
    with pytest.raises(UserError, match=r"no training data: pass `--train_data_dir`, .* `--dataset_name`, .* `shapes`"):
        run_training("text-to-image", arguments("base", *more, dataset_name=None))
    assert not (tmp_path / "base").exists()


def test_the_defaults_are_the_library_s():
    config = training_config(parse("text-to-image", ["--output_dir", "x", "--max_train_steps", "3"]))
    assert config == TrainingConfig(output_dir="x", max_train_steps=3, learning_rate=LearningRate(1e-4, 3))


def test_a_stopped_run_makes_no_pipeline(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "train_stage", lambda *_, **__: 1)
    run_training("text-to-image", arguments("base"))
    assert "Stopped at step 1 of 2" in capsys.readouterr().out
    assert not (tmp_path / "pipeline").exists()


def test_validation_images_come_with_each_checkpoint_and_change_nothing(arguments, tmp_path):
    """Not even the random numbers of a dropout that follows."""
    sizes = json.loads(json.dumps(SMALL))
    sizes["unet"]["dropout"] = 0.3
    (tmp_path / "dropout.json").write_text(json.dumps(sizes))
    fixed = ["--checkpointing_steps", "1", "--learning_rate", "1e-2", "--model_config", str(tmp_path / "dropout.json")]
    for name, more in (("plain", []), ("sampled", ["--validation_prompts", "a red circle", "a blue star"])):
        own = ["--output_dir", str(tmp_path / name), "--pipeline_dir", str(tmp_path / f"{name}-pipeline")]
        run_training("text-to-image", arguments("base", *fixed, *own, *more))
    images = sorted((tmp_path / "sampled" / "validation").iterdir())
    assert [path.name for path in images] == ["step-000001.png", "step-000002.png"]
    assert Image.open(images[0]).size == (16, 8)  # two of 8 pixels beside each other
    plain, sampled = (
        load_file(tmp_path / f"{name}-pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
        for name in ("plain", "sampled")
    )
    assert all(torch.equal(sampled[name], value) for name, value in plain.items())


def test_validation_images_are_sampled_where_the_trained_stage_is(tmp_path, monkeypatch):
    """accelerate moves what is trained; the other stage is still where it was loaded."""
    pair = tiny_pipeline()
    pair.register_to_config(default_guidance_scale=2.0)
    pair.save_pretrained(tmp_path / "pair")
    parts = PipelineParts.from_pretrained(GLIDEPipeline, tmp_path / "pair", "base")
    parts.stage.to("meta")
    calls = []

    def sample(pipe, prompts, generator):
        networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        calls.append(([network.device.type for network in networks], pipe.default_guidance_scale))
        return SimpleNamespace(images=[Image.new("RGB", (8, 8)) for _ in prompts])

    monkeypatch.setattr(GLIDEPipeline, "__call__", sample)
    monkeypatch.setattr(torch.nn.Module, "cpu", lambda network: network.to_empty(device="cpu"))  # "meta" has no values
    save_validation_images(parts, ["a"], 0, tmp_path / "validation" / "1.png")
    assert calls == [(["meta"] * 4, 2.0)]
    assert {parameter.device.type for parameter in parts.other.parameters()} == {"cpu"}  # training needs the memory


def test_what_is_for_a_new_model_is_said_where_there_is_one(arguments, tmp_path, capsys):
    tiny_pipeline(upsampler=False).save_pretrained(tmp_path / "own")
    run_training("text-to-image", arguments("base", "--pretrained_model_name_or_path", str(tmp_path / "own"), steps=1))
    out = capsys.readouterr().out
    assert "`model_config` is for a new model" in out and "`tokenizer_name` is for a new model" in out


def test_blank_captions_are_counted(arguments, tmp_path, capsys):
    folder = captioned_folder(tmp_path / "images", [noise(40 + n) for n in range(3)], text=["", " ", "a lighthouse"])
    run_training("text-to-image", arguments("base", "--train_data_dir", str(folder), dataset_name=None, steps=1))
    assert "2 of 3 captions are blank: of these images the model learns no words." in capsys.readouterr().out


def test_a_new_resolution_is_the_model_s(arguments, tmp_path, monkeypatch, capsys):
    tiny_pipeline().save_pretrained(tmp_path / "pair")
    pair = ["--pretrained_model_name_or_path", str(tmp_path / "pair")]
    run_training("text-to-image", arguments("base", *pair, "--resolution", "16", steps=1))
    assert GLIDEUNet2DConditionModel.load_config(tmp_path / "pipeline" / "unet")["sample_size"] == 16
    assert "will have to enlarge 2 times: train it next" in capsys.readouterr().out
    # The upsampler learns to enlarge that base's images, not a quarter of its own or those of the pair's base.
    seen, sampled = [], []
    make_dataset, call = train_stage.make_dataset, GLIDEPipeline.__call__
    monkeypatch.setattr(train_stage, "make_dataset", lambda *a: seen.append(made := make_dataset(*a)) or made)
    monkeypatch.setattr(GLIDEPipeline, "__call__", lambda pipe, *a, **k: sampled.append(pipe) or call(pipe, *a, **k))
    more = ["--validation_prompts", "a", "--checkpointing_steps", "1"]
    run_training("text-to-image", arguments("super_res", *pair, *more, steps=1))
    assert seen[0].low_resolution.low_resolution == 16
    assert [pipe.scale_factor for pipe in sampled] == [2]


def test_the_base_of_a_pair_cannot_get_a_size_that_does_not_suit_the_upsampler(arguments, tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "pair")
    more = ["--pretrained_model_name_or_path", str(tmp_path / "pair"), "--resolution", "12"]
    with pytest.raises(
        ValueError, match=r"whole number of times the base's 12, got 32\. Start from a pipeline without"
    ):
        run_training("text-to-image", arguments("base", *more))


def test_stages_that_cannot_share_a_tokenizer_are_refused_before_a_step(arguments, tmp_path):
    run_training("text-to-image", arguments("super_res", steps=1))
    held = sorted((tmp_path / "pipeline").rglob("*"))
    more = arguments("base", "--model_config", str(tmp_path / "long.json"))
    sizes = json.loads((tmp_path / "base.json").read_text())
    sizes["text_encoder"]["max_position_embeddings"] += 1
    (tmp_path / "long.json").write_text(json.dumps(sizes))
    with pytest.raises(
        ValueError, match=r"super_res in .*pipeline has a text context of 24 tokens, the base one of 25"
    ):
        run_training("text-to-image", more)
    tiny_tokenizer(24).save_pretrained(tmp_path / "other-tokenizer")
    with pytest.raises(ValueError, match=r"super_res in .*pipeline was trained with another tokenizer than the base"):
        run_training("text-to-image", arguments("base", "--tokenizer_name", str(tmp_path / "other-tokenizer")))
    assert not list(tmp_path.glob("base/checkpoint-*")) and sorted((tmp_path / "pipeline").rglob("*")) == held


def test_a_pipeline_with_another_scheduler_is_trained_and_keeps_it(arguments, tmp_path):
    pipe = tiny_pipeline()
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "solver")
    run_training(
        "text-to-image", arguments("base", "--pretrained_model_name_or_path", str(tmp_path / "solver"), steps=1)
    )
    trained = GLIDEPipeline.from_pretrained(tmp_path / "pipeline")
    assert isinstance(trained.scheduler, DPMSolverMultistepScheduler)


def test_a_model_may_learn_v_and_goes_on_with_it(arguments, tmp_path, capsys):
    run_training("text-to-image", arguments("base", "--prediction_type", "v_prediction", steps=1))
    assert "From now on" not in capsys.readouterr().out
    for name, options, learned in (("on", [], "v_prediction"), ("other", ["--prediction_type", "epsilon"], "epsilon")):
        folder = str(tmp_path / name)
        more = ["--pretrained_model_name_or_path", str(tmp_path / "pipeline"), "--output_dir", folder]
        run_training("text-to-image", arguments("base", *more, "--pipeline_dir", f"{folder}-pair", *options, steps=1))
        assert GLIDEPipeline.from_pretrained(f"{folder}-pair").scheduler.config.prediction_type == learned
    assert "From now on the model learns epsilon, in place of v_prediction." in capsys.readouterr().out


@pytest.mark.parametrize("has_card", [False, True])
def test_the_trained_pipeline_is_uploaded_with_a_card(arguments, tmp_path, monkeypatch, capsys, has_card):
    """A card that is there already may have been written by a person, and stays."""
    uploads, cards = [], []

    class Hub:
        def create_repo(self, repo_id, exist_ok):
            assert exist_ok

        def file_exists(self, repo_id, filename):
            return has_card

        def upload_folder(self, repo_id, folder_path):
            uploads.append((repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
            return "https://hub/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("huggingface_hub.ModelCard.push_to_hub", lambda card, repo_id: cards.append((repo_id, card)))
    run_training("text-to-image", arguments("base", "--push_to_hub", "--hub_model_id", "someone/shapes"))
    assert uploads == [("someone/shapes", ["model_index.json", "scheduler", "text_encoder", "tokenizer", "unet"])]
    assert "https://hub/commit/1" in capsys.readouterr().out
    if has_card:
        assert not cards
        return
    [(repo_id, card)] = cards
    assert repo_id == "someone/shapes" and card.data.pipeline_tag == "text-to-image"
    assert 'GLIDEPipeline.from_pretrained("someone/shapes")' in card.text
    assert "Trained on the shapes world" in card.text and "| steps | 2 |" in card.text


def test_a_tracker_gets_what_the_log_holds(arguments, monkeypatch):
    logged = []
    accelerator_class = accelerate.Accelerator

    class Tracker(GeneralTracker):
        name, requires_logging_directory, main_process_only = "test", False, True

        def __init__(self):
            super().__init__()

        tracker = property(lambda self: None)

        def store_init_configuration(self, values):
            assert values["learning_rate"] == 1e-4

        def log(self, values, step, **_):
            logged.append((step, values))

    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["test"])
    monkeypatch.setattr(
        accelerate, "Accelerator", lambda **settings: accelerator_class(**settings | {"log_with": Tracker()})
    )
    run_training("text-to-image", arguments("base", "--report_to", "test", "--logging_steps", "1"))
    assert [step for step, _ in logged] == [1, 2]
    assert {"loss", "mse", "vb", "grad_norm", "learning_rate"} <= set(logged[0][1])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--push_to_hub"], "`push_to_hub` and `hub_model_id` go together"),
        (["--lr_scheduler", "step"], "`lr_scheduler` must be one of constant, linear, cosine, got 'step'"),
        (["--report_to", "nosuch"], "`report_to` must be a tracker that is installed"),
        (["--skip_bad_images", "-1"], "`skip_bad_images` must be at least 0, got -1"),
        (["--resolution", "0"], "`resolution` must be a positive multiple of 2 for this model and at most 4096, got 0"),
        (["--resolution", "15"], "for this model and at most 4096, got 15"),
        (["--resolution", "512000"], "for this model and at most 4096, got 512000"),
        (["--model_config", "nothing.json"], "`model_config` must be a JSON file, got 'nothing.json'"),
        (
            ["--model_config", str(NOISED_CLIP)],
            "shapes_noised_clip.json is of another kind of model: it lacks 'text_encoder'",
        ),
        (["--model_config", str(SUPER_RES)], "shapes_super_res.json is of an upsampler: a base has `in_channels` 3"),
        (["--tokenizer_name", "./nothing"], "a tokenizer, a folder or a Hub id, got './nothing'"),
        (["--tokenizer_name", str(MODEL_CONFIGS)], f"a folder or a Hub id, got {str(MODEL_CONFIGS)!r}"),
        (["--output_dir", __file__], "`output_dir` must be a folder, and"),
        (["--pipeline_dir", __file__], "`pipeline_dir` must be a folder, and"),
        (["--train_data_dir", "x"], "only one of `dataset_name` and `train_data_dir`"),
        (["--resume_from_checkpoint", "checkpoint-7"], "`resume_from_checkpoint` must be 'latest' or a checkpoint"),
        (
            ["--num_objects_shares", "1", "1", "1"],
            "`num_objects_shares` must be three shares whose sum is 1, got (1.0,",
        ),
        (["--timestep_bias_multiplier", "2"], "`timestep_bias_strategy` and `timestep_bias_multiplier` go together"),
        (["--crop_size", "16"], "`crop_size` is for the stage super_res"),
        (["--optimizer", "lion"], "`optimizer` must be one of"),
        (["--optimizer_args", "momentum=0.9"], "`optimizer_args`: adamw takes"),
        (["--num_train_epochs", "1"], "Pass one of `max_train_steps` and `num_train_epochs`"),
        (["--max_train_samples", "5"], "`max_train_samples` is for a dataset that ends"),
        (["--proportion_empty_prompts", "2"], "`proportion_empty_prompts` must lie between 0 and 1"),
    ],
)
def test_bad_arguments_are_named(arguments, more, message):
    with pytest.raises((ValueError, UserError)) as error:
        run_training("text-to-image", arguments("base", *more))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--train_data_dir", "nothing"], "`train_data_dir` must be a folder, got 'nothing'"),
        (["--num_objects_shares", "1", "0", "0", "--train_data_dir", "x"], "`num_objects_shares` is for the shapes"),
    ],
)
def test_bad_data_arguments_are_named(arguments, more, message):
    with pytest.raises((ValueError, UserError)) as error:
        run_training("text-to-image", arguments("base", *more, dataset_name=None))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--crop_size", "18"], "`crop_size` must be a multiple of 4"),
        (["--crop_size", "64"], "`crop_size` must be a multiple of 4 and at most 32, got 64"),
        (["--model_config", str(BASE)], "shapes_base.json is of a base: an upsampler has `in_channels` 6"),
        (["--low_resolution", "12"], "`low_resolution` must divide the resolution, 32, got 12"),
        (["--low_res_noise", "-1"], "`low_res_noise` must be at least 0"),
        (["--pretrained_model_name_or_path", "{folder}"], "has no super_res model"),
        (
            ["--pretrained_model_name_or_path", "{pair}", "--low_resolution", "16"],
            "must be that of the base, 8, got 16",
        ),
        (
            ["--pretrained_model_name_or_path", "{pair}", "--resolution", "36"],
            "whole number of times the base's 8, got 36",
        ),
        (["--validation_prompts", "a"], "`validation_prompts` needs a base model beside the upsampler"),
    ],
)
def test_bad_arguments_of_the_upsampler_are_named(arguments, tmp_path, more, message):
    if more[1] in ("{folder}", "{pair}"):
        tiny_pipeline(upsampler=more[1] == "{pair}").save_pretrained(tmp_path / "other")
        more = [more[0], str(tmp_path / "other"), *more[2:]]
    with pytest.raises((ValueError, UserError)) as error:
        run_training("text-to-image", arguments("super_res", *more))
    assert message in str(error.value)


def test_a_size_of_an_unknown_name_is_named(arguments, tmp_path):
    (tmp_path / "sizes.json").write_text(json.dumps(SMALL | {"unet": SMALL["unet"] | {"widths": [8]}}))
    with pytest.raises(ValueError, match=r"`model_config` .*sizes\.json: `sizes` of the UNet: .*'widths'"):
        run_training("text-to-image", arguments("base", "--model_config", str(tmp_path / "sizes.json")))


def test_a_head_wider_than_its_level_is_named(arguments, tmp_path):
    sizes = SMALL | {"unet": SMALL["unet"] | {"block_out_channels": [32, 32], "attention_head_dim": 64}}
    (tmp_path / "sizes.json").write_text(json.dumps(sizes))
    with pytest.raises(ValueError, match=r"`attention_head_dim` must divide the channels .* got 64 for 32"):
        run_training("text-to-image", arguments("base", "--model_config", str(tmp_path / "sizes.json")))


@pytest.mark.parametrize("how", [["--gradient_checkpointing"], ["--dataloader_num_workers", "1"]])
def test_how_a_step_is_computed_does_not_change_it(arguments, tmp_path, how):
    for name, more in (("plain", []), ("other", how)):
        run_training(
            "text-to-image",
            arguments("base", *more, "--pipeline_dir", str(tmp_path / name), "--output_dir", str(tmp_path / name)),
        )
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        plain, other = (load_file(tmp_path / name / f"{part}.safetensors") for name in ("plain", "other"))
        for name, value in plain.items():
            assert torch.equal(other[name], value)


def test_two_processes_equal_one_at_the_same_global_batch(arguments, tmp_path):
    """Also across a resumption: one process goes on with what two began."""
    # Where the gradient is zero in exact arithmetic, AdamW would blow rounding up to full steps.
    common = ["--adam_epsilon", "1e-3", "--learning_rate", "1e-2", "--ema_decay", "0.5"]
    one = [*common, "--output_dir", str(tmp_path / "one"), "--pipeline_dir", str(tmp_path / "p1")]
    run_training("text-to-image", arguments("base", *one, "--train_batch_size", "4", steps=3))
    two = [*common, "--output_dir", str(tmp_path / "two"), "--pipeline_dir", str(tmp_path / "p2")]
    launched = arguments("base", *two, steps=2)
    place = launched.index("--tokenizer_name")
    del launched[place : place + 2]  # one of the processes makes it
    result = launch(2, launched)
    assert result.returncode == 0, result.stderr
    resume = ["--train_batch_size", "4", "--resume_from_checkpoint", "latest"]
    run_training("text-to-image", arguments("base", *two, *resume, steps=3))
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").open()] for name in ("one", "two")]
    assert [line["step"] for line in logs[1]] == [2, 3]
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        expected, got = (load_file(tmp_path / name / f"{part}.safetensors") for name in ("p1", "p2"))
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-4)


def test_an_error_is_one_line(arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "train_text_to_image.py")]
    command += arguments("base", "--lr_scheduler", "step")
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert (
        result.stderr
        == "train_text_to_image.py: error: `lr_scheduler` must be one of constant, linear, cosine, got 'step'.\n"
    )


def test_the_base_starts_from_a_pretrained_encoder(arguments, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import train_shapes_text_encoder as pretraining

    config = tmp_path / "sizes.json"
    config.write_text(json.dumps(SMALL))
    options = ["--model_config", str(config), "--max_train_steps", "2", "--train_batch_size", "4"]
    assert pretraining.main(["--output_dir", str(tmp_path / "reader"), *options]) == 0
    reader = load_file(tmp_path / "reader" / "model.safetensors")

    # At a learning rate that moves nothing, what comes out is what went in.
    more = ["--text_encoder_name_or_path", str(tmp_path / "reader"), "--learning_rate", "1e-30"]
    tokenizer = ["--tokenizer_name", str(tmp_path / "reader"), "--adam_weight_decay", "0"]
    run_training("text-to-image", arguments("base", *more, *tokenizer))
    trained = load_file(tmp_path / "pipeline" / "text_encoder" / "model.safetensors")
    assert reader.keys() == trained.keys()
    assert all(torch.equal(reader[name], trained[name]) for name in reader)

    # A pipeline's encoder may be replaced too; frozen, it stays as it is at any rate.
    assert pretraining.main(["--output_dir", str(tmp_path / "again"), *options, "--seed", "1"]) == 0
    more = ["--pretrained_model_name_or_path", str(tmp_path / "pipeline"), "--learning_rate", "1e-2"]
    more += ["--text_encoder_name_or_path", str(tmp_path / "again"), "--freeze_text_encoder", "--ema_decay", "0"]
    before = load_file(tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    run_training("text-to-image", arguments("base", *more, "--output_dir", str(tmp_path / "second")))
    again, trained = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "pipeline/text_encoder"))
    assert all(torch.equal(again[name], trained[name]) for name in again)
    after = load_file(tmp_path / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")
    assert not torch.equal(before["conv_in.weight"], after["conv_in.weight"])


def test_a_frozen_text_encoder_may_be_thawed_on_resuming(arguments, tmp_path):
    more = ["--learning_rate", "1e-2", "--ema_decay", "0", "--resume_from_checkpoint", "latest"]
    weights = []
    for steps, freeze in ((1, ["--freeze_text_encoder"]), (2, ["--freeze_text_encoder"]), (3, [])):
        run_training("text-to-image", arguments("base", *more, *freeze, steps=steps))
        weights.append(load_file(tmp_path / "pipeline" / "text_encoder" / "model.safetensors"))
    first, second, third = weights
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(second["position_embedding"], third["position_embedding"])


def test_a_text_encoder_of_other_sizes_is_refused(arguments, tmp_path):
    tiny_text_encoder().save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="`text_encoder_name_or_path`: vocab_size must be 388 for this model, got 258"):
        run_training("text-to-image", arguments("base", "--text_encoder_name_or_path", str(tmp_path / "other")))
