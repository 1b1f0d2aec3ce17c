"""Edits of scenes: what is asked for, how the result is judged, and the editing tasks of the evaluation script."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_inpaint_pipeline, tiny_pipeline

import glide_cli
from glide_cli import run_evaluate_shapes
from glide_pipelines import GLIDEImg2ImgPipeline, GLIDEInpaintPipeline
from glide_pipelines.shapes import BACKGROUNDS, Scene, judge, render
from glide_pipelines.shapes.edit_evaluation import ROWS, edit_figures, edit_table, judge_edits, judge_true_edits
from glide_pipelines.shapes.edits import framed, judge_edit, sample_edits


@pytest.fixture(scope="module")
def edits():
    """Forty, each with a caption of its own."""
    return list({str(edit.caption): edit for edit in sample_edits(60)}.values())[:40]


# -- what is asked for ------------------------------------------------------------------------------------------------


def test_an_edit_replaces_one_object_by_another(edits):
    for edit in edits:
        old = edit.scene.objects[edit.index]
        assert edit.new.colour != old.colour and edit.new.shape != old.shape
        assert (edit.new.x, edit.new.y, edit.new.width) == (old.x, old.y, old.width)
        assert edit.scene.held_out and edit.after.held_out
        assert len({(item.colour, item.shape) for item in edit.after.objects}) == len(edit.after.objects)
        assert str(edit.caption).count(f"{edit.new.colour} {edit.new.shape}") == 1
        assert judge(render(edit.after, 64), edit.caption).correct
        assert not judge(render(edit.scene, 64), edit.caption).correct


def test_a_longer_list_begins_as_a_shorter_one(edits):
    assert sample_edits(10) == sample_edits(20)[:10] != sample_edits(10, seed=1)
    assert {len(edit.scene.objects) for edit in edits} == {1, 2, 3}
    assert len({edit.index for edit in edits}) == 3


@pytest.mark.parametrize("size", [32, 128])
def test_the_mask_covers_the_object_and_touches_no_other(edits, size):
    for edit in edits:
        hole = np.asarray(edit.mask(size)) > 0
        alone = [render(Scene((item,), edit.scene.background), size) for item in edit.scene.objects]
        empty = np.asarray(Image.new("RGB", (size, size), alone[0].getpixel((0, 0))))
        for index, image in enumerate(alone):
            drawn = (np.asarray(image) != empty).any(axis=2)
            assert not drawn[~hole if index == edit.index else hole].any()


# -- the judge --------------------------------------------------------------------------------------------------------


def judged(edit, after, before=None):
    return judge_edit(edit, before or render(edit.scene, 64), after)


def test_a_perfect_edit_is_right_in_everything(edits):
    for edit in edits:
        verdict = judged(edit, render(edit.after, 64))
        assert verdict.colour and verdict.shape and verdict.new_object and verdict.caption and verdict.untouched
        assert verdict.others == (True,) * (len(edit.scene.objects) - 1)
        assert verdict.difference == 0


def test_an_image_that_is_left_alone_keeps_all_and_shows_nothing_new(edits):
    for edit in edits:
        verdict = judged(edit, render(edit.scene, 64))
        assert not (verdict.colour or verdict.shape or verdict.new_object or verdict.caption)
        assert verdict.untouched and all(verdict.others)


@pytest.mark.parametrize("attribute", ["colour", "shape"])
def test_one_wrong_attribute_is_the_only_one_that_is_wrong(edits, attribute):
    for edit in edits:
        old = edit.scene.objects[edit.index]
        half = replace(edit, new=replace(edit.new, **{attribute: getattr(old, attribute)}))
        verdict = judged(edit, render(half.after, 64))
        assert {name: getattr(verdict, name) for name in ("colour", "shape")} == {
            "colour": attribute != "colour",
            "shape": attribute != "shape",
        }
        assert not verdict.new_object and not verdict.caption and verdict.untouched


def test_what_happens_to_the_others_is_seen(edits):
    edit = next(edit for edit in edits if len(edit.scene.objects) == 2)
    other = edit.scene.objects[1 - edit.index]
    moved = replace(other, x=1 - other.x, y=1 - other.y)
    for change in (moved, replace(other, colour="pink" if other.colour != "pink" else "red"), None):
        objects = [edit.new] if change is None else [edit.new, change]
        verdict = judged(edit, render(replace(edit.after, objects=objects), 64))
        assert verdict.others == (False,) and not verdict.untouched and verdict.difference > 0


def test_one_pixel_outside_the_mask_is_enough(edits):
    edit = edits[0]
    after = render(edit.after, 64)
    corner = after.getpixel((0, 0))
    after.putpixel((0, 0), (corner[0] ^ 1, *corner[1:]))
    verdict = judged(edit, after)
    left_out = (np.asarray(edit.mask(64)) == 0).sum()
    assert not verdict.untouched and verdict.caption
    assert verdict.difference == pytest.approx(1 / 255 / (3 * left_out))


def test_an_image_that_is_not_square_is_judged_whole(edits):
    edit = edits[0]
    before, after = (
        framed(render(scene, 64), 140, 64, BACKGROUNDS[scene.background]) for scene in (edit.scene, edit.after)
    )
    verdict = judged(edit, after, before)
    assert verdict.new_object and verdict.caption and verdict.untouched
    after.paste(after.crop((38, 0, 102, 64)).resize((32, 32)), (0, 16))  # beside the scene, all of it once more
    verdict = judged(edit, after, before)
    assert verdict.new_object and not verdict.caption and not verdict.untouched


def test_images_of_two_sizes_are_an_error(edits):
    with pytest.raises(ValueError, match="`after` must have the size of `before`"):
        judged(edits[0], render(edits[0].after, 128))


# -- the figures ------------------------------------------------------------------------------------------------------


class Editor:
    """In place of a pipeline: makes every second edit as asked, and leaves the other images alone."""

    default_size = (64, 64)

    def __init__(self, edits):
        self.after = {str(edit.caption): render((edit.after, edit.scene)[i % 2], 64) for i, edit in enumerate(edits)}
        self.calls = []

    def __call__(self, prompt, image, **call):
        self.calls.append({"prompt": prompt, "image": image, **call})
        return SimpleNamespace(images=[self.after[text] for text in prompt])


def test_the_figures_of_a_pipeline(edits):
    editor = Editor(edits)
    figures = judge_edits(editor, edits, seed=5, batch_size=16, masked=True, guidance_scale=2.0)
    shares = {row: rate["share"] for row, rate in figures["right"].items()}
    assert shares == dict(zip(ROWS, (0.5, 0.5, 0.5, 0.5, 1, 1), strict=True))
    assert figures["right"]["whole caption"]["cases"] == 40
    others = sum(len(edit.scene.objects) - 1 for edit in edits)
    assert figures["right"]["other objects as before"]["cases"] == others
    assert figures["difference"]["mean"] == 0
    assert [len(call["prompt"]) for call in editor.calls] == [16, 16, 8]
    assert {call["guidance_scale"] for call in editor.calls} == {2.0}
    assert [g.initial_seed() for call in editor.calls for g in call["generator"]] == list(range(5, 45))
    images, masks = ([image for call in editor.calls for image in call[name]] for name in ("image", "mask_image"))
    for edit, image, mask in zip(edits, images, masks, strict=True):
        assert image == render(edit.scene, 64) and mask == edit.mask(64)


def test_without_a_mask(edits):
    editor = Editor(edits)
    judge_edits(editor, edits[:2], seed=0, batch_size=2, masked=False, strength=0.5)
    assert "mask_image" not in editor.calls[0] and editor.calls[0]["strength"] == 0.5


@pytest.mark.parametrize("size", [(128, 128), (96, 200)])
def test_scenes_of_another_size(edits, size):
    """In the middle, with their background around them."""

    class Painter:
        default_size = (64, 64)

        def __call__(self, prompt, image, mask_image, **call):
            assert {each.size for each in [*image, *mask_image]} == {size[::-1]}
            corners = [each.getpixel((0, 0)) for each in image]
            assert corners == [BACKGROUNDS[edit.scene.background] for edit in edits[: len(image)]]
            side, after = min(size), [each.copy() for each in image]
            for each, edit in zip(after, edits, strict=False):
                each.paste(render(edit.after, side), ((size[1] - side) // 2, (size[0] - side) // 2))
            return SimpleNamespace(images=after)

    figures = judge_edits(Painter(), edits[:4], seed=0, batch_size=4, masked=True, size=size)
    assert {row["share"] for row in figures["right"].values()} == {1}


def test_the_table(edits):
    true = judge_true_edits(edits, 64)
    half = edit_figures([judged(edit, render((edit.after, edit.scene)[i % 2], 64)) for i, edit in enumerate(edits)])
    lines = edit_table({"true images": true, "half": half}).splitlines()
    assert lines[0] == "| right, per cent | cases | true images | half |"
    assert len(lines) == 3 + len(ROWS) and len({line.count("|") for line in lines}) == 1
    assert lines[2] == "| new object: colour | 40 | 100.0 (91.2 to 100.0) | 50.0 (35.2 to 64.8) |"
    assert lines[-1] == "| mean difference outside the mask, of 1 | 40 | 0.0000 | 0.0000 |"


# -- the script -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    tiny_pipeline().save_pretrained(folder / "text-to-image")
    tiny_inpaint_pipeline().save_pretrained(folder / "inpaint")
    swapped = tiny_pipeline()
    swapped.register_modules(unet=swapped.super_res_unet)
    swapped.save_pretrained(folder / "swapped")
    return folder


@pytest.fixture
def run(models, tmp_path, capsys):
    def call(task, *options, model="text-to-image"):
        arguments = ["--task", task, "--output", tmp_path / "results.json", "--num-captions", 3, "--device", "cpu"]
        arguments += ["--model", models / model] if model is not None else []
        arguments += ["--steps", 2, "--super-res-steps", 2, *options]
        code = glide_cli.main(["evaluate-shapes", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def columns(out):
    return out.splitlines()[0].strip("| ").split(" | ")[3:]


def row(out, name):
    return next(line for line in out.splitlines() if line.startswith(f"| {name}")).strip("| ").split(" | ")[2:]


def test_the_script_measures_both_modes_of_inpainting(run, tmp_path):
    code, out, _ = run("inpaint", "--num-resample", 2)
    assert code == 0 and columns(out) == ["implicit", "implicit, num_resample 2"]
    whole = "100.0 (43.9 to 100.0)"
    assert row(out, "every pixel outside the mask as before") == [whole] * 3
    code, out, _ = run("inpaint", model="inpaint")
    assert code == 0 and columns(out) == ["fine-tuned"]
    assert row(out, "every pixel outside the mask as before") == [whole] * 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["settings"]["task"] == "inpaint" and results["settings"]["guidance_scale"] is None
    assert list(results["columns"]) == ["fine-tuned"]
    assert results["columns"]["fine-tuned"]["guidance_scale"] == 5.0


def test_the_script_measures_editing_by_size(run, tmp_path):
    code, out, _ = run("inpaint", "--sizes", 64, "48x100", model="inpaint")
    assert code == 0 and columns(out) == ["fine-tuned, 48 x 100", "fine-tuned, 64 x 64"]
    assert row(out, "every pixel outside the mask as before") == ["100.0 (43.9 to 100.0)"] * 3
    assert run("inpaint", "--sizes", 64, "--resume", "--working-size", "image", model="inpaint")[0] == 2


def test_the_script_measures_sdedit_over_strength_and_resumes(run, tmp_path, monkeypatch):
    code, out, _ = run("img2img", "--strength", 1, 0.5)
    assert code == 0 and columns(out) == ["strength 0.5", "strength 1"]
    differences = [float(cell) for cell in row(out, "mean difference outside the mask")]
    assert differences[0] == 0 < min(differences[1:])
    seen = []
    draw = GLIDEImg2ImgPipeline.__call__
    monkeypatch.setattr(
        GLIDEImg2ImgPipeline, "__call__", lambda *args, **call: seen.append(call["strength"]) or draw(*args, **call)
    )
    code, out, _ = run("img2img", "--strength", 0.75, 0.5, "--resume")
    assert code == 0 and columns(out) == ["strength 0.5", "strength 0.75", "strength 1"] and seen == [0.75]


def test_without_a_model_the_checkpoints_that_ship_stand_side_by_side(monkeypatch):
    def load(args, task, model):
        pipe = tiny_pipeline() if model is None else tiny_inpaint_pipeline()
        seen.append(model)
        return task.from_pipe(pipe)

    seen = []
    monkeypatch.setattr(run_evaluate_shapes, "shapes_checkpoint", lambda name: f"shipped {name}")
    monkeypatch.setattr(run_evaluate_shapes, "load", load)
    args = glide_cli.read_arguments("evaluate-shapes", ["--task", "inpaint", "--output", "results.json"])
    found = run_evaluate_shapes.editors(args)
    assert sorted(found) == ["fine-tuned", "implicit", "implicit, num_resample 4"]
    assert seen == [None, "shipped inpaint"]
    assert found["implicit, num_resample 4"][1] == {"num_resample": 4}
    assert all(isinstance(pipe, GLIDEInpaintPipeline) for pipe, _ in found.values())


def test_each_checkpoint_is_measured_with_the_guidance_that_it_recommends(run, tmp_path, monkeypatch):
    def load(args, task, model):
        pipe = tiny_pipeline() if model is None else tiny_inpaint_pipeline()
        if model is None:
            pipe.register_to_config(default_guidance_scale=2.5)
        return task.from_pipe(pipe)

    seen = []
    draw = GLIDEInpaintPipeline.__call__
    monkeypatch.setattr(
        GLIDEInpaintPipeline,
        "__call__",
        lambda *args, **call: seen.append(call["guidance_scale"]) or draw(*args, **call),
    )
    monkeypatch.setattr(run_evaluate_shapes, "load", load)
    monkeypatch.setattr(run_evaluate_shapes, "shapes_checkpoint", lambda name: f"shipped {name}")
    assert run("inpaint", "--num-resample", 1, model=None)[0] == 0
    assert sorted(seen) == [2.5, 5.0]
    results = json.loads((tmp_path / "results.json").read_text())
    scales = {title: figures["guidance_scale"] for title, figures in results["columns"].items()}
    assert scales == {"implicit": 2.5, "fine-tuned": 5.0}
    seen.clear()
    assert run("inpaint", "--num-resample", 1, "--guidance-scale", 1.5, model=None)[0] == 0
    assert seen == [1.5, 1.5]


def test_an_edit_is_measured_on_256_scenes():
    for task in ("inpaint", "img2img"):
        args = glide_cli.read_arguments("evaluate-shapes", ["--task", task, "--output", "results.json"])
        assert args.num_captions == 256


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("inpaint", ("--strength", 0.5), "--strength is for --task img2img"),
        ("img2img", ("--num-resample", 2), "--num-resample is for --task inpaint"),
        ("inpaint", ("--guidance-scale", 1, 2), "--guidance-scale: --task inpaint takes one, got 2"),
        ("text-to-image", ("--sizes", 256), "--sizes is for --task inpaint or img2img"),
        ("inpaint", ("--sizes", "64x64x64"), "--sizes: must be 32 to 2048 pixels, or such a HEIGHTxWIDTH"),
        ("inpaint", ("--sizes", 16), "--sizes: must be 32 to 2048 pixels"),
        ("img2img", ("--strength", 0), "--strength: must be a number above 0"),
        ("draw", (), "--task"),
    ],
)
def test_options_of_another_task_are_named(run, tmp_path, task, options, words):
    code, out, err = run(task, *options)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_model_of_the_wrong_kind_is_named(run, tmp_path):
    code, _, err = run("img2img", model="swapped")
    assert code == 2 and err.splitlines()[-1].startswith("glide evaluate-shapes: error: `unet` has 6 input channels")
    assert not any(tmp_path.iterdir())
