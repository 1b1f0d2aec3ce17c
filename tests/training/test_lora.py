"""Adapters in place of all weights: what is trained, saved, resumed, and loaded again."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from tiny import tiny_call, tiny_inpaint_pipeline, tiny_pipeline, tiny_text_encoder, tiny_tokenizer, tiny_unet
from trainings import assert_equal, make_config, read_checkpoint, run_training

from glide_cli import UserError
from glide_pipelines import GLIDEInpaintPipeline, GLIDESuperResolutionPipeline
from glide_pipelines import training as library
from glide_pipelines.sampling import Stage
from glide_pipelines.shapes import ShapesSource
from glide_pipelines.training import TextToImageDataset, TimestepWeighting, save_lora, train_stage


peft = pytest.importorskip("peft")


def train_lora(folder, freeze_text_encoder=False, base=0, lora=None, **changes):
    """A run of adapters on a tiny base; returns the stage."""
    stage = Stage("base", tiny_text_encoder(base), tiny_unet(seed=1), tiny_pipeline(upsampler=False).scheduler)
    dataset = TextToImageDataset(ShapesSource(8, 0), tiny_tokenizer(), TimestepWeighting(1000), 0)
    config = peft.LoraConfig(**{"r": 2, "lora_alpha": 4} | (lora or {}))
    torch.seed()  # the random state before a run has no effect
    train_stage(Accelerator(cpu=True), make_config(folder, **changes), stage, dataset, freeze_text_encoder, lora=config)
    return stage


def base_weights(stage):
    return {name.replace(".base_layer", ""): w for name, w in stage.state_dict().items() if ".lora_" not in name}


@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=["LoRA", "DoRA"])
def test_the_adapters_alone_are_trained_averaged_and_saved(tmp_path, lora):
    stage = train_lora(tmp_path, lora=lora)
    untouched = Stage("base", tiny_text_encoder(0), tiny_unet(seed=1))
    assert_equal(base_weights(stage), untouched.state_dict())
    held = read_checkpoint(tmp_path / "checkpoint-4")
    for part in ("model", "average"):
        assert all(".lora_" in name for name in held[part])
        assert {name.split(".")[0] for name in held[part]} == {"unet", "text_encoder"}
    assert_equal({name: w for name, w in stage.state_dict().items() if ".lora_" in name}, held["average"])
    assert all(weight.abs().sum() > 0 for name, weight in held["average"].items() if ".lora_B" in name)
    assert not torch.equal(
        *(held[part]["unet.mid_block.attentions.0.to_q.lora_B.default.weight"] for part in ("model", "average"))
    )


def test_a_peft_that_transformers_does_not_take_is_named(tmp_path, monkeypatch):
    """And not the layers, for which nothing is wrong."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "99.0")
    with pytest.raises(ValueError, match=r"^The version of PEFT you are using is not compatible.* >= 99\.0"):
        train_lora(tmp_path / "both")
    train_lora(tmp_path / "unet", freeze_text_encoder=True, max_train_steps=1)


def test_a_resumed_run_equals_an_unbroken_one_to_the_bit(tmp_path):
    train_lora(tmp_path / "unbroken")
    train_lora(tmp_path / "resumed", max_train_steps=2)
    train_lora(tmp_path / "resumed", resume_from_checkpoint="latest")
    assert_equal(*(read_checkpoint(tmp_path / name / "checkpoint-4") for name in ("unbroken", "resumed")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"lora_alpha": 8}}, "of another model: `unet` is .*'lora_alpha': 4.* got .*'lora_alpha': 8"),
        ({"lora": {"r": 3}}, r"lora_A.default.weight' must have the shape \[3, 16\], got \[2, 16\]"),
        ({"freeze_text_encoder": True}, "holds an unexpected 'text_encoder"),
        ({"base": 7}, "of another model: `model` is"),
    ],
)
def test_adapters_are_resumed_on_the_weights_that_they_belong_to(tmp_path, change, message):
    train_lora(tmp_path, max_train_steps=1)
    with pytest.raises(ValueError, match=message):
        train_lora(tmp_path, resume_from_checkpoint="latest", **change)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["to_q", "to_quark"], "`lora_targets` must be names of layers .*to_k, .*got to_quark"),
        (["attentions"], "`lora_targets`: Target module .* is not supported"),
    ],
)
def test_targets_that_are_no_layers_are_named(tmp_path, targets, message):
    with pytest.raises(ValueError, match=message):
        train_lora(tmp_path, lora={"target_modules": targets})


# -- from the command line to the sampled image -----------------------------------------------------------------------


def command(folder, tmp_path, *more):
    options = {
        "dataset_name": "shapes",
        "pretrained_model_name_or_path": folder,
        "output_dir": tmp_path / "run",
        "max_train_steps": 2,
        "train_batch_size": 2,
        "learning_rate": 0.1,
        "ema_decay": 0,
        "lora_rank": 2,
        "lora_alpha": 6,
    }
    return [part for name, value in options.items() for part in (f"--{name}", str(value))] + list(more)


def sample(pipe):
    known = {}
    if isinstance(pipe, GLIDEInpaintPipeline):
        known = {"image": np.zeros((8, 8, 3), np.float32), "mask_image": np.ones((8, 8), np.float32)}
    pipe.set_progress_bar_config(disable=True)
    return pipe(**tiny_call(**known)).images


@pytest.mark.parametrize(
    ("training", "stage", "more"),
    [
        ("text-to-image", "base", ["--use_dora"]),
        ("text-to-image", "super_res", ["--crop_size", "16"]),
        ("inpaint", "base", ["--freeze_text_encoder"]),
    ],
)
def test_what_was_trained_is_what_is_loaded(tmp_path, monkeypatch, capfd, training, stage, more):
    before = tiny_inpaint_pipeline() if training == "inpaint" else tiny_pipeline()
    if stage == "base":
        before.scheduler.register_to_config(default_timesteps=[999, 500])
    before.save_pretrained(tmp_path / "model")
    expected, saved = sample(before), []
    monkeypatch.setattr(library, "save_lora", lambda stage, *options: saved.append(stage) or save_lora(stage, *options))
    run_training(training, command(tmp_path / "model", tmp_path, "--stage", stage, *more))
    assert ("may not do for other images" in capfd.readouterr().out) == (stage == "base")
    pipe = type(before).from_pretrained(tmp_path / "model")
    pipe.load_lora_weights(str(tmp_path / "run" / "lora"))
    trained = type(before)(**(before.components | saved[0].components()))
    assert np.abs(sample(trained) - expected).max() > 0.1
    np.testing.assert_allclose(sample(pipe), sample(trained), atol=5e-3)
    pipe.unload_lora_weights()
    np.testing.assert_allclose(sample(pipe), expected, atol=5e-3)
    if stage == "super_res":
        alone = GLIDESuperResolutionPipeline.from_pretrained(tmp_path / "model")
        alone.load_lora_weights(str(tmp_path / "run" / "lora"))
        assert set(alone.get_list_adapters()) == {"super_res_unet", "super_res_text_encoder"}


def test_the_upsampler_s_adapters_need_an_upsampler(tmp_path):
    weights = {"super_res_unet.mid_block.attentions.0.to_q.lora_A.weight": torch.zeros(2, 16)}
    with pytest.raises(ValueError, match="is for `super_res_unet`, which this GLIDEPipeline does not have"):
        tiny_pipeline(upsampler=False).load_lora_weights(weights)


def test_an_inpainting_lora_needs_a_model_that_inpaints(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="`lora_rank` needs a base model that inpaints"):
        run_training("inpaint", command(tmp_path / "model", tmp_path))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--pipeline_dir", "there"], "`pipeline_dir` is for a model that is trained whole"),
        (["--text_encoder_name_or_path", "there"], "`text_encoder_name_or_path` is for a model that is trained whole"),
    ],
)
def test_what_a_lora_cannot_hold_is_refused(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        run_training("text-to-image", command("model", tmp_path, *more))


@pytest.mark.parametrize("option", [["--lora_alpha", "4"], ["--lora_targets", "to_q"], ["--use_dora"]])
def test_settings_of_a_lora_need_its_rank(tmp_path, option):
    given = ["--dataset_name", "shapes", "--output_dir", str(tmp_path), "--max_train_steps", "1", *option]
    with pytest.raises(UserError, match=f"`{option[0][2:]}` needs `lora_rank`"):
        run_training("text-to-image", given)
    with pytest.raises(UserError, match="`lora_rank` needs `pretrained_model_name_or_path`"):
        run_training("text-to-image", [*given, "--lora_rank", "2"])
