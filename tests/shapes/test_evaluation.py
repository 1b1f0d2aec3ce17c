"""The evaluation of a model of the shapes world: on pipelines whose images are known, and its two scripts."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from scripts import load_script
from tiny import tiny_clip, tiny_pipeline, tiny_tokenizer

from glide_cli import output
from glide_pipelines import GLIDESuperResolutionPipeline
from glide_pipelines.evaluation.statistics import entropy, wilson_interval
from glide_pipelines.images import images_to_tensor
from glide_pipelines.shapes import COLOURS, SHAPES, Example, Object, Scene, ShapesWorld, parse, render, render_sizes
from glide_pipelines.shapes.evaluation import guidance_table, judge_pipeline, judge_renders, upsampler_difference
from glide_pipelines.shapes.retrieval import OWN
from glide_pipelines.shapes.tally import ATTRIBUTES, UNSTATED, WHOLE, Tally, judged_table


@pytest.fixture(scope="module")
def script():
    return load_script("evaluate_shapes")


@pytest.fixture(scope="module")
def examples():
    """Sixty, each with a caption of its own."""
    world = ShapesWorld(0, held_out=True)
    return list({str(example.caption): example for example in map(world.example, range(90))}.values())[:60]


def next_colour(scene: Scene) -> Scene:
    names = list(COLOURS)
    objects = [replace(item, colour=names[(names.index(item.colour) + 1) % len(names)]) for item in scene.objects]
    return replace(scene, objects=objects)


def next_shape(scene: Scene) -> Scene:
    objects = [replace(item, shape=SHAPES[(SHAPES.index(item.shape) + 1) % len(SHAPES)]) for item in scene.objects]
    return replace(scene, objects=objects)


def other_background(scene: Scene) -> Scene:
    return replace(scene, background="black" if scene.background != "black" else "white")


def mirrored(scene: Scene) -> Scene:
    return replace(scene, objects=[replace(item, x=1 - item.x, y=1 - item.y) for item in scene.objects])


class Drawer:
    """In place of a pipeline: draws the scene of each caption, or an altered one."""

    default_size, scale_factor, device = (64, 64), 1, torch.device("cpu")
    scheduler = super_res_scheduler = super_res_unet = None
    components = stages = {}

    def __init__(self, examples, alter=lambda scene: scene):
        self.scenes = {str(caption): alter(scene) for scene, caption in examples}
        self.calls = []

    def __call__(self, prompt, **call):
        self.calls.append({"prompt": prompt, **call})
        return SimpleNamespace(images=[render(self.scenes[text], 64) for text in prompt])


def shares(figures):
    return {name: rate["share"] for name, rate in figures["accuracy"].items()}


# -- the figures --------------------------------------------------------------------------------------------------


def test_true_images_are_all_right(examples):
    drawer = Drawer(examples)
    figures = judge_pipeline(drawer, examples, seed=0, batch_size=16)
    assert figures == judge_renders(examples, 64)
    assert tuple(figures["accuracy"]) == (*ATTRIBUTES, *WHOLE)
    assert set(shares(figures).values()) == {1.0}
    rows = figures["accuracy"]
    assert rows["count"]["cases"] == rows["whole caption"]["cases"] == 60
    assert sum(rows[name]["cases"] for name in WHOLE[1:4]) == 60
    pairs = [caption for _, caption in examples if len(caption.objects) == 2]
    assert 0 < rows[WHOLE[4]]["cases"] == sum(caption.relation is None for caption in pairs) < len(pairs)
    assert rows["place and relation"]["cases"] == rows["place"]["cases"] + rows["relation"]["cases"]
    colours = [mention.colour for _, caption in examples for mention in caption.objects]
    assert rows["colour"]["cases"] == sum(colour is not None for colour in colours)


@pytest.mark.parametrize(
    ("alter", "wrong"),
    [
        (next_colour, {"colour"}),
        (next_shape, {"shape"}),
        (other_background, {"background"}),
        (mirrored, {"place", "place and relation"}),
    ],
)
def test_an_altered_attribute_is_wrong_and_no_other(examples, alter, wrong):
    single = [example for example in examples if len(example.scene.objects) == 1 and example.caption.objects[0].place]
    single = [example for example in single if example.caption.objects[0].place != "centre"]
    found = shares(judge_pipeline(Drawer(single, alter), single, seed=0, batch_size=16))
    for name in set(found) & set(ATTRIBUTES):
        assert found[name] == (0.0 if name in wrong else 1.0), name


def test_a_missing_object_and_a_turned_relation_are_wrong(examples):
    pairs = [example for example in examples if example.caption.relation and len(example.scene.objects) == 2]
    turned = shares(judge_pipeline(Drawer(pairs, mirrored), pairs, seed=0, batch_size=16))
    # Of objects that a caption hardly tells apart another matching may explain the relation.
    assert turned["relation"] <= 0.1 and turned["colour"] > 0.9 and turned["count"] == 1
    halved = Drawer(pairs, lambda scene: replace(scene, objects=scene.objects[:1]))
    fewer = shares(judge_pipeline(halved, pairs, seed=0, batch_size=16))
    assert fewer["count"] == fewer["relation"] == fewer["whole caption"] == fewer["whole caption, two objects"] == 0


def test_each_picture_has_its_own_seed_whatever_the_batch(examples):
    seeds = []
    for batch_size in (5, 2):
        drawer = Drawer(examples)
        judge_pipeline(drawer, examples[:5], seed=7, batch_size=batch_size, guidance_scale=2.0)
        assert all(call["guidance_scale"] == 2.0 for call in drawer.calls)
        seeds.append([generator.initial_seed() for call in drawer.calls for generator in call["generator"]])
    assert seeds == [[7, 8, 9, 10, 11]] * 2


def test_what_the_upsampler_was_given_is_judged_too(examples):
    class Upsampled(Drawer):
        """Right before the upsampler, which changes the background."""

        scale_factor, stage = 2, None
        image_processor = VaeImageProcessor()

        def __call__(self, prompt, **call):
            small = images_to_tensor([render(self.scenes[text], 32) for text in prompt])
            for self.stage, latents in (("base", torch.zeros_like(small)), ("base", small), ("super_res", -small)):
                call["callback_on_step_end"](self, 0, 0, {"latents": latents})
            return SimpleNamespace(images=[render(other_background(self.scenes[text]), 64) for text in prompt])

    figures = judge_pipeline(Upsampled(examples), examples, seed=0, batch_size=16)
    assert shares(figures)["background"] == 0
    assert set(shares(figures["base"]).values()) == {1.0}
    header = guidance_table({"renders": figures["base"], "guidance": [{"guidance_scale": 2.0, **figures}]})
    assert "| true images | guidance 2, before the upsampler | guidance 2 |" in header


def test_diversity_counts_what_is_unstated_only():
    caption = parse("a circle")
    tally = Tally()
    for colour, x in (("red", 0.3), ("blue", 0.3), ("red", 0.7), ("blue", 0.7)):
        tally.add(render(Scene((Object("circle", colour, "large", x, 0.3),), "gray"), 64), caption)
    diversity = tally.figures()["diversity"]
    bits = {name: figure["bits"] for name, figure in diversity.items()}
    assert bits == {"background": 0, "colour": 1, "size": 0, "quarter": 1}
    assert {figure["cases"] for figure in diversity.values()} == {4}
    tally = Tally()
    tally.add(
        render(Scene((Object("circle", "red", "large", 0.3, 0.3),), "gray"), 64), parse("a large red shape on the left")
    )
    assert "colour" not in tally.figures()["diversity"]


def test_diversity_of_a_model_that_repeats_itself_is_lower(examples):
    def always_red(scene):
        return replace(scene, objects=[replace(item, colour="red") for item in scene.objects])

    true = judge_renders(examples, 64)["diversity"]
    repeating = judge_pipeline(Drawer(examples, always_red), examples, seed=0, batch_size=60)["diversity"]
    assert repeating["colour"]["bits"] == 0 < true["colour"]["bits"]
    assert all(true[name]["bits"] <= math.log2(count) for name, count in UNSTATED.items())


def test_entropy():
    assert entropy([4]) == 0
    assert entropy([1, 1, 1, 1]) == 2
    assert entropy([3, 1]) == pytest.approx(0.8113, abs=1e-4)


@pytest.mark.parametrize(
    ("right", "cases", "low", "high"),
    # Newcombe (1998), table I, method 3, to four decimals.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(right, cases, low, high):
    assert wilson_interval(right, cases) == pytest.approx((low, high), abs=5e-5)
    assert wilson_interval(cases - right, cases) == pytest.approx((1 - high, 1 - low), abs=5e-5)


# -- the upsampler alone ------------------------------------------------------------------------------------------


def test_the_upsampler_gets_the_true_small_images(examples):
    pipe = GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline())
    pipe.set_progress_bar_config(disable=True)
    seen = []
    pipe.super_res_unet.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["low_res"]), with_kwargs=True
    )
    figures = upsampler_difference(pipe, examples[:3], seed=0, batch_size=2, super_res_num_inference_steps=1)
    assert figures["images"] == 3 and 0 < figures["mean_absolute_difference"] < 1
    true = [np.asarray(render_sizes(scene, (8, 32))[0]) for scene, _ in examples[:3]]
    given = torch.cat(seen).permute(0, 2, 3, 1)
    assert torch.allclose((given + 1) * 127.5, torch.tensor(np.stack(true)).float(), atol=1e-3)


def test_the_upsampler_difference_is_that_to_the_true_large_picture(examples):
    class Upsampler:
        default_size, scale_factor = (64, 64), 4

        def __call__(self, prompt, image, **call):
            assert [small.size for small in image] == [(16, 16)] * len(prompt)
            truth = [np.asarray(render_sizes(scene, (16, 64))[1]) / 255 for scene, _ in examples[: len(prompt)]]
            return SimpleNamespace(images=np.stack(truth) + 0.25)

    figures = upsampler_difference(Upsampler(), examples[:4], seed=0, batch_size=4)
    assert figures["mean_absolute_difference"] == pytest.approx(0.25)
    assert figures["standard_error"] == pytest.approx(0, abs=1e-9)


# -- the table ----------------------------------------------------------------------------------------------------


def test_the_table(examples):
    figures = judge_renders(examples, 64)
    results = {
        "renders": figures,
        "guidance": [{"guidance_scale": 1.0, **figures}, {"guidance_scale": 2.5, **figures}],
        "upsampler": {"mean_absolute_difference": 0.0123, "standard_error": 0.0004, "images": 60},
    }
    lines = guidance_table(results).splitlines()
    assert lines[0] == "| right, per cent | cases | true images | guidance 1 | guidance 2.5 |"
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    labels = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert labels[1:9] == list(ATTRIBUTES) and labels[9:14] == list(WHOLE)
    count = next(line for line in lines if line.startswith("| count"))
    assert count == "| count | 60" + " | 100.0 (94.0 to 100.0)" * 3 + " |"
    assert any(line.startswith("| colour (at most 3.00) | ") for line in lines)
    assert "0.0123" in lines[-1] and "60 images" in lines[-1]


def test_the_table_leaves_out_rows_without_a_case():
    scene = Scene((Object("circle", "red", "large", 0.3, 0.3),), "gray")
    figures = judge_renders([Example(scene, parse("a red circle"))], 64)
    text = guidance_table({"renders": figures, "guidance": []})
    assert "relation" not in text and "two" not in text and "upsampler" not in text


def test_many_settings_have_a_row_each(examples):
    figures = judge_renders(examples, 64)
    alone = judge_renders(
        [Example(Scene((Object("circle", "red", "large", 0.3, 0.3),), "gray"), parse("a circle"))], 64
    )
    accuracy, spread = judged_table({"ddim-5": figures, "ddim-10": alone}).split("\n\n")
    header, _, many, one = (line.strip("| ").split(" | ") for line in accuracy.splitlines())
    assert header == ["right, per cent", *ATTRIBUTES, *WHOLE]
    assert many == ["ddim-5", *["100.0"] * 13]
    shares = dict(zip(header, accuracy.splitlines()[3].strip("|").split("|"), strict=True))
    assert shares["colour"].strip() == "" and shares["shape"].strip() == "100.0", "a colour is not said"
    header, _, many, _ = (line.strip("| ").split(" | ") for line in spread.splitlines())
    assert header[1:] == list(UNSTATED)
    assert many[1:] == [f"{figures['diversity'][name]['bits']:.2f}" for name in UNSTATED]
    assert one[0] == "ddim-10"


# -- the script ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(script, capsys):
    def call(*arguments):
        code = script.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def drawer(monkeypatch):
    world = ShapesWorld(0, held_out=True)
    drawer = Drawer([world.example(index) for index in range(20)])
    monkeypatch.setattr("glide_cli.run_evaluate_shapes.open_pipeline", lambda **values: drawer)
    return drawer


def test_the_script_measures_a_checkpoint_and_repeats_itself(run, model, tmp_path):
    options = ("--model", model, "--num-captions", 3, "--batch-size", 2, "--guidance-scale", 3, 1, "--device", "cpu")
    options += ("--steps", 2, "--super-res-steps", "2", "--scheduler", "ddim")
    code, out, _ = run("--output", tmp_path / "first.json", *options)
    assert code == 0
    assert "| guidance 1 | guidance 3 |" in out and "The upsampler alone" in out
    assert run("--output", tmp_path / "second.json", *options)[0] == 0
    first, second = (tmp_path / name for name in ("first.json", "second.json"))
    assert first.read_text() == second.read_text()

    results = json.loads(first.read_text())
    assert len(results["settings"].pop("weights")) == 16
    assert results["settings"] == {
        "task": "text-to-image",
        "model": model,
        "num_captions": 3,
        "seed": 0,
        "batch_size": 2,
        "size": 32,
        "steps": 2,
        "scheduler": "GLIDEDDIMScheduler",
        "super_res_steps": 2,
        "super_res_scheduler": "GLIDEDDIMScheduler",
        "device": "cpu",
        "dtype": "float32",
    }
    assert results["versions"]["torch"] == torch.__version__ and "glide-pipelines" in results["versions"]
    assert [figures["guidance_scale"] for figures in results["guidance"]] == [1.0, 3.0]
    assert results["guidance"][0]["accuracy"]["count"]["cases"] == 3
    assert results["renders"]["accuracy"]["count"]["share"] == 1
    assert results["upsampler"]["images"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "second.json"]


def test_the_options_reach_the_pipeline(run, drawer, tmp_path):
    options = ("--num-captions", 20, "--batch-size", 8, "--guidance-scale", 2, "--seed", 0)
    code, out, _ = run("--output", tmp_path / "results.json", *options, "--steps", 25, "--super-res-steps", "fast27")
    assert code == 0 and "| guidance 2 |" in out
    assert [len(call["prompt"]) for call in drawer.calls] == [8, 8, 4]
    expected = {"guidance_scale": 2.0, "num_inference_steps": 25, "super_res_timesteps": "fast27"}
    assert {name: drawer.calls[0][name] for name in expected} == expected
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert settings["steps"] == 25 and settings["super_res_steps"] is settings["super_res_scheduler"] is None


def test_it_resumes_with_the_scales_that_are_left(run, drawer, tmp_path):
    options = ("--output", tmp_path / "results.json", "--num-captions", 6, "--batch-size", 6)
    assert run(*options, "--guidance-scale", 3)[0] == 0
    calls = len(drawer.calls)
    assert run(*options, "--guidance-scale", 1, 3, "--resume")[0] == 0
    assert [call["guidance_scale"] for call in drawer.calls[calls:]] == [1.0]
    resumed = (tmp_path / "results.json").read_text()
    assert run(*options, "--guidance-scale", 1, 3)[0] == 0
    assert (tmp_path / "results.json").read_text() == resumed


def test_a_stopped_run_keeps_the_scales_that_are_done(run, drawer, tmp_path, monkeypatch):
    draw = Drawer.__call__

    def stop_at_five(self, prompt, **call):
        if call["guidance_scale"] == 5:
            raise KeyboardInterrupt
        return draw(self, prompt, **call)

    monkeypatch.setattr(Drawer, "__call__", stop_at_five)
    assert run("--output", tmp_path / "results.json", "--num-captions", 4)[0] == 130
    done = json.loads((tmp_path / "results.json").read_text())["guidance"]
    assert [figures["guidance_scale"] for figures in done] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--num-captions", ["0"]),
        ("--num-captions", ["many"]),
        ("--batch-size", ["-1"]),
        ("--seed", ["-1"]),
        ("--seed", [str(2**70)]),
        ("--guidance-scale", ["1", "nan"]),
        ("--guidance-scale", []),
        ("--steps", ["0"]),
        ("--super-res-steps", ["fast"]),
        ("--scheduler", ["best"]),
        ("--model", ["no/such/folder"]),
        ("--device", ["abacus"]),
        ("--dtype", ["int8"]),
        ("--output", ["no-such-folder/results.json"]),
        ("--colour", ["red"]),
    ],
)
def test_bad_arguments_are_named_in_one_line(run, model, tmp_path, option, values):
    code, out, err = run("--model", model, "--output", tmp_path / "results.json", option, *values)
    assert (code, out) == (2, "")
    assert err.startswith("evaluate_shapes.py: error: ") and err.count("\n") == 1 and option in err
    assert not any(tmp_path.iterdir())


def test_what_cannot_be_resumed_is_an_error(run, drawer, tmp_path):
    output = tmp_path / "results.json"
    options = ("--output", output, "--guidance-scale", 1)
    assert run(*options, "--num-captions", 4)[0] == 0
    before = output.read_text()
    code, _, err = run(*options, "--num-captions", 5, "--resume")
    assert code == 2 and "--resume" in err and "num_captions 4 and not 5" in err
    drawer.components = {"unet": torch.nn.Linear(2, 2)}
    code, _, err = run(*options, "--num-captions", 4, "--resume")
    assert code == 2 and "weights" in err
    drawer.components = {}
    # One class has the solver of the ODE and that of the SDE.
    drawer.scheduler = DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    code, _, err = run(*options, "--num-captions", 4, "--resume")
    assert code == 2 and "'DPMSolverMultistepScheduler (sde-dpmsolver++)'" in err
    assert output.read_text() == before
    for content in ("no json", "[]", "{}"):
        output.write_text(content)
        code, _, err = run(*options, "--num-captions", 4, "--resume")
        assert code == 2 and err.count("\n") == 1 and "--resume" in err


# -- the grid of the README ---------------------------------------------------------------------------------------


def test_the_grid_has_a_caption_under_each_picture(monkeypatch, tmp_path):
    script = load_script("make_grid", folder="tools")
    world = ShapesWorld(0, held_out=True)
    drawer = Drawer([world.example(index) for index in range(100)])
    monkeypatch.setattr(script.GLIDEPipeline, "from_pretrained", lambda model: drawer)
    script.main(["--output", str(tmp_path / "grid.png"), "--model", str(tmp_path)])
    captions = drawer.calls[0]["prompt"]
    assert len(captions) == 16 and max(map(len, captions)) <= script.MAX_LETTERS
    grid = Image.open(tmp_path / "grid.png")
    assert grid.width == 4 * 66 - 2
    height = (grid.height + 2) // 4 - 2
    assert height > 64
    for row in range(4):
        top = row * (height + 2)
        for column in range(4):
            left = column * 66
            image = np.asarray(grid.crop((left + 1, top + 1, left + 63, top + 63)))
            true = np.asarray(render(drawer.scenes[captions[4 * row + column]], 64))[1:63, 1:63]
            assert (image == true).all()
            assert np.asarray(grid.crop((left, top + 64, left + 64, top + height))).min() < 128


def test_captions_are_broken_between_words():
    text = "a large blue circle above a small cyan triangle on a gray background"
    lines = output.wrap(text, 100)
    assert " ".join(lines) == text and len(lines) > 2
    assert all(output.FONT.getlength(line) <= 100 for line in lines)


def test_a_clip_is_measured_at_each_timestep(run, tmp_path):
    tiny_clip(image_size=32).save_pretrained(tmp_path / "clip")
    tiny_tokenizer().save_pretrained(tmp_path / "clip")
    output = tmp_path / "clip.json"
    options = ("--task", "clip", "--model", tmp_path / "clip", "--num-captions", "8", "--timesteps", "0", "700")
    code, out, err = run(*options, "--output", output)
    assert code == 0, err
    rates = json.loads(output.read_text())["timesteps"]
    assert list(rates) == ["0", "700"] and all(rate[OWN]["cases"] == 8 for rate in rates.values())
    lines = out.splitlines()
    assert "its own full caption, per cent" in lines[0] and "by an ideal observer, per cent" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0", "700"]


@pytest.mark.parametrize(
    "option", [("--steps", "5"), ("--base-only",), ("--guidance-scale", "3"), ("--fast",), ("--resume",)]
)
def test_a_clip_takes_no_options_of_drawing(run, tmp_path, option):
    code, _, err = run("--task", "clip", "--output", tmp_path / "clip.json", *option)
    assert code == 2 and option[0] in err


def test_timesteps_are_for_a_clip(run, tmp_path):
    code, _, err = run("--timesteps", 3, "--output", tmp_path / "results.json")
    assert code == 2 and "--timesteps is for --task clip" in err
