import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_pipeline, tiny_unet
from trainings import run_training

from glide_pipelines import GLIDEDDPMScheduler, GLIDEInpaintPipeline, GLIDEPipeline
from glide_pipelines.training import random_mask, widen_for_inpainting
from glide_pipelines.training.masks import SHARES


@pytest.fixture
def masks():
    return [random_mask(np.random.default_rng(seed), 24, 32)[0] for seed in range(600)]


def test_masks_are_of_the_documented_kinds(masks):
    assert all(mask.shape == (24, 32) and set(mask.unique().tolist()) <= {0.0, 1.0} for mask in masks)
    areas = torch.stack([mask.mean() for mask in masks])
    whole, none = (areas == 1).float().mean().item(), (areas == 0).float().mean().item()
    assert abs(whole - SHARES["whole"]) < 0.04 and abs(none - SHARES["none"]) < 0.03
    between = areas[(areas > 0) & (areas < 1)]
    assert 0.2 < between.mean() < 0.5  # regions worth painting, and something to go by


def test_the_share_of_whole_masks_can_be_chosen_and_the_others_keep_theirs_of_the_rest():
    areas = [random_mask(np.random.default_rng(seed), 24, 32, proportion_whole=0.5).mean() for seed in range(600)]
    whole, none = ((torch.stack(areas) == value).float().mean().item() for value in (1, 0))
    assert abs(whole - 0.5) < 0.06 and abs(none - SHARES["none"] * 0.5 / 0.9) < 0.02


def test_masks_reach_every_part_of_an_image(masks):
    share = torch.stack(masks).mean(0)
    assert share.min() > 0.1 and share.max() < 0.7


def test_a_mask_is_a_function_of_its_generator():
    first, again = (random_mask(np.random.default_rng(3), 16, 16) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("in_channels", [3, 6])
def test_a_widened_model_computes_what_the_old_one_did(in_channels):
    """Whatever the image and the mask: the first step of the fine-tuning starts from the old model."""
    old = tiny_unet(in_channels=in_channels)
    new = widen_for_inpainting(old)
    assert new.config.in_channels == in_channels + 4 and new.is_inpainter
    size = old.config.sample_size
    generator = torch.Generator().manual_seed(0)
    sample, image = torch.randn(2, 2, 3, size, size, generator=generator)
    mask = (torch.rand(2, 1, size, size, generator=generator) > 0.5).float()
    text = torch.randn(2, 5, old.config.cross_attention_dim, generator=generator)
    low_res = {"low_res": torch.randn(2, 3, size // 4, size // 4, generator=generator)} if in_channels == 6 else {}
    with torch.no_grad():
        expected = old(sample, 7, text, **low_res).sample
        got = new(sample, 7, text, image=image, mask=mask, **low_res).sample
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    # The new weights are there to be trained, each of the four channels.
    new(sample, 7, text, image=image, mask=mask, **low_res).sample.square().sum().backward()
    assert (new.conv_in.weight.grad[:, 3:7].abs().amax(dim=(0, 2, 3)) > 0).all()


def test_an_inpainting_model_is_not_widened_again():
    with pytest.raises(ValueError, match="`unet` is an inpainting model already, with 7 channels"):
        widen_for_inpainting(tiny_unet(in_channels=7))


def arguments(tmp_path, stage, source, *more):
    fixed = {
        "dataset_name": "shapes",
        "stage": stage,
        "output_dir": tmp_path / stage,
        "pipeline_dir": tmp_path / "pipeline",
    }
    fixed |= {"pretrained_model_name_or_path": source, "max_train_steps": 2, "train_batch_size": 2}
    fixed |= {"learning_rate": 1e-2, "ema_decay": 0}
    return [part for name, value in fixed.items() for part in (f"--{name}", str(value))] + list(more)


def test_two_stages_make_one_inpainting_pipeline(tmp_path):
    source = tmp_path / "text-to-image"
    before = tiny_pipeline()
    before.register_to_config(low_res_consistency=True)
    before.save_pretrained(source)
    run_training("inpaint", arguments(tmp_path, "base", source))

    # The other stage comes along, widened and not yet trained.
    pipe = GLIDEInpaintPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.mode == "fine-tuned"
    assert pipe.config.low_res_consistency
    assert isinstance(pipe.scheduler, GLIDEDDPMScheduler) and isinstance(pipe.super_res_scheduler, GLIDEDDPMScheduler)
    weight, old = pipe.super_res_unet.conv_in.weight, before.super_res_unet.conv_in.weight
    assert torch.equal(weight[:, :3], old[:, :3]) and torch.equal(weight[:, 7:], old[:, 3:])
    assert not weight[:, 3:7].any()
    assert pipe.unet.conv_in.weight[:, 3:7].any() and not torch.equal(
        pipe.unet.conv_in.weight[:, :3], before.unet.conv_in.weight
    )

    run_training("inpaint", arguments(tmp_path, "super_res", source, "--crop_size", "16"))
    both = GLIDEInpaintPipeline.from_pretrained(tmp_path / "pipeline")
    assert both.super_res_unet.conv_in.weight[:, 3:7].any()
    assert torch.equal(both.unet.conv_in.weight, pipe.unet.conv_in.weight)
    assert both.config.low_res_consistency

    # And from there on, an inpainting pipeline is what a run starts from.
    run_training("inpaint", arguments(tmp_path, "base", tmp_path / "pipeline", "--output_dir", str(tmp_path / "more")))
    again = GLIDEInpaintPipeline.from_pretrained(tmp_path / "pipeline")
    assert again.unet.config.in_channels == 7
    assert not torch.equal(again.unet.conv_in.weight, both.unet.conv_in.weight)


def test_the_known_part_is_what_the_model_is_shown(tmp_path, monkeypatch):
    """The masked image at full size, the small image whole: as the upsampler meets them when sampling."""
    seen = []

    def spy(self, sample, low_res, image, mask):
        seen.append((low_res, image, mask))
        return original(self, sample, low_res, image, mask)

    from glide_pipelines import GLIDEUNet2DConditionModel

    original = GLIDEUNet2DConditionModel._stack_channels
    monkeypatch.setattr(GLIDEUNet2DConditionModel, "_stack_channels", spy)
    tiny_pipeline().save_pretrained(tmp_path / "source")
    run_training("inpaint", arguments(tmp_path, "super_res", tmp_path / "source", "--train_batch_size", "8"))
    low_res, image, mask = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert 0 < mask.mean() < 1
    reduced = torch.nn.functional.avg_pool2d(image, 4)
    torch.testing.assert_close(reduced, low_res, atol=0.02, rtol=0)


def test_resuming_equals_never_stopping(tmp_path):
    source = tmp_path / "source"
    tiny_pipeline(upsampler=False).save_pretrained(source)
    for name in ("whole", "parts"):
        own = ["--output_dir", str(tmp_path / name), "--pipeline_dir", str(tmp_path / f"{name}-pipeline")]
        if name == "parts":
            first = arguments(tmp_path, "base", source, *own, "--checkpointing_steps", "1")
            run_training("inpaint", [*first, "--max_train_steps", "1"])
            own += ["--resume_from_checkpoint", "latest"]
        run_training("inpaint", arguments(tmp_path, "base", source, *own))
    whole, parts = (GLIDEPipeline.load_config(tmp_path / f"{name}-pipeline") for name in ("whole", "parts"))
    assert whole["_class_name"] == parts["_class_name"] == "GLIDEInpaintPipeline"
    whole, parts = (GLIDEInpaintPipeline.from_pretrained(tmp_path / f"{name}-pipeline") for name in ("whole", "parts"))
    for expected, got in zip(whole.unet.parameters(), parts.unet.parameters(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_widened_model_is_as_ready_to_sample_as_the_old_one(training):
    """With dropout, which OpenAI's models have, a model in training mode generates something else each time."""
    assert widen_for_inpainting(tiny_unet().train(training)).training is training


def test_only_the_shapes_world_has_a_model_to_start_from_by_default(tmp_path):
    """On a person's own images the checkpoint of coloured shapes would be a silent choice."""
    own = ["--train_data_dir", str(tmp_path), "--output_dir", str(tmp_path / "run"), "--max_train_steps", "1"]
    pytest.importorskip("datasets")
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "black"}\n')
    with pytest.raises(ValueError, match="`pretrained_model_name_or_path` must name the pipeline to start from"):
        run_training("inpaint", own)


def test_the_share_of_whole_masks_is_an_option(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "source")
    for share in ("-0.1", "1.5"):
        with pytest.raises(ValueError, match="`proportion_whole_masks` must lie between 0 and 1"):
            run_training("inpaint", arguments(tmp_path, "base", tmp_path / "source", "--proportion_whole_masks", share))
    # With all of them masked whole the weights of the known image and the mask see zeros, and learn nothing.
    run_training("inpaint", arguments(tmp_path, "base", tmp_path / "source", "--proportion_whole_masks", "1"))
    assert not GLIDEInpaintPipeline.from_pretrained(tmp_path / "pipeline").unet.conv_in.weight[:, 3:7].any()


def test_training_text_to_image_says_that_an_inpainting_model_may_forget(tmp_path, capsys):
    tiny_pipeline(upsampler=False).save_pretrained(tmp_path / "source")
    for training, source, is_told in (("inpaint", "source", False), ("text-to-image", "pipeline", True)):
        more = ("--output_dir", str(tmp_path / training), "--max_train_steps", "1")
        run_training(training, arguments(tmp_path, "base", tmp_path / source, *more))
        assert ("may forget how" in capsys.readouterr().out) == is_told
