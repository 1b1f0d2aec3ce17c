"""What `glide` writes: files that remember how they were generated, and the ways to name them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from commands import assert_user_error
from image_files import damaged_exif
from PIL import Image, ImageChops, ImageStat
from tiny import tiny_clip, tiny_components, tiny_inpaint_pipeline, tiny_pipeline, tiny_tokenizer

from glide_cli import loading
from glide_pipelines import GLIDEDDIMScheduler, GLIDEPipeline, __version__, shapes_checkpoint
from glide_pipelines.checkpoints import pretrained_checkpoint
from glide_pipelines.metadata import MetadataError, fingerprint, parameters_text, read_metadata, save_options


PROMPT = "a red circle"
QUICK = ("--steps", "2", "--super-res-steps", "2", "--device", "cpu")


@pytest.fixture
def draw(glide, model, tmp_path, monkeypatch):
    """Run the command quickly in an empty folder, and return stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[str, str]:
        code, out, err = glide(*arguments, "--device", "cpu")
        assert code == 0, err
        return out, err

    return run


@pytest.fixture
def new(draw, model):
    """Generate from a prompt with the tiny model, in two steps."""
    return lambda *arguments: draw(*arguments, "--model", model, *QUICK)


def pixels(path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


# -- images that remember ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_like_generates_the_same_image(draw, new, ending):
    new(PROMPT, "-o", f"a.{ending}", "--seed", "5", "--negative-prompt", "ein „Kreis“", "--guidance-scale", "2.5")
    draw("--like", f"a.{ending}", "-o", f"b.{ending}")
    assert pixels(f"a.{ending}") == pixels(f"b.{ending}")
    record = read_metadata(f"b.{ending}")
    assert record == read_metadata(f"a.{ending}")
    expected = {"prompt": [PROMPT], "seed": 5, "negative_prompt": "ein „Kreis“", "guidance_scale": 2.5, "steps": 2}
    assert expected.items() <= record.items()
    assert (record["package"], record["version"]) == ("glide-pipelines", __version__)


def test_a_grid_remembers_all_its_images(draw, new):
    new(PROMPT, "a blue star", "-o", "a.png", "--seed", "5", "--num-images", "2")
    assert read_metadata("a.png")["seeds"] == [5, 6, 7, 8]
    draw("--like", "a.png", "-o", "b.png")
    assert pixels("a.png") == pixels("b.png")


def test_options_beside_like_change_what_they_name(draw, new):
    new(PROMPT, "-o", "a.png", "--seed", "5", "--scheduler", "dpm-solver++")
    draw("--like", "a.png", "a blue star", "-o", "b.png", "--seed", "6", "--scheduler", "ddim")
    draw("--like", "a.png", "-o", "c.png", "--fast")
    before, changed, fast = map(read_metadata, ("a.png", "b.png", "c.png"))
    names = ("prompt", "seed", "seeds", "scheduler", "scheduler_class", "fingerprints")
    assert {name for name in before if before[name] != changed[name]} == set(names)
    assert (changed["prompt"], changed["seed"], changed["scheduler"]) == (["a blue star"], 6, "ddim")
    assert (fast["steps"], fast["super_res_steps"], fast["super_res_scheduler"]) == (10, 10, "sde-dpm-solver++")


def test_fast_leaves_stages_alone_that_take_fewer_steps_by_themselves(draw):
    pipe = tiny_pipeline()
    pipe.scheduler.register_to_config(default_timesteps=[999, 500])
    pipe.super_res_scheduler.register_to_config(trained_timesteps=[999, 640, 300])
    pipe.save_pretrained("few")
    few = (PROMPT, "--model", "few", "--seed", "5")
    draw(*few, "-o", "own.png")
    _, said = draw(*few, "-o", "fast.png", "--fast")
    assert said.splitlines() == [
        "glide: warning: --fast leaves the base at its own 2 steps and the upsampler at its own 3 steps."
    ]
    assert read_metadata("fast.png") == read_metadata("own.png") and pixels("fast.png") == pixels("own.png")

    draw(*few, "-o", "slow.png", "--steps", "20", "--super-res-steps", "3")
    draw("--like", "slow.png", "-o", "again.png", "--fast", "-q")
    assert pixels("again.png") == pixels("own.png")
    _, said = draw("--like", "slow.png", "-o", "again.png", "--fast", "--steps", "4", "--super-res-steps", "4")
    record = read_metadata("again.png")
    assert (record["steps"], record["super_res_steps"], record.get("super_res_scheduler")) == (4, 4, None)
    assert "--fast" not in said

    # A sketch steers the base, so what the checkpoint recommends does not count there.
    Image.new("RGB", (32, 32), "red").save("in.png")
    _, said = draw(*few, "--image", "in.png", "-o", "sketch.png", "--fast")
    assert said.splitlines() == ["glide: warning: --fast leaves the upsampler at its own 3 steps."]
    record = read_metadata("sketch.png")
    assert (record["steps"], record["super_res_steps"], record.get("super_res_scheduler")) == (10, 3, None)


def test_edits_remember_their_images(draw, model):
    Image.new("RGB", (32, 32), "red").save("in.png")
    Image.new("L", (32, 32), 255).save("mask.png")
    tasks = {
        "sketch": ("--strength", "0.5", *QUICK),
        "inpaint": ("--mask", "mask.png", "--padding-mask-crop", "2", "--num-resample", "2", *QUICK),
        "enlarge": ("--enlarge", "--super-res-steps", "2"),
    }
    for task, options in tasks.items():
        draw(PROMPT, "--image", "in.png", *options, "--model", model, "-o", f"{task}.png")
        assert draw("--like", f"{task}.png", "-o", "again.png")[1] == ""
        assert pixels(f"{task}.png") == pixels("again.png")
    Image.new("RGB", (32, 32), "blue").save("in.png")
    assert "in.png is another image now than when sketch.png" in draw("--like", "sketch.png", "-o", "again.png")[1]
    assert "another" not in draw("--like", "sketch.png", "--image", "mask.png", "-o", "again.png")[1]


def test_other_weights_under_the_same_name_are_told(draw, model, tmp_path):
    pipe = GLIDEPipeline.from_pretrained(model)
    pipe.save_pretrained("model")
    draw(PROMPT, "--model", "model", *QUICK, "-o", "a.png")
    torch.nn.init.ones_(pipe.unet.conv_in.bias)
    pipe.save_pretrained("model")
    assert "model is another model now than when a.png was generated" in draw("--like", "a.png", "-o", "b.png")[1]
    assert "another" not in draw("--like", "a.png", "-o", "b.png", "--model", model)[1]


def test_no_metadata(new, glide):
    new(PROMPT, "-o", "a.png", "--no-metadata")
    with Image.open("a.png") as image:
        assert image.text == {}
    assert_user_error(glide("--like", "a.png", "-o", "b.png"), "--like a.png: the image does not say how")


def test_a_record_that_cannot_be_read_is_an_error(glide, tmp_path):
    (tmp_path / "a.png").write_bytes(damaged_exif())
    assert_user_error(glide("--like", tmp_path / "a.png", "-o", tmp_path / "b.png"), "a.png: unpack requires a buffer")


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("not JSON", "does not say how"),
        ('{"package": "another"}', "does not say how"),
        ("[]", "does not say how"),
        ('{"package": "glide-pipelines", "prompt": ["x"], "steps": "many"}', "--like x.png: argument --steps"),
        ('{"package": "glide-pipelines", "prompt": ["x"], "seed": "/etc/passwd"}', "--like x.png: argument --seed"),
        ('{"package": "glide-pipelines", "prompt": 3}', "--like x.png"),
        ('{"package": "glide-pipelines"}', "give PROMPT"),
    ],
)
def test_a_foreign_or_damaged_record_is_refused_in_a_line(glide, tmp_path, monkeypatch, record, words):
    from PIL.PngImagePlugin import PngInfo

    monkeypatch.chdir(tmp_path)
    chunks = PngInfo()
    chunks.add_text("parameters", "a castle\nSteps: 20, Sampler: Euler a")
    chunks.add_text("glide", record)
    Image.new("RGB", (8, 8)).save("x.png", pnginfo=chunks)
    assert_user_error(glide("--like", "x.png", "-o", "y.png"), words)
    assert os.listdir() == ["x.png"]


def test_like_needs_an_image(glide, tmp_path):
    (tmp_path / "text.png").write_text("text")
    assert_user_error(glide("--like", tmp_path / "text.png", "-o", tmp_path / "y.png"), "--like", "text.png")


def test_what_viewers_read():
    """The widespread form: the prompt, a line of what to avoid, and one of settings that begins with the steps."""
    record = {
        "prompt": [PROMPT],
        "negative_prompt": "a square",
        "steps": "10,10,7",
        "scheduler": "ddim",
        "guidance_scale": 2.0,
        "seed": 5,
        "size": (128, 64),
        "model": "a, b",
        "version": "1.0",
    }
    assert parameters_text(record).splitlines() == [
        PROMPT,
        "Negative prompt: a square",
        'Steps: 27, Sampler: ddim, CFG scale: 2.0, Seed: 5, Size: 128x64, Model: "a, b", Version: glide-pipelines 1.0',
    ]


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP"])
def test_viewers_find_the_text_in_exif(image_format):
    file = io.BytesIO()
    record = {"prompt": ["ein „Kreis“"], "seed": 5}
    Image.new("RGB", (8, 8)).save(file, image_format, **save_options(record, image_format))
    exif = Image.open(file).getexif()
    comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == parameters_text(record)
    assert json.loads(exif[0x010E])["prompt"] == ["ein „Kreis“"]


def test_a_format_that_cannot_remember_is_told(new):
    assert "a BMP file cannot hold how it was generated" in new(PROMPT, "-o", "a.bmp")[1]
    assert new(PROMPT, "-o", "a.bmp", "--no-metadata")[1] == ""
    with pytest.raises(MetadataError, match="too long for a JPEG file"):
        save_options({"prompt": ["a red circle"] * 5000}, "JPEG")


def test_the_fingerprint_is_that_of_the_computation():
    first, same, other = (tiny_components() for _ in range(3))
    assert fingerprint(first.values()) == fingerprint(same.values())
    other["scheduler"].register_to_config(beta_end=0.03)
    assert fingerprint(first.values()) != fingerprint(other.values())
    assert fingerprint([tiny_clip(0)]) != fingerprint([tiny_clip(1)])


def test_the_fingerprint_of_more_values_than_float32_counts():
    """As many as OpenAI's text encoder has for its vocabulary."""
    assert fingerprint([torch.nn.Embedding(50_257, 512, _weight=torch.zeros(50_257, 512, dtype=torch.bfloat16))])


# -- names of files ---------------------------------------------------------------------------------------------------


def test_separate_files_are_what_each_seed_gives_alone(new):
    out, _ = new(PROMPT, "a blue star", "-o", "out/{index:03}-{seed}-{prompt}.png", "--seed", "5", "--num-images", "2")
    names = ["000-5-a-red-circle", "001-6-a-red-circle", "002-7-a-blue-star", "003-8-a-blue-star"]
    assert sorted(os.listdir("out")) == [f"{name}.png" for name in names]
    assert out.splitlines()[3] == f"out{os.sep}003-8-a-blue-star.png: 32 x 32 pixels, seed 8"
    new("a blue star", "-o", "alone.png", "--seed", "8")
    with open("alone.png", "rb") as alone, open("out/003-8-a-blue-star.png", "rb") as separate:
        assert alone.read() == separate.read()


@pytest.mark.parametrize("folder", ["out/", "old"])
def test_a_folder_gets_separate_files(new, folder):
    os.mkdir("old")
    new(PROMPT, "-o", folder, "--seed", "5", "--num-images", "2")
    assert sorted(os.listdir(folder)) == ["000-5.png", "001-6.png"]


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("{number}.png", "{index}, {seed}, {prompt}"),
        ("{index", "{index}, {seed}, {prompt}"),
        ("{index}.doc", "must end in .png"),
        ("out_%d.png", "write {index}"),
        ("{prompt}.png", "several images would have one name"),
        ("x" * 256 + ".png", "too long"),
        ("in.png/{index}.png", "cannot be written to"),
    ],
)
def test_a_bad_name(glide, model, tmp_path, monkeypatch, output, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.png").write_text("")
    assert_user_error(glide(PROMPT, "-o", output, "--num-images", "2", "--model", model, *QUICK), words)
    assert os.listdir() == ["in.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])  # `>` of Windows PowerShell writes the latter
def test_prompts_of_a_file(new, tmp_path, encoding):
    (tmp_path / "prompts.txt").write_bytes("\ufeffa red circle\r\n\r\n  a blue star \n".encode(encoding))
    new("a cross", "--prompts", "prompts.txt", "-o", "a.png")
    assert read_metadata("a.png")["prompt"] == ["a cross", "a red circle", "a blue star"]


def test_a_closed_stdin_holds_no_prompts(glide, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert_user_error(glide("--prompts", "-", "-o", tmp_path / "a.png"), "--prompts", "stdin is closed")


def test_prompts_of_stdin(new, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a red circle\na blue star\n")))
    new("--prompts", "-", "-o", "out/")
    assert len(os.listdir("out")) == 2


@pytest.mark.parametrize(("data", "words"), [(b"\n \n", "no prompt in"), (b"\xff\n", "UTF-8"), (None, "cannot read")])
def test_a_bad_file_of_prompts(glide, tmp_path, data, words):
    if data is not None:
        (tmp_path / "prompts.txt").write_bytes(data)
    assert_user_error(glide("--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "a.png"), "--prompts", words)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes of POSIX")
def test_links_stay_links_and_pipes_are_written_to(new, tmp_path):
    (tmp_path / "folder").mkdir()
    os.symlink("folder/real.png", "link.png")
    os.mkfifo("pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    new(PROMPT, "-o", "link.png", "--seed", "5")
    new(PROMPT, "-o", "pipe", "--seed", "5")
    reader.join(60)
    assert os.path.islink("link.png") and os.listdir("folder") == ["real.png"]
    assert received == [(tmp_path / "folder/real.png").read_bytes()]


# -- other ways out ---------------------------------------------------------------------------------------------------


def in_a_shell(command: str, model: str, folder) -> subprocess.CompletedProcess:
    line = command.format(glide=f"{sys.executable} -m glide_cli", model=f"--model {model} {' '.join(QUICK)}")
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    return subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True)


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_stdout_takes_an_image_and_nothing_else(model, tmp_path):
    done = in_a_shell("{glide} 'a red circle' -o - {model} --seed 5 --animate a.gif", model, tmp_path)
    assert done.returncode == 0, done.stderr
    image = Image.open(io.BytesIO(done.stdout))
    assert (image.format, image.size) == ("PNG", (32, 32))
    assert done.stdout.endswith(b"IEND\xaeB`\x82")
    assert b"-: 32 x 32 pixels, seed 5" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
@pytest.mark.parametrize("command", ["{glide} 'a red circle' -o - {model} -q", "{glide} --help"])
def test_it_ends_quietly_where_nobody_reads(model, tmp_path, command):
    done = in_a_shell(f"({command}) | true", model, tmp_path)
    assert b"Traceback" not in done.stderr and b"Error" not in done.stderr, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_a_prompt_that_is_no_text_is_an_error_in_a_line(model, tmp_path):
    done = in_a_shell("{glide} $'\\xff' -o a.png {model}", model, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(b"glide: error: ") and done.stderr.count(b"\n") == 1


def test_an_empty_prompt_is_warned_of(new):
    assert "A prompt is empty" in new("", "-o", "a.png")[1]


@pytest.mark.parametrize(("ending", "image_format"), [("gif", "GIF"), ("webp", "WEBP")])
def test_an_animation_shows_the_estimate_at_each_step(new, ending, image_format):
    new(PROMPT, "a blue star", "-o", "a.png", "--seed", "5", "--animate", f"a.{ending}")
    with Image.open(f"a.{ending}") as animation, Image.open("a.png") as final:
        assert (animation.format, animation.size) == (image_format, final.size)
        assert animation.n_frames in (3, 4)  # of two steps in each stage; WebP joins equal frames
        animation.seek(animation.n_frames - 1)
        if image_format == "GIF":  # WebP loses most of noise, and the tiny model makes nothing else
            difference = ImageChops.difference(animation.convert("RGB"), final)
            assert max(ImageStat.Stat(difference).mean) < 8


# -- more options -----------------------------------------------------------------------------------------------------


def test_width_and_height(new):
    assert "48 x 64 pixels" in new(PROMPT, "-o", "a.png", "--width", "48", "--height", "64")[0]


def test_a_guidance_interval_guides_in_some_steps_only(new):
    images = {}
    for name, options in {
        "everywhere": (),
        "all": ("--guidance-interval", "0", "1"),
        "half": ("--guidance-interval", "0.5", "1"),
        "nowhere": ("--guidance-scale", "1"),
    }.items():
        new(PROMPT, "-o", "a.png", "--seed", "5", *options)
        images[name] = pixels("a.png")
    assert images["everywhere"] == images["all"]
    assert len(set(images.values())) == 3


def test_guidance_by_clip(draw, new, model):
    tiny_clip().save_pretrained("clip")
    tiny_tokenizer().save_pretrained("clip")
    new(PROMPT, "-o", "a.png", "--seed", "5")
    new(PROMPT, "-o", "b.png", "--seed", "5", "--clip-model", "clip", "--clip-guidance-scale", "100")
    draw("--like", "b.png", "-o", "c.png")
    assert pixels("a.png") != pixels("b.png") == pixels("c.png")


def test_an_image_that_a_clip_guided_says_in_how_many_steps(draw):
    """The model recommends few, and a gradient needs time."""
    pipe = GLIDEPipeline(**tiny_components(upsampler=False))
    pipe.scheduler = GLIDEDDIMScheduler.from_config(pipe.scheduler.config, default_timesteps=[999, 500])
    pipe.save_pretrained("few")
    tiny_clip().save_pretrained("clip")
    tiny_tokenizer().save_pretrained("clip")
    few = ("--model", "few", "--device", "cpu", "--seed", "5")
    draw(PROMPT, "-o", "a.png", *few)
    draw(PROMPT, "-o", "b.png", *few, "--clip-model", "clip", "--clip-guidance-scale", "100")
    assert [read_metadata(name)["steps"] for name in ("a.png", "b.png")] == [2, "100"]
    draw("--like", "b.png", "-o", "c.png")
    assert pixels("a.png") != pixels("b.png") == pixels("c.png")


def test_a_guided_pipeline_brings_its_clip(draw, tmp_path):
    from tiny import tiny_clip_pipeline

    tiny_clip_pipeline().save_pretrained("guided")
    draw(PROMPT, "-o", "a.png", "--model", "guided", "--clip-guidance-scale", "3", *QUICK)
    assert read_metadata("a.png")["clip_guidance_scale"] == 3


def test_guiding_without_a_clip_is_an_error(glide, model, tmp_path):
    arguments = (PROMPT, "-o", tmp_path / "a.png", "--model", model, "--clip-guidance-scale", "3", *QUICK)
    assert_user_error(glide(*arguments), "--clip-guidance-scale", "noised CLIP")


def test_loras_are_scaled_and_remembered(draw, new, model, tmp_path):
    peft = pytest.importorskip("peft")
    pipe = GLIDEPipeline.from_pretrained(model)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.unet.save_lora_adapter("lora")
    images = []
    for options in ((), ("--lora", "lora:0"), ("--lora", "lora:0.5"), ("--lora", "lora"), ("--lora", "lora:0.5") * 2):
        new(PROMPT, "-o", "a.png", "--seed", "5", *options)
        images.append(pixels("a.png"))
    assert images[0] == images[1]
    assert len(set(images[1:4])) == 3
    draw("--like", "a.png", "-o", "b.png")
    assert pixels("b.png") == images[4]


@pytest.mark.parametrize(("option", "part"), [("--model", "pipeline"), ("--lora", "lora")])
def test_the_folder_of_a_training_says_which_of_its_folders_is_meant(glide, model, tmp_path, option, part):
    (tmp_path / "run" / part).mkdir(parents=True)
    given = [] if option == "--model" else ["--model", model]
    result = glide(PROMPT, "-o", tmp_path / "a.png", *given, *QUICK, option, tmp_path / "run")
    assert_user_error(result, "the folder of a training", str(tmp_path / "run" / part))


@pytest.mark.parametrize(("fast", "warned"), [("float32", 1), ("bfloat16", 0)])
def test_half_precision_is_told_to_be_slow_where_it_is(glide, model, tmp_path, monkeypatch, fast, warned):
    instructions = {"avx512_bf16": fast == "bfloat16"}
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: instructions)
    arguments = (PROMPT, "-o", tmp_path / "a.png", "--model", model, "--device", "cpu", *QUICK)
    assert glide(*arguments, "--dtype", "bfloat16")[2].count("bfloat16 is slow on a processor") == warned
    assert "is slow" not in glide(*arguments)[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--stepps", "3"], "there is no option --stepps; did you mean --steps?"),
        (["--ouput", "x.png"], "did you mean --output?"),
        (["--scheduler", "dpm-solver"], "did you mean dpm-solver++?"),
        (["--width", "0"], "--width"),
        (["--padding-mask-crop", "8"], "--padding-mask-crop needs --mask"),
        (["--num-resample", "2"], "--num-resample needs --mask"),
        (["--guidance-interval", "1", "0.5"], "START must be below END"),
        (["--guidance-interval", "0", "2"], "from 0 to 1"),
        (["--animate", "x.png"], ".gif or .webp"),
        (["--lora", "missing"], "--lora missing"),
        (["--lora", "missing.safetensors"], "--lora missing.safetensors: no such file or folder"),
        (["--model", "birds"], "none of the models that ship (shapes, emoji)"),
        (["--model", "emojy"], "did you mean emoji?"),
    ],
)
def test_a_bad_option(glide, model, tmp_path, options, words):
    given = [] if "--model" in options else ["--model", model]
    assert_user_error(glide(PROMPT, "-o", tmp_path / "a.png", *given, *QUICK, *options), words)


def test_animations_are_of_one_file(glide, tmp_path):
    result = glide(PROMPT, "-o", f"{tmp_path}/out/", "--animate", tmp_path / "a.gif")
    assert_user_error(result, "--animate is for one file")


def test_the_names_of_what_ships(glide, tmp_path):
    assert pretrained_checkpoint("shapes") == shapes_checkpoint()
    with pytest.raises(ValueError, match=r"one of 'features', 'inpaint', 'noised-clip', 'text-to-image', got 'x'"):
        pretrained_checkpoint("shapes", "x")
    with pytest.raises(ValueError, match=r"shapes \(features, inpaint, noised-clip, text-to-image\), got 'x'"):
        pretrained_checkpoint("x")
    assert (
        loading.find_model("shapes", "inpaint") == loading.shipped(None, "inpaint") == str(shapes_checkpoint("inpaint"))
    )


def test_a_folder_of_the_same_name_hides_what_ships_only_if_it_is_such_a_model(monkeypatch, tmp_path, glide):
    from glide_cli.run_evaluate import clip_source

    monkeypatch.chdir(tmp_path)
    os.mkdir("emoji")  # of images, say
    for checkpoint in ("text-to-image", "noised-clip", "features"):
        assert loading.find_model("emoji", checkpoint) == str(pretrained_checkpoint("emoji", checkpoint))
    code, _, error = glide("a taxi", "-o", "a.png", "--steps", "1", "--super-res-steps", "1")
    assert code == 0, error
    tiny_pipeline(upsampler=False).save_pretrained("emoji")
    assert loading.find_model("emoji") == "emoji" and loading.shipped("emoji", "text-to-image") is None
    assert loading.find_model(None) == str(shapes_checkpoint())
    # A pipeline is neither a network nor a CLIP.
    assert loading.shipped("emoji", "features") == str(pretrained_checkpoint("emoji", "features"))
    assert clip_source("emoji") == str(pretrained_checkpoint("emoji", "noised-clip"))
    (tmp_path / "emoji/clip_model").mkdir()
    (tmp_path / "emoji/clip_model/config.json").write_text("{}", encoding="utf-8")
    assert clip_source("emoji") == "emoji"


def test_a_world_without_an_inpainting_model_inpaints_in_the_implicit_mode(glide, tmp_path):
    for name, mode, colour in (("image", "RGB", "white"), ("mask", "L", "white")):
        Image.new(mode, (32, 32), colour).save(tmp_path / f"{name}.png")
    files = ["--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png", "-o", tmp_path / "edited.png"]
    code, _, said = glide("a taxi", "--model", "emoji", "--steps", "1", "--super-res-steps", "1", *files)
    assert code == 0 and (tmp_path / "edited.png").is_file(), said


def test_a_world_has_a_folder_of_its_own(tmp_path, monkeypatch):
    from glide_pipelines import checkpoints

    for name in ("text-to-image", "emoji/text-to-image"):
        tiny_inpaint_pipeline(upsampler=False).save_pretrained(tmp_path / name)
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    assert pretrained_checkpoint("emoji") == tmp_path / "emoji/text-to-image"
    assert shapes_checkpoint() == tmp_path / "text-to-image"
    with pytest.raises(ValueError, match="'text-to-image', got 'inpaint'"):
        pretrained_checkpoint("emoji", "inpaint")
    # What `glide evaluate` measures with may be that of a world, too.
    assert loading.shipped("emoji", "text-to-image") == str(tmp_path / "emoji/text-to-image")
    assert loading.shipped("owner/network", "features") is None


def test_a_device_is_taken_only_where_it_computes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert loading.find_device(None).type == ("mps" if loading._computes("mps") else "cpu")
    assert loading._computes("cpu") and not loading._computes("meta")
    monkeypatch.setattr(loading, "_computes", lambda device: device == "mps")
    assert loading.find_device(None).type == "mps"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["trian", "text-to-image", "--dataset_name", "shapes"], "train"),
        (["evalute", "--output", "runs/evaluation"], "evaluate"),
        (["evaluate-shape"], "evaluate-shapes"),
    ],
)
def test_a_mistyped_command_is_guessed(glide, words, command):
    code, _, error = glide(*words)
    assert code == 2 and error.endswith(f"; did you mean glide {command}?\n")


def test_a_prompt_is_not_taken_for_a_command(glide):
    assert "mean" not in glide("a red circle")[2]
