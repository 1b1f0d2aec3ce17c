"""The `glide` command: its options, its errors (one line, exit code 2), and the file that it writes."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from commands import assert_user_error
from image_files import damaged_avif
from PIL import Image
from tiny import tiny_inpaint_pipeline, tiny_pipeline

import glide_cli
import glide_pipelines
from glide_cli import loading, options, output, run_draw
from glide_pipelines import (
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)


PROMPT = "a red circle"
QUICK = ("--steps", "2", "--super-res-steps", "2", "--device", "cpu")


# -- drawing --------------------------------------------------------------------------------------------------------


def test_draws_what_the_pipeline_draws(glide, model, tmp_path):
    output = tmp_path / "picture.png"
    code, out, _ = glide(PROMPT, "-o", output, "--model", model, "--seed", 5, *QUICK)
    assert code == 0
    assert out == f"{output}: 32 x 32 pixels, seed 5\n"
    pipe = GLIDEPipeline.from_pretrained(model)
    expected = pipe(
        PROMPT,
        num_inference_steps=2,
        super_res_num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert Image.open(output).tobytes() == expected.tobytes()
    assert os.listdir(tmp_path) == ["picture.png"]


def test_a_picture_of_a_grid_can_be_drawn_again_alone(glide, model, tmp_path):
    grid, alone = tmp_path / "grid.png", tmp_path / "alone.png"
    assert glide(PROMPT, "-o", grid, "--model", model, "--seed", 5, "--num-images", 3, *QUICK)[0] == 0
    assert glide(PROMPT, "-o", alone, "--model", model, "--seed", 7, *QUICK)[0] == 0
    with Image.open(grid) as picture:
        assert picture.size == (65, 65)  # two columns with a gap of one pixel
        third = picture.crop((0, 33, 32, 65))
        assert picture.getpixel((64, 64)) == (255, 255, 255)
    differences = (abs(a - b) for a, b in zip(third.tobytes(), Image.open(alone).convert("RGB").tobytes(), strict=True))
    assert max(differences) <= 1


def test_without_a_seed_it_names_the_one_it_drew(glide, model, tmp_path):
    output = tmp_path / "picture.png"
    _, out, _ = glide(PROMPT, "-o", output, "--model", model, *QUICK)
    first = output.read_bytes()
    assert glide(PROMPT, "-o", output, "--model", model, "--seed", out.split()[-1], *QUICK)[0] == 0
    assert output.read_bytes() == first


@pytest.mark.parametrize(
    ("count", "columns", "size"),
    [(1, 1, (32, 32)), (4, 2, (65, 65)), (5, 3, (98, 65)), (6, 2, (65, 98))],
)
def test_grid(count, columns, size):
    images = [Image.new("RGB", (32, 32), (index, 0, 0)) for index in range(count)]
    grid = output.make_grid(images, columns)
    assert grid.size == size
    for index in range(count):
        row, column = divmod(index, columns)
        assert grid.getpixel((column * 33, row * 33)) == (index, 0, 0)


def test_several_prompts_with_several_pictures_have_a_row_each(glide, model, tmp_path):
    output = tmp_path / "grid.png"
    options = ("--model", model, "--num-images", 3, "--no-upsample", *QUICK)
    assert glide(PROMPT, "a blue star", "-o", output, *options)[0] == 0
    assert Image.open(output).size == (3 * 9 - 1, 2 * 9 - 1)


@pytest.mark.parametrize("scheduler", options.SCHEDULERS)
def test_every_scheduler(glide, model, tmp_path, scheduler):
    output = tmp_path / "picture.png"
    options = ("--scheduler", scheduler, "--super-res-scheduler", scheduler, "--steps", 4, "--super-res-steps", 4)
    code, _, err = glide(PROMPT, "-o", output, "--model", model, "--device", "cpu", "-q", *options)
    assert (code, err) == (0, "")
    assert output.exists()


@pytest.mark.parametrize(
    ("capabilities", "dtype"), [({"avx512_bf16": True}, torch.bfloat16), ({"avx512_f": True}, torch.float32)]
)
def test_the_number_format_is_the_one_that_the_processor_is_fast_in(
    glide, model, tmp_path, monkeypatch, capabilities, dtype
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    output = tmp_path / "image.png"
    assert glide(PROMPT, "-o", output, "--model", model, "--device", "cpu", "-q", *QUICK)[0] == 0
    assert json.loads(Image.open(output).info["glide"])["dtype"] == str(dtype).removeprefix("torch.")
    # An image is remembered with its format: another processor makes the same one.
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert glide("--like", output, "-o", tmp_path / "again.png", "--model", model, "--device", "cpu", "-q")[0] == 0
    assert Image.open(tmp_path / "again.png").tobytes() == Image.open(output).tobytes()


def test_the_options_reach_the_pipeline(glide, model, tmp_path, monkeypatch):
    seen = {}
    draw_really = GLIDEPipeline.__call__

    def record(self, prompt, **options):
        seen.update(options, prompt=prompt, scheduler=type(self.scheduler), unet=self.super_res_unet)
        seen["dtype"] = self.unet.dtype
        return draw_really(self, prompt, **options)

    monkeypatch.setattr(GLIDEPipeline, "__call__", record)
    code, _, err = glide(
        *(PROMPT, "-o", tmp_path / "picture.jpg", "--model", model, "--negative-prompt", "a square"),
        *("--steps", "1,2", "--super-res-steps", "fast27", "--guidance-scale", "1.5", "--scheduler", "dpm-solver++"),
        *("--dtype", "bfloat16", "--device", "cpu"),
    )
    assert code == 0, err
    assert seen["prompt"] == [PROMPT]
    assert seen["negative_prompt"] == "a square"
    assert seen["timesteps"] == "1,2"
    assert seen["super_res_timesteps"] == "fast27"
    assert seen["guidance_scale"] == 1.5
    assert seen["scheduler"] is diffusers.DPMSolverMultistepScheduler
    assert str(seen["dtype"]) == "torch.bfloat16"
    assert Image.open(tmp_path / "picture.jpg").format == "JPEG"


@pytest.mark.parametrize(
    ("options", "steps", "schedulers"),
    [
        (["--fast"], 10, ("GLIDEDDPMScheduler", "DPMSolverMultistepScheduler")),
        (["--fast", "--steps", "4"], 4, ("GLIDEDDPMScheduler", "DPMSolverMultistepScheduler")),
        (["--steps", "4", "--scheduler", "ddim", "--fast"], 4, ("GLIDEDDIMScheduler", "DPMSolverMultistepScheduler")),
        (["--fast", "--super-res-scheduler", "unipc"], 10, ("GLIDEDDPMScheduler", "UniPCMultistepScheduler")),
    ],
)
def test_fast_fills_in_what_is_not_said(glide, model, tmp_path, monkeypatch, options, steps, schedulers):
    seen = {}
    draw_really = GLIDEPipeline.__call__

    def record(self, prompt, **call):
        seen.update(call, schedulers=(self.scheduler, self.super_res_scheduler))
        return draw_really(self, prompt, **call)

    monkeypatch.setattr(GLIDEPipeline, "__call__", record)
    code, _, err = glide(PROMPT, "-o", tmp_path / "a.png", "--model", model, "--device", "cpu", *options)
    assert code == 0, err
    assert tuple(type(scheduler).__name__ for scheduler in seen["schedulers"]) == schedulers
    assert (seen["num_inference_steps"], seen["super_res_num_inference_steps"]) == (steps, 10)
    for scheduler in seen["schedulers"]:
        if isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
            assert scheduler.config.algorithm_type == "sde-dpmsolver++"


def test_a_scheduler_that_takes_the_place_of_another_is_the_one_that_was_named(model):
    """What one leaves in the config does not decide what another is."""
    current = GLIDEPipeline.from_pretrained(model).scheduler
    expected = {"sde-dpm-solver++": "sde-dpmsolver++", "deis": "deis", "dpm-solver++": "dpmsolver++"}
    for name, algorithm in [*expected.items(), *expected.items()]:
        current = loading.other_scheduler(current, name)
        assert current.config.algorithm_type == algorithm


def test_quiet(glide, model, tmp_path):
    assert glide(PROMPT, "-o", tmp_path / "picture.png", "--model", model, "-q", *QUICK) == (0, "", "")


@pytest.fixture
def terminal(monkeypatch):
    """Have the command believe that somebody looks at its messages."""
    monkeypatch.setattr(run_draw, "is_watched", lambda: True)


def test_progress_of_both_stages_is_for_a_terminal(glide, model, tmp_path, terminal):
    _, _, err = glide(PROMPT, "-o", tmp_path / "picture.png", "--model", model, *QUICK)
    assert re.search(r"base 8x8: 100%.* 2/2 ", err)
    assert re.search(r"super_res 32x32: 100%.* 2/2 ", err)
    assert "Loading" not in err


def test_a_file_of_messages_gets_no_progress_bars(glide, model, tmp_path):
    assert glide(PROMPT, "-o", tmp_path / "picture.png", "--model", model, *QUICK)[2] == ""


def test_a_prompt_outside_the_shapes_world_is_warned_of(glide, model, tmp_path):
    pipe = GLIDEPipeline.from_pretrained(model)
    pipe.register_to_config(prompt_domain="shapes")
    pipe.save_pretrained(tmp_path / "model")
    output = tmp_path / "picture.png"
    _, _, err = glide("a corgi", "-o", output, "--model", tmp_path / "model", *QUICK)
    assert err.count("glide: warning: ") == 1
    assert "'a corgi'" in err
    _, _, err = glide(PROMPT, "-o", output, "--model", tmp_path / "model", *QUICK)
    assert "warning" not in err


# -- editing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """A picture, and a mask whose left half is white."""
    picture, mask = Image.new("RGB", (32, 32), (10, 200, 30)), Image.new("L", (32, 32))
    mask.paste(255, (0, 0, 16, 32))
    picture.save(tmp_path / "in.png")
    mask.save(tmp_path / "mask.png")
    return tmp_path / "in.png", tmp_path / "mask.png"


@pytest.mark.parametrize(
    ("words", "world"),
    [
        (["a red circle above a blue square"], "shapes"),
        (["a taxi"], "emoji"),
        (["a red circle", "a slice of pizza"], "emoji"),
        (["a corgi playing a flute"], "emoji"),
        (["\U0001f355"], "emoji"),
        ([""], "shapes"),
        (["a taxi", "--lora", "of-shapes"], "shapes"),
        (["a taxi", "--clip-guidance-scale", "2"], "emoji"),
        (["a taxi", "--clip-model", "of-shapes"], "shapes"),
    ],
)
def test_without_a_model_the_one_that_knows_the_words_is_taken_and_named(glide, tmp_path, monkeypatch, words, world):
    pipe = GLIDEPipeline(**tiny_pipeline().components)
    asked = []

    def load(**values):
        asked.append(values["model"])
        return pipe

    monkeypatch.setattr(run_draw, "open_pipeline", load)
    for loader in ("_load_adapters", "_clip_guidance"):
        monkeypatch.setattr(run_draw, loader, lambda *_: None)
    output = tmp_path / "image.png"
    code, out, _ = glide(*words, "-o", output, "--seed", 1, *QUICK)
    assert (code, asked) == (0, [world])
    assert f" pixels by the {world} model, seed" in out
    code, _, err = glide("--like", output, "-o", tmp_path / "again.png")
    assert (code, asked) == (0, [world, world]), err


def test_a_mask_makes_it_inpaint(glide, model, files, tmp_path):
    output = tmp_path / "out.png"
    code, _, err = glide(
        PROMPT, "--image", files[0], "--mask", files[1], "-o", output, "--model", model, "--seed", 1, *QUICK
    )
    assert code == 0, err
    colours = Image.open(output).crop((16, 0, 32, 32)).getcolors()
    assert colours == [(16 * 32, (10, 200, 30))]
    assert len(Image.open(output).crop((0, 0, 16, 32)).getcolors()) > 1


def test_without_a_model_a_mask_takes_the_inpainting_checkpoint(glide, files, tmp_path, monkeypatch):
    tiny_inpaint_pipeline().save_pretrained(tmp_path / "inpaint")
    seen = []
    draw_really = GLIDEInpaintPipeline.__call__
    monkeypatch.setattr(loading, "pretrained_checkpoint", lambda world, name: tmp_path / name)
    monkeypatch.setattr(
        GLIDEInpaintPipeline, "__call__", lambda pipe, *a, **k: seen.append(pipe.mode) or draw_really(pipe, *a, **k)
    )
    options = ("--image", files[0], "--mask", files[1], "-o", tmp_path / "out.png", *QUICK)
    code, _, err = glide(PROMPT, *options)
    assert code == 0, err
    assert seen == ["fine-tuned"]


def test_a_picture_alone_is_a_sketch(glide, model, files, tmp_path, terminal):
    output = tmp_path / "out.png"
    options = ("--image", files[0], "-o", output, "--model", model, "--strength", "0.5", "--seed", 1, *QUICK)
    code, _, err = glide(PROMPT, *options)
    assert code == 0, err
    assert Image.open(output).size == (32, 32)
    assert "| 1/1 [" in err and "| 2/2 [" in err  # half of the base stage's two steps, all of the upsampler's


@pytest.mark.parametrize("task", [("--mask", "{mask}"), ("--strength", "0.5"), ("--enlarge",)])
@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_an_edit_is_in_the_colour_space_of_its_image(glide, model, files, tmp_path, task, ending):
    photo, output = tmp_path / "photo.png", tmp_path / f"out.{ending}"
    steps = QUICK[2:] if "--enlarge" in task else QUICK
    options = ("--image", photo, *(word.format(mask=files[1]) for word in task), "--model", model, *steps)
    for space, is_kept in ((b"RGB ", True), (b"GRAY", False)):  # what is generated is RGB
        profile = bytes(16) + space + bytes(108)
        with Image.open(files[0]) as image:
            image.save(photo, icc_profile=profile)
        code, _, err = glide(PROMPT, *options, "-o", output)
        assert code == 0, err
        with Image.open(output) as edited:
            assert edited.info.get("icc_profile") == (profile if is_kept else None)


def test_enlarge(glide, model, files, tmp_path):
    output = tmp_path / "out.png"
    options = ("--image", files[0], "--enlarge", "-o", output, "--model", model, "--super-res-steps", 2, "-q")
    assert glide(PROMPT, *options) == (0, "", "")
    assert Image.open(output).size == (128, 128)


def test_an_upsampler_saved_alone_enlarges(glide, model, files, tmp_path):
    GLIDESuperResolutionPipeline.from_pretrained(model).save_pretrained(tmp_path / "upsampler")
    options = ("--image", files[0], "--enlarge", "--model", tmp_path / "upsampler", "--super-res-steps", 2)
    code, _, err = glide(PROMPT, *options, "-o", tmp_path / "out.png")
    assert code == 0, err
    assert Image.open(tmp_path / "out.png").size == (128, 128)


def test_enlarging_without_an_upsampler_is_refused(glide, files, tmp_path):
    tiny_pipeline(upsampler=False).save_pretrained(tmp_path / "base")
    for model, words in (("base", "holds no upsampler"), ("base/model_index.json", "a file; give its folder")):
        options = ("--image", files[0], "--enlarge", "--model", tmp_path / model, "-o", tmp_path / "out.png")
        code, _, err = glide(PROMPT, *options)
        assert code == 2 and words in err and err.count("glide: error:") == 1


def test_fast_enlarging_takes_fast_s_steps_of_the_upsampler(glide, model, files, tmp_path, terminal):
    options = ("--image", files[0], "--enlarge", "--fast", "-o", tmp_path / "out.png", "--model", model, "--seed", 1)
    code, _, err = glide(PROMPT, *options)
    assert code == 0, err
    assert "| 10/10 [" in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mask", "{mask}"], ["--mask needs --image"]),
        (["--enlarge"], ["--enlarge needs --image"]),
        (["--strength", "0.5"], ["--strength needs --image"]),
        (["--image", "{image}", "--mask", "{mask}", "--enlarge"], ["--mask and --enlarge are different tasks"]),
        (["--image", "{image}", "--enlarge", "--steps", "5"], ["--steps", "--enlarge does not run"]),
        (["--image", "{image}", "--enlarge", "--guidance-scale", "0"], ["--guidance-scale", "--enlarge does not run"]),
        (["--image", "{image}", "--enlarge", "--negative-prompt", ""], ["--negative-prompt", "--enlarge does not run"]),
        (["--image", "{image}", "--enlarge", "--no-upsample"], ["--no-upsample is for a prompt alone"]),
        (["--image", "{image}", "--strength", "0"], ["--strength", "above 0", "'0'"]),
        (["--image", "{image}", "--strength", "2"], ["--strength", "'2'"]),
        (["--image", "missing.png"], ["--image", "no file 'missing.png'"]),
        (["--image", "{text}"], ["text.txt cannot be read as an image: PNG, JPEG and WebP can"]),
        (["--image", "{image}", "--mask", "{text}"], ["text.txt cannot be read as an image"]),
        (["--image", "{avif}"], ["photo.avif cannot be read as an image: Failed to decode"]),
        (["--image", "{image}", "--mask", "{black}"], ["`mask_image` 0 of 1 has nothing to repaint"]),
    ],
)
def test_bad_editing_options(glide, model, files, tmp_path, options, words):
    Image.new("L", (32, 32)).save(tmp_path / "black.png")
    (tmp_path / "text.txt").write_text("not a picture")
    names = {"image": files[0], "mask": files[1], "black": tmp_path / "black.png", "text": tmp_path / "text.txt"}
    if "{avif}" in options:
        names["avif"] = tmp_path / "photo.avif"
        names["avif"].write_bytes(damaged_avif())
    options = [option.format(**names) for option in options]
    assert_user_error(glide(PROMPT, "-o", tmp_path / "out.png", "--model", model, "--device", "cpu", *options), *words)
    assert not (tmp_path / "out.png").exists()


# -- the page of help -----------------------------------------------------------------------------------------------


def test_help_version_and_mistyped_options_do_not_load_torch():
    code = """
import sys, glide_cli
for arguments in (["--help"], ["--version"], ["a prompt", "-o", "x.png", "--steps", "none"]):
    try:
        glide_cli.main(arguments)
    except SystemExit:
        pass
assert "torch" not in sys.modules and "glide_pipelines" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_help_states_the_pipeline_s_own_defaults(glide):
    code, page, _ = glide("--help")
    assert glide("help") == (code, page, "")
    assert code == 0
    assert max(map(len, page.splitlines())) <= 105
    for action in glide_cli.command_parser("draw")._actions:
        assert action.help, action.dest
    drawing, inpainting = tiny_pipeline(), tiny_inpaint_pipeline()
    scales = (drawing.default_guidance_scale, inpainting.default_guidance_scale)
    assert "(default: what the model recommends, else {:g}, or {:g} with --mask)".format(*scales) in " ".join(
        page.split()
    )
    assert GLIDEImg2ImgPipeline.from_pipe(drawing).default_guidance_scale == scales[0]
    strength = inspect.signature(GLIDEImg2ImgPipeline.__call__).parameters["strength"].default
    assert f"(default: {strength})" in page
    from glide_pipelines.pipelines import pipeline_utils

    page = " ".join(page.split())
    assert (
        f"steps of the base model (default: the model's own, else {pipeline_utils.DEFAULT_TIMESTEPS['base']})" in page
    )
    assert f"of the upsampler (default: its own, else {pipeline_utils.DEFAULT_TIMESTEPS['super_res']})" in page


def test_version(glide):
    assert glide("--version") == (0, f"glide-pipelines {glide_pipelines.__version__}\n", "")


@pytest.mark.parametrize("module", ["glide_pipelines", "glide_cli"])
def test_python_m(module):
    result = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert result.stdout == f"glide-pipelines {glide_pipelines.__version__}\n"


# -- the commands -----------------------------------------------------------------------------------------------------


def test_the_help_lists_the_other_commands(glide):
    code, page, _ = glide("--help")
    assert code == 0
    for command, text in glide_cli.COMMANDS.items():
        assert command == "draw" or re.search(rf"^  glide {command} +{re.escape(text)}$", page, re.MULTILINE)


@pytest.mark.parametrize("command", glide_cli.COMMANDS)
def test_every_command_explains_itself_without_torch(command):
    code = f"""
import sys, glide_cli
try:
    glide_cli.main(["{command}", "--help"])
except SystemExit as exit_:
    assert exit_.code == 0
assert "torch" not in sys.modules and "glide_pipelines" not in sys.modules
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: glide")


@pytest.mark.parametrize("command", glide_cli.COMMANDS)
def test_every_command_reports_a_mistake_in_one_line(glide, command):
    code, out, err = glide(command, "--nosuch")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("glide: error: " if command == "draw" else f"glide {command}")


def test_draw_is_what_glide_does_without_a_command(glide, model, tmp_path):
    for name, command in (("a.png", ("draw",)), ("b.png", ())):
        assert glide(*command, PROMPT, "-o", tmp_path / name, "--model", model, "--seed", 5, *QUICK)[0] == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_prompt_that_is_the_name_of_a_command(glide, model, tmp_path):
    code, _, err = glide("draw", "train", "-o", tmp_path / "a.png", "--model", model, *QUICK)
    assert code == 0, err


def test_of_an_animation_the_first_frame_is_taken_and_that_is_said(glide, model, tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / "in.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "in.png")
    made = []
    for name in ("in.gif", "in.png"):
        options = ("--image", tmp_path / name, "--model", model, "--seed", 1, *QUICK)
        code, _, err = glide(PROMPT, "-o", tmp_path / "out.png", *options)
        assert code == 0 and ("in.gif has 3 frames: the first one is taken" in err) == (name == "in.gif")
        made.append(Image.open(tmp_path / "out.png").tobytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a", "red", "circle"], 'a prompt of several stands in "quotes"'),
        ([PROMPT, "--negative-prompt", "a square", "--guidance-scale", "1"], "`negative_prompt` changes nothing"),
        ([PROMPT, "--guidance-interval", "0", "0.5", "--guidance-scale", "1"], "--guidance-interval changes nothing"),
    ],
)
def test_what_was_meant_otherwise(glide, model, tmp_path, arguments, words):
    code, _, err = glide(*arguments, "-o", tmp_path / "a.png", "--model", model, "--device", "cpu", *QUICK)
    assert code == 0 and words in err and err.count("\n") == 1


# -- errors of the user's ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["PROMPT", "-o", "glide --help"]),
        ([PROMPT], ["-o"]),
        (["-o", "x.png"], ["PROMPT"]),
        ([PROMPT, "-o", "x"], ["--output", "'x'", ".png"]),
        ([PROMPT, "-o", "x.doc"], ["--output", "x.doc"]),
        ([PROMPT, "-o", "x.blp"], ["--output", "'x.blp'", ".png, .jpg, .webp"]),
        ([PROMPT, "-o", "missing/x.png"], ["--output", "missing"]),
        ([PROMPT, "-o", "x.png", "--steps", "0"], ["--steps", "'0'", "fast27"]),
        ([PROMPT, "-o", "x.png", "--steps", "-3"], ["--steps"]),
        ([PROMPT, "-o", "x.png", "--steps", "fast28"], ["--steps", "fast28"]),
        ([PROMPT, "-o", "x.png", "--super-res-steps", "many"], ["--super-res-steps", "many"]),
        ([PROMPT, "-o", "x.png", "--guidance-scale", "strong"], ["--guidance-scale", "strong"]),
        ([PROMPT, "-o", "x.png", "--guidance-scale", "nan"], ["--guidance-scale", "nan"]),
        ([PROMPT, "-o", "x.png", "--num-images", "0"], ["--num-images", "'0'"]),
        ([PROMPT, "-o", "x.png", "--num-images", "1.5"], ["--num-images", "1.5"]),
        ([PROMPT, "-o", "x.png", "--seed", "-1"], ["--seed", "-1"]),
        ([PROMPT, "-o", "x.png", "--scheduler", "magic"], ["--scheduler", "magic", "unipc"]),
        ([PROMPT, "-o", "x.png", "--dtype", "int8"], ["--dtype", "int8", "float16"]),
        ([PROMPT, "-o", "x.png", "--device", "toaster"], ["--device", "toaster"]),
        ([PROMPT, "-o", "x.png", "--device", "meta"], ["--device meta", "shapes only"]),
        ([PROMPT, "-o", "x.png", "--device", "hpu"], ["--device hpu"]),
        ([PROMPT, "-o", "x.png", "--model", "missing"], ["--model missing", "no such folder"]),
        ([PROMPT, "-o", "x.png", "--model", "./missing/model"], ["--model", "no such folder"]),
        ([PROMPT, "-o", "x.png", "--stepps", "3"], ["--stepps"]),
    ],
)
def test_a_bad_option(glide, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_user_error(glide(*arguments), *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "5000"], ["num_inference_steps", "5000", "1000"]),
        (["--steps", "ddim999999"], ["timesteps", "ddim999999"]),
        (["--steps", "fast27", "--scheduler", "unipc"], ["timesteps", "UniPC"]),
    ],
)
def test_what_the_pipeline_refuses(glide, model, tmp_path, options, words):
    result = glide(PROMPT, "-o", tmp_path / "x.png", "--model", model, "--device", "cpu", *options)
    assert_user_error(result, *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("broken", ["model_index.json", "unet", "text_encoder", "scheduler"])
def test_a_broken_model(glide, model, tmp_path, broken):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    if broken.endswith(".json"):
        (folder / broken).write_text("{")
    elif broken in ("unet", "text_encoder"):
        weights = next((folder / broken).glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:20_000])
    else:
        shutil.rmtree(folder / broken)
    assert_user_error(glide(PROMPT, "-o", tmp_path / "x.png", "--model", folder, *QUICK), "--model")
    assert not (tmp_path / "x.png").exists()


def test_a_model_that_the_hub_does_not_have(glide, tmp_path, monkeypatch):
    def not_found(name, **kwargs):
        raise OSError(f"{name} is not a model\nof the Hub")

    monkeypatch.setattr(GLIDEPipeline, "from_pretrained", not_found)
    result = glide(PROMPT, "-o", tmp_path / "x.png", "--model", "nobody/nothing")
    assert_user_error(result, "--model nobody/nothing", "is not a model of the Hub")


@pytest.mark.skipif(torch.backends.mps.is_built(), reason="this torch knows the device")
def test_a_device_that_torch_was_not_built_for_is_a_short_line(glide, tmp_path):
    result = glide(PROMPT, "-o", tmp_path / "x.png", "--device", "mps")
    assert_user_error(result, "--device mps")
    assert len(result[2]) < 200


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # some formats, by Pillow
def test_every_ending_that_is_accepted_can_be_written(tmp_path):
    refused = set()
    for ending in Image.registered_extensions():
        path = tmp_path / f"x{ending}"
        try:
            options.image_file(str(path))
        except argparse.ArgumentTypeError:
            refused.add(ending)
        else:
            output.save_image(Image.new("RGB", (64, 64), "red"), path)
            assert path.exists()
    assert refused >= {".blp", ".xbm", ".msp", ".palm", ".emf", ".wmf", ".bufr", ".grib", ".h5", ".hdf", ".psd"}
    assert not refused & {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pdf"}


def test_the_old_picture_stays_when_writing_fails(glide, model, tmp_path, monkeypatch):
    output = tmp_path / "x.png"
    output.write_bytes(b"the old picture")

    save_really = Image.Image.save

    def full(self, file, *arguments, **options):
        if not isinstance(file, Path):  # the ending is tried out in memory
            return save_really(self, file, *arguments, **options)
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert_user_error(glide(PROMPT, "-o", output, "--model", model, "-q", *QUICK), "No space left on device", "x.png")
    assert output.read_bytes() == b"the old picture"
    assert os.listdir(tmp_path) == ["x.png"]


def test_ctrl_c(glide, tmp_path, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_draw, "draw", interrupted)
    assert glide(PROMPT, "-o", tmp_path / "x.png") == (130, "", "")


def test_a_mistake_of_ours_keeps_its_traceback(glide, model, tmp_path, monkeypatch):
    def broken(self, *args, **options):
        raise TypeError("ours")

    monkeypatch.setattr(GLIDEPipeline, "__call__", broken)
    with pytest.raises(TypeError, match="ours"):
        glide(PROMPT, "-o", tmp_path / "x.png", "--model", model, *QUICK)


def test_out_of_memory_is_an_error_that_says_what_needs_less(glide, model, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nGPU 0 has 3 GiB.")

    monkeypatch.setattr(glide_pipelines.GLIDEUNet2DConditionModel, "forward", fail)
    code, _, err = glide(PROMPT, "-o", tmp_path / "image.png", "--model", model, "--device", "cpu")
    assert code == 2
    assert err.splitlines()[-1].startswith("glide: error: CUDA out of memory: generate fewer images at a time")
