"""`glide evaluate` and the sweep under it, on pipelines whose images are known."""

from __future__ import annotations

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
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from scripts import load_script
from tiny import tiny_clip, tiny_components, tiny_pipeline, tiny_tokenizer, tiny_unet
from transformers import CLIPTextConfig, CLIPTextModel

from glide_cli import run_evaluate
from glide_cli.errors import UserError
from glide_pipelines import GLIDEDDIMScheduler, GLIDEPipeline
from glide_pipelines.evaluation import (
    BOTH,
    CLASSIFIER_FREE,
    CLIP,
    Features,
    GeneratedImages,
    Guidance,
    JudgedImages,
    Measured,
    check_call,
    class_numbers,
    figures,
    generate_images,
    image_size,
    measure,
    plot_guidance,
    run_sweep,
    table,
)
from glide_pipelines.shapes import render
from glide_pipelines.shapes.images import ShapesImages


ROOT = Path(__file__).parents[2]
QUICK = ("--num-captions", "6", "--batch-size", "2", "--steps", "1", "--super-res-steps", "1", "--device", "cpu")


script = load_script("evaluate")


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
    return ShapesImages(10, seed=0)


# -- drawing ------------------------------------------------------------------------------------------------------


def test_each_picture_is_drawn_from_its_own_seed_and_once(pictures, tmp_path):
    drawer = Drawer(pictures)
    for _ in range(2):
        generate_images(drawer, pictures.captions, tmp_path, seed=7, batch_size=4, guidance_scale=1.0, eta=0.5)
    assert [call["prompt"] for call in drawer.calls] == [
        pictures.captions[:4],
        pictures.captions[4:8],
        pictures.captions[8:],
    ]
    seeds = [generator.initial_seed() for call in drawer.calls for generator in call["generator"]]
    assert seeds == list(range(7, 17)) and all(call["eta"] == 0.5 for call in drawer.calls)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{index:06}.png" for index in range(10)]
    drawn = GeneratedImages(tmp_path, pictures.captions)
    assert all(np.array_equal(drawn.image(index, 32), pictures.image(index, 32)) for index in range(10))


def test_a_stopped_run_goes_on_with_the_same_pictures(pictures, tmp_path):
    drawer = Drawer(pictures)
    generate_images(drawer, pictures.captions, tmp_path, seed=7, batch_size=4, guidance_scale=1.0)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "000005.png").unlink()
    drawer.calls.clear()
    generate_images(drawer, pictures.captions, tmp_path, seed=7, batch_size=4, guidance_scale=1.0)
    assert [call["prompt"] for call in drawer.calls] == [pictures.captions[4:8]], "its batch, whole"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_a_damaged_picture_is_drawn_again(pictures, tmp_path):
    drawer = Drawer(pictures)
    generate_images(drawer, pictures.captions, tmp_path, seed=7, batch_size=4, guidance_scale=1.0)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "000001.png").write_bytes(b"")
    (tmp_path / "000009.png").write_bytes(whole["000009.png"][:-30])
    drawer.calls.clear()
    generate_images(drawer, pictures.captions, tmp_path, seed=7, batch_size=4, guidance_scale=1.0)
    assert [call["prompt"] for call in drawer.calls] == [pictures.captions[:4], pictures.captions[8:]]
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


# -- measuring ----------------------------------------------------------------------------------------------------


def test_what_is_measured_does_not_depend_on_the_batch(pictures):
    one, many = (measure(pictures, 32, Means(), Means(), batch_size, "") for batch_size in (1, 7))
    for name in ("features", "log_probabilities", "similarities"):
        assert torch.equal(getattr(one, name), getattr(many, name))
    pixels = np.stack([np.asarray(pictures.image(index, 32)) for index in range(10)])
    assert torch.allclose(one.features, torch.tensor(pixels.mean(axis=(1, 2))).float())
    expected = pixels[:, 0, 0, 0].astype(float).mean() + np.mean([len(text) for text in pictures.captions])
    assert figures(None, one)["clip_score"] == pytest.approx(expected)


def test_a_classifier_is_asked_for_the_class_of_each_image_that_can_be_read():
    likelihoods = torch.tensor([[7.0, 6, 5, 4, 3, 2], [7, 6, 5, 4, 3, 2], [1, 2, 3, 4, 5, 6], [0, 9, 0, 0, 0, 0]])
    measured = Measured(torch.zeros(4, 2), likelihoods.log_softmax(dim=1), None, unreadable=[1])
    # First, second and last; that of the second image is not asked for; the last one is right again.
    result = figures(None, measured, labels=torch.tensor([0, 3, 1, 0, 1]))
    assert result["top1"] == pytest.approx(50) and result["top5"] == pytest.approx(75)
    assert "top1" not in figures(None, measured)


def test_labels_are_numbered_as_the_classifier_numbers_them():
    network = SimpleNamespace(class_names=["a taxi", "a fox"])
    labelled = SimpleNamespace(labels=["a fox", "a taxi", "a fox"])
    assert class_numbers(labelled, network).tolist() == [1, 0, 1]
    assert class_numbers(SimpleNamespace(), network) is None
    with pytest.raises(ValueError, match="`label_column` holds 'a whale', which is no class"):
        class_numbers(SimpleNamespace(labels=["a fox", "a whale"]), network)
    with pytest.raises(ValueError, match="needs `features` that are an image classifier"):
        class_numbers(labelled, Means())


def test_pictures_that_cannot_be_read_are_left_out(pictures):
    whole = measure(pictures, 32, Means(), Means(), 3, "")
    image = pictures.image
    pictures.image = lambda index, size: None if index in (3, 4, 5, 9) else image(index, size)
    found = measure(pictures, 32, Means(), Means(), 3, "")
    assert found.unreadable == [3, 4, 5, 9]
    assert torch.equal(found.similarities, whole.similarities[[0, 1, 2, 6, 7, 8]])
    pictures.image = lambda index, size: None
    with pytest.raises(ValueError, match="none of the images can be read"):
        measure(pictures, 32, Means(), None, 3, "")


def test_a_sweep_finds_the_model_that_repeats_itself(pictures, tmp_path):
    drawer = Drawer(pictures)
    sweep = [Guidance(CLASSIFIER_FREE, 1.0), Guidance(CLASSIFIER_FREE, 3.0)]
    results = run_sweep({CLASSIFIER_FREE: drawer}, sweep, pictures, tmp_path, {}, Means(), eta=0.5)
    true, repeated = results["sweep"]
    what = {"name": "guidance-1", "guidance": CLASSIFIER_FREE, "scale": 1.0, "guidance_scale": 1.0}
    assert true == results["real"] | what, "true drawings"
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
    with pytest.raises(ValueError, match=r"`output`: the images in .* were made with seed 0 and not 1"):
        run_sweep(pipes, sweep, pictures, tmp_path, {"seed": 1}, Means())
    others = ShapesImages(len(pictures.captions), seed=1)
    with pytest.raises(ValueError, match="were made with captions"):
        run_sweep(pipes, sweep, others, tmp_path, {"seed": 0}, Means())
    drawer.components["unet"] = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="were made with weights"):
        run_sweep(pipes, sweep, pictures, tmp_path, {"seed": 0}, Means())
    (tmp_path / "guidance-1/settings.json").write_text("[")
    with pytest.raises(ValueError, match="holds no settings of images"):
        run_sweep(pipes, sweep, pictures, tmp_path, {"seed": 0}, Means())
    assert len(drawer.calls) == 1


class WithoutJudge:
    """Captioned images that bring no judge."""

    def __init__(self, images):
        self.captions, self.image = images.captions, images.image


def test_images_without_a_judge_are_compared_with_themselves(pictures, tmp_path):
    plain = WithoutJudge(pictures)
    assert isinstance(pictures, JudgedImages) and not isinstance(plain, JudgedImages)
    drawer = Drawer(pictures)
    results = run_sweep({CLASSIFIER_FREE: drawer}, [Guidance(CLASSIFIER_FREE, 1.0)], plain, tmp_path, {}, Means())
    assert set(results["real"]) == {"name", "inception_score"}, "nothing to compare the true images with"
    (row,) = results["sweep"]
    assert row["fid"] == pytest.approx(0, abs=1e-6) and row["precision"] == row["recall"] == 1
    assert "whole_caption" not in row and "judge" not in row


def test_a_call_is_checked_at_the_cost_of_one_step():
    pipe = tiny_pipeline()
    pipe.set_progress_bar_config(disable=True)
    steps = []
    pipe.unet.register_forward_pre_hook(lambda *_: steps.append("base"))
    pipe.super_res_unet.register_forward_pre_hook(lambda *_: steps.append("super_res"))
    check_call(pipe, "a star", num_inference_steps=5)
    assert steps == ["base"]
    with pytest.raises(ValueError, match="num_inference_steps"):
        check_call(pipe, "a star", num_inference_steps=5000)
    assert steps == ["base"]


def test_fewer_pictures_than_neighbours_are_named(tmp_path):
    pictures = ShapesImages(3, seed=0)
    with pytest.raises(ValueError, match="`images` must be more than the 3 `neighbours` of each, got 3"):
        run_sweep({CLASSIFIER_FREE: Drawer(pictures)}, [], pictures, tmp_path, {}, Means())


def test_too_few_readable_pictures_are_named_before_any_is_drawn(tmp_path):
    drawer = Drawer(ShapesImages(6, seed=0))
    true = ShapesImages(6, seed=0)
    pictures = SimpleNamespace(
        captions=true.captions, image=lambda index, size: None if index < 3 else true.image(index, size)
    )
    with pytest.raises(ValueError, match=r"more than the 3 `neighbours` of each, got 3; 3 cannot be read"):
        run_sweep(
            {CLASSIFIER_FREE: drawer}, [Guidance(CLASSIFIER_FREE, 1.0)], pictures, tmp_path, {}, Means(), neighbours=3
        )
    assert drawer.calls == []


def test_the_size_is_that_of_what_is_drawn(pictures):
    drawer = Drawer(pictures)
    assert image_size(drawer, pictures.captions[0], guidance_scale=1.0) == 32 and drawer.calls == []

    class Other:
        def __call__(self, prompt, generator, steps):
            return SimpleNamespace(images=[Image.new("RGB", (24, steps))])

    assert image_size(Other(), "a star", steps=24) == 24
    with pytest.raises(ValueError, match="Other must generate squares, but makes 24 x 16 pixels"):
        image_size(Other(), "a star", steps=16)
    with pytest.raises(ValueError, match=r"Other cannot generate from a caption alone: .*'guidance_scale'"):
        image_size(Other(), "a star", steps=24, guidance_scale=1.0)


# -- table and plots ----------------------------------------------------------------------------------------------


def row(guidance, **measured):
    return {"name": guidance.name, **guidance.settings, **measured}


ROWS = [
    row(Guidance(CLASSIFIER_FREE, 2.0), fid=3.0, precision=0.5, recall=0.25),
    row(Guidance(CLIP, 2.5), fid=4.0, precision=0.75, recall=0.125),
]


def test_the_table_has_the_columns_that_were_measured():
    lines = table([{"name": "real images", "fid": 0.125}, *ROWS]).splitlines()
    assert lines[0] == "| images | FID | precision | recall |" and lines[1] == "|---|---|---|---|"
    assert lines[2] == "| real images | 0.12 |  |  |"
    assert lines[4] == "| clip-guidance-2.5 | 4.00 | 0.750 | 0.125 |"


def test_the_plots_show_a_curve_for_each_guidance(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    curves = []
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, label, **_: curves.append((x, y, label)))
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    scored = [{**row, "clip_score": row["scale"], "inception_score": 2 * row["scale"]} for row in ROWS]
    files = plot_guidance(scored, tmp_path)
    assert [file.name for file in files] == ["precision_recall.png", "inception_score_fid.png", "clip_score_fid.png"]
    assert curves[:2] == [([0.25], [0.5], CLASSIFIER_FREE), ([0.125], [0.75], CLIP)]
    assert curves[2:] == [
        ([3.0], [4.0], CLASSIFIER_FREE),
        ([4.0], [5.0], CLIP),
        ([3.0], [2.0], CLASSIFIER_FREE),
        ([4.0], [2.5], CLIP),
    ]
    monkeypatch.undo()
    files = plot_guidance(ROWS, tmp_path / "..")
    assert [file.name for file in files] == ["precision_recall.png"], "what was not measured has no plot"
    assert np.asarray(Image.open(files[0])).std() > 5


def test_curves_of_clip_start_where_clip_does_nothing(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    curves, marks = {}, {}
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, *_, label, **__: curves.update({label: x}))
    monkeypatch.setattr(Axes, "annotate", lambda self, text, place, **_: marks.update({place[0]: text}))
    monkeypatch.setattr(Axes, "legend", lambda self: None)
    sweep = [Guidance(CLASSIFIER_FREE, 1.0), Guidance(CLASSIFIER_FREE, 3.0)]
    sweep += [Guidance(CLIP, scale) for scale in (-1.0, 2.0)] + [Guidance(BOTH, scale, 3.0) for scale in (4.0, 8.0)]
    rows = [row(guidance, recall=index, precision=0) for index, guidance in enumerate(sweep)]
    plot_guidance(rows, tmp_path)
    assert curves == {CLASSIFIER_FREE: [0, 1], CLIP: [2, 0, 3], BOTH: [1, 4, 5], "unguided": [0]}
    assert marks == {1: "3", 2: "-1", 3: "2", 4: "4", 5: "8"}

    curves.clear()
    plot_guidance(rows[2:], tmp_path)
    assert curves == {CLIP: [2, 3], BOTH: [4, 5]}, "what was not measured is no start"
    plot_guidance([*rows, row(Guidance(CLIP, 0.0), recall=6, precision=0)], tmp_path)
    assert curves[CLIP] == [2, 6, 3] and curves["unguided"] == [0, 6], "measured at scale 0 itself"


# -- the script ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    def call(*arguments):
        capsys.readouterr()  # what saving the models printed
        code = script.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_script_measures_a_checkpoint_and_goes_on(run, model, tmp_path):
    options = ("--output", tmp_path / "out", "--model", model, *QUICK)
    code, out, err = run(*options, "--guidance-scale", 1)
    assert code == 0, err
    assert out.startswith("| images | FID | Inception score | precision | recall | whole caption right, per cent |")
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


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory) -> str:
    """A tiny pipeline of another kind; its pictures have 32 pixels, of which it says nothing."""
    torch.manual_seed(0)
    small = {"block_out_channels": (8, 16), "norm_num_groups": 4}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": 257, "eos_token_id": 257, "pad_token_id": 257}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **small
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(vocab_size=258, max_position_embeddings=12, **text, **ends)),
        tokenizer=tiny_tokenizer(),
        unet=UNet2DConditionModel(
            sample_size=16,
            layers_per_block=1,
            cross_attention_dim=16,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            **small,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    folder = tmp_path_factory.mktemp("stable-diffusion")
    pipe.save_pretrained(folder / "text")
    StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False).save_pretrained(folder / "image")
    return str(folder / "text")


OTHER = ("--num-captions", "6", "--batch-size", "2", "--steps", "2", "--device", "cpu")


def test_it_measures_a_pipeline_that_is_not_glide_s(run, stable_diffusion, tmp_path):
    options = ("--output", tmp_path / "out", "--model", stable_diffusion, *OTHER)
    code, _, err = run(*options, "--guidance-scale", 1, 5)
    assert code == 0, err
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["name"] for row in results["sweep"]] == ["guidance-1", "guidance-5"]
    assert results["settings"] | {"size": 32, "steps": 2, "scheduler": "DDIMScheduler"} == results["settings"]
    drawn = sorted((tmp_path / "out/pictures/guidance-5").glob("*.png"))
    expected = StableDiffusionPipeline.from_pretrained(stable_diffusion)
    prompts = ShapesImages(6, seed=0).captions[2:4]
    call = {"num_inference_steps": 2, "guidance_scale": 5.0}
    picture = expected(prompts, generator=[torch.Generator().manual_seed(seed) for seed in (2, 3)], **call).images[1]
    assert len(drawn) == 6 and np.array_equal(Image.open(drawn[3]), picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scheduler", "ddim"], "--scheduler: for pipelines of GLIDE only, and "),
        (["--super-res-steps", "2", "--base-only"], "--base-only, --super-res-steps: for pipelines of GLIDE only"),
        (["--super-res-scheduler", "ddim"], "--super-res-scheduler: for pipelines of GLIDE only"),
        (["--steps", "fast27"], "--steps fast27: for pipelines of GLIDE only"),
        (["--clip-guidance-scale", "1"], "--clip-guidance-scale: for pipelines of GLIDE only"),
    ],
)
def test_options_of_glide_alone_are_named(run, stable_diffusion, tmp_path, options, message):
    code, out, err = run("--output", tmp_path / "out", "--model", stable_diffusion, *OTHER, *options)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.strip().endswith("is a StableDiffusionPipeline")
    assert err.startswith(f"evaluate.py: error: {message}") and not (tmp_path / "out").exists()


def test_models_that_need_more_than_a_caption_are_refused_before_anything_is_measured(run, stable_diffusion, tmp_path):
    swapped = tiny_pipeline()
    swapped.register_modules(unet=swapped.super_res_unet)
    swapped.save_pretrained(tmp_path / "swapped")
    code, out, err = run("--output", tmp_path / "out", "--model", tmp_path / "swapped", *QUICK)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"--model {tmp_path / 'swapped'} cannot generate from a caption: `unet` has 6 input channels" in err
    img2img = Path(stable_diffusion).with_name("image")
    code, out, err = run("--output", tmp_path / "out", "--model", img2img, *OTHER)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "StableDiffusionImg2ImgPipeline cannot generate from a caption alone" in err
    assert not (tmp_path / "out").exists()


def test_a_clip_that_does_not_fit_is_refused_before_anything_is_measured(run, model, tmp_path):
    options = ("--output", tmp_path / "out", "--model", model, *QUICK, "--clip-guidance-scale", "1")
    for name, clip in (("large", tiny_clip(image_size=32)), ("short", tiny_clip())):
        clip.save_pretrained(tmp_path / name)
        tiny_tokenizer(context=12 if name == "large" else 20).save_pretrained(tmp_path / name)
    for name, message in (
        ("large", "`clip_model` reads"),
        ("short", "`clip_tokenizer` has 20 tokens of context; `clip_model` reads 12"),
    ):
        code, out, err = run(*options, "--clip-model", tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(f"evaluate.py: error: --clip-model {tmp_path / name}: {message}")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "folder"), [("emoji", "emoji/noised-clip"), ("shapes", "noised-clip")])
def test_a_model_that_ships_is_guided_by_the_clip_of_its_world(run, tmp_path, monkeypatch, name, folder):
    opened = []

    def load(path):
        opened.append(Path(path))
        raise UserError("That is enough.")

    monkeypatch.setattr(run_evaluate, "load_noised_clip", load)
    options = ("--output", tmp_path / "out", "--model", name, *QUICK, "--features", "shapes")
    assert run(*options, "--clip-guidance-scale", "1")[0] == 2
    assert opened == [ROOT / "glide_pipelines" / "checkpoints" / folder]


@pytest.mark.parametrize(
    ("recommended", "scheduler", "steps"), [([999, 500], None, "100"), ([999, 500], "unipc", None), (None, None, None)]
)
def test_beside_a_clip_all_images_have_as_many_steps(run, tmp_path, monkeypatch, recommended, scheduler, steps):
    pipe = tiny_pipeline()
    pipe.scheduler = GLIDEDDIMScheduler.from_config(pipe.scheduler.config, default_timesteps=recommended)
    pipe.save_pretrained(tmp_path / "model")
    tiny_clip().save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    given = []

    def stop(*arguments):
        given.append(arguments[0].steps)
        raise UserError("That is enough.")

    monkeypatch.setattr(run_evaluate, "check_calls", stop)
    options = ["--output", tmp_path / "out", "--model", tmp_path / "model", "--num-captions", "6", "--device", "cpu"]
    options += ["--clip-model", tmp_path / "clip", "--clip-guidance-scale", "1", "--features", "shapes"]
    assert run(*options, *([] if scheduler is None else ["--scheduler", scheduler]))[0] == 2
    assert given == [steps]


def test_it_guides_by_a_clip_and_scores_with_it(run, model, tmp_path):
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
    # Base images that the judge can read.
    model = GLIDEPipeline(**tiny_components(upsampler=False) | {"unet": tiny_unet(sample_size=32)})
    model.save_pretrained(tmp_path / "model")
    tiny_clip(image_size=32).save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    comparison = load_script("compare_guidance", folder="tools")

    monkeypatch.setattr("glide_cli.run_evaluate.shipped", lambda name, checkpoint: str(tmp_path / "clip"))
    few = ("--guidance-scale", "1", "3", "--clip-guidance-scale", "50")
    options = ("--output", tmp_path / "out", "--model", tmp_path / "model", *QUICK, *few)
    assert comparison.main([str(option) for option in options]) == 0, capsys.readouterr().err
    names = {row["name"] for row in json.loads((tmp_path / "out/results.json").read_text())["sweep"]}
    assert names == {"guidance-1", "guidance-3", "clip-guidance-50", "guidance-2-clip-guidance-50"}
    for plot_file in ("precision_recall", "inception_score_fid", "clip_score_fid", "accuracy_recall"):
        assert (tmp_path / "out" / f"{plot_file}.png").is_file()


def test_the_comparison_s_choices(monkeypatch):
    comparison = load_script("compare_guidance", folder="tools")
    seen = {}
    monkeypatch.setattr("glide_cli.evaluate.run", lambda args: seen.update(vars(args)))
    assert comparison.main(["--output", "out", "--clip-beside", "3"]) == 0
    expected = {
        "base_only": True,  # CLIP guides the base stage
        "guidance_scale": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
        "clip_guidance_scale": [0.5, 1.0, 2.0, 4.0, 8.0, 16.0],
        "clip_beside": 3.0,
        "clip": "shapes",
    }
    assert {name: seen[name] for name in expected} == expected


def test_the_comparison_needs_no_clip_to_explain_itself(monkeypatch, capsys, model, tmp_path):
    comparison = load_script("compare_guidance", folder="tools")
    with pytest.raises(SystemExit) as exit_:
        comparison.main(["--help"])
    assert exit_.value.code == 0 and "--clip-beside" in capsys.readouterr().out
    monkeypatch.setattr("glide_cli.run_evaluate.shipped", lambda name, checkpoint: str(tmp_path / "nothing"))
    assert comparison.main(["--output", str(tmp_path / "out"), "--model", model, "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("compare_guidance.py: error:")
    assert "`clip_model` must be a noised CLIP with its tokenizer, got " in err


def test_an_output_that_is_a_file_is_named(run, model, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = run("--output", tmp_path / "file", "--model", model, *QUICK)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "`output`: " in err and "cannot be written to: Not a directory" in err


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
    quick = QUICK[: QUICK.index("--device")]  # the device of the processes is the variable's
    options = ("--model", model, *quick, "--guidance-scale", "1", "3")
    with socket.socket() as free:  # another run of the tests may be under way on this machine
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    command += [str(ROOT / "examples/evaluate.py"), "--output", str(tmp_path / "two"), *options]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "0/2 [" in result.stderr and "0/3 [" not in result.stderr  # two of the three batches are the first's
    assert run("--output", tmp_path / "one", *options, "--device", "cpu")[0] == 0
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
        (["--features", "no/such/folder"], "`features` must be 'inception' or a vision model"),
        (["--clip", "no/such/folder"], "`clip` must be a CLIP with its tokenizer, got 'no/such/folder'"),
        (["--clip-guidance-scale", "1", "--clip-model", "no/such/folder"], "`clip_model` must be a noised CLIP"),
        (["--model", "no/such/folder"], "--model no/such/folder: no such folder"),
        (["--label-column", "name"], "--label-column needs --features that is an image classifier"),
        (["--label-column", "name", "--features", "x"], "--label-column needs --data-dir or --dataset-name"),
        (["--neighbours", "0"], "--neighbours: must be a whole number of 1 or more, got '0'"),
    ],
)
def test_bad_arguments_are_named_in_one_line(run, model, tmp_path, arguments, message):
    code, out, err = run("--output", tmp_path / "out", "--model", model, "--device", "cpu", *arguments)
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("evaluate.py: error: ") and message in err
    assert not (tmp_path / "out").exists()
