"""Images of any size: what the model sees of them, and how what it paints is put back."""

import contextlib
import copy

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from editing import MASK, PICTURE, inputs_of, picture, quiet, refused
from PIL import Image
from tiny import tiny_call, tiny_clip_pipeline, tiny_inpaint_pipeline, tiny_pipeline

from glide_pipelines import GLIDEImg2ImgPipeline, GLIDEInpaintPipeline, GLIDESuperResolutionPipeline
from glide_pipelines.pipelines.working_area import hole_groups, holes_of, scene_box


@pytest.fixture(scope="module", params=["fine-tuned", "implicit", "CLIP-guided"])
def inpaint(request):
    if request.param == "implicit":
        return quiet(GLIDEInpaintPipeline.from_pipe(tiny_pipeline()))
    return tiny_inpaint_pipeline() if request.param == "fine-tuned" else tiny_clip_pipeline(inpaint=True)


def mask_of(height, width, *boxes):
    mask = Image.new("L", (width, height))
    for box in boxes:
        mask.paste(255, box)
    return mask


def paint(pipe, image, mask, **changes):
    return pipe(**tiny_call(image=image, mask_image=mask, **{"output_type": "pil"} | changes)).images


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((300, 420), (100, 50, 300, 200)),
        ((200, 200), (0, 0, 200, 200)),
        ((500, 40), (3, 100, 20, 120)),
        ((3, 400), (200, 0, 202, 2)),
        ((5, 4), (1, 1, 3, 3)),
    ],
)
def test_the_model_works_at_its_own_size(inpaint, size, box, caplog):
    image, mask = picture(*size), mask_of(*size, box)
    with inputs_of(inpaint.super_res_unet) as seen:
        (result,) = paint(inpaint, image, mask)
    assert {inputs["sample"].shape[-2:] for inputs in seen} == {(32, 32)} and "far from" not in caplog.text
    hole = np.asarray(mask) > 0
    assert result.size == image.size
    np.testing.assert_array_equal(np.asarray(result)[~hole], np.asarray(image)[~hole])
    assert (np.asarray(result)[hole] != np.asarray(image)[hole]).any()


@pytest.mark.parametrize(
    ("size", "hole", "box"),
    [
        ((128, 128), (40, 40, 80, 80), (0, 0, 128, 128)),
        ((1024, 1024), (300, 300, 600, 600), (0, 0, 1024, 1024)),  # all of it
        ((300, 420), (160, 100, 260, 200), (60, 0, 360, 300)),  # a square, in the middle
        ((300, 420), (320, 100, 420, 200), (120, 0, 420, 300)),  # or where the hole is
        ((300, 420), (260, 100, 355, 200), (64, 0, 364, 300)),  # with a little around the hole
        ((300, 420), (10, 100, 410, 200), (0, 0, 420, 300)),  # more, where the hole would not fit
        ((3024, 4032), (2000, 1000, 2100, 1200), (1650, 700, 2450, 1500)),  # less: a quarter of it is the hole
        ((1024, 1024), (500, 500, 510, 510), (441, 441, 569, 569)),  # never enlarged
        ((96, 128), (0, 0, 40, 40), (0, 0, 128, 96)),  # all of a small image
    ],
)
def test_the_part_that_the_model_sees(size, hole, box):
    assert scene_box([hole], size, (128, 128)) == box


@pytest.mark.parametrize(
    ("holes", "box"),
    [
        (((2000, 1000, 2100, 1200), (2200, 1000, 2300, 1200)), (1750, 700, 2550, 1500)),  # the larger is a quarter
        (((2000, 1000, 2100, 1200), (2200, 1000, 2201, 1001)), (1700, 700, 2500, 1500)),
        (((1000, 1000, 1100, 1200), (2400, 1000, 2500, 1200)), (750, 100, 2750, 2100)),  # both are three quarters
    ],
)
def test_of_several_holes_the_largest_is_to_be_seen_well(holes, box):
    assert scene_box(holes, (3024, 4032), (128, 128)) == box


def test_an_image_of_the_size_of_the_model_is_worked_on_as_it_is(inpaint):
    """Padded to that size, too."""
    for image, mask in ((PICTURE, MASK), (picture(30, 27), mask_of(30, 27, (4, 4, 20, 20)))):
        default, own = (paint(inpaint, image, mask, working_size=size)[0] for size in ("model", "image"))
        np.testing.assert_array_equal(np.asarray(default), np.asarray(own))


def test_the_size_can_be_chosen(caplog):
    pipe, image, mask = tiny_inpaint_pipeline(), picture(96, 128), mask_of(96, 128, (40, 40, 80, 80))
    for size, expected in (("image", (96, 128)), ((64, 48), (64, 48)), ("model", (32, 32))):
        with inputs_of(pipe.super_res_unet) as seen:
            (result,) = paint(pipe, image, mask, working_size=size)
        assert seen[0]["sample"].shape[-2:] == expected and result.size == (128, 96)
    assert caplog.text.count("96 x 128 is far from that") == 1


def test_several_holes_are_one_call(inpaint):
    image, mask = picture(200, 300), mask_of(200, 300, (10, 20, 60, 70), (200, 100, 280, 180))
    (result,) = paint(inpaint, image, mask)
    changed = (np.asarray(result) != np.asarray(image)).any(axis=-1)
    assert not changed[np.asarray(mask) == 0].any()
    assert changed[20:70, 10:60].mean() > 0.9 and changed[100:180, 200:280].mean() > 0.9


FAR = [(10, 20, 60, 70), (1100, 600, 1180, 690)]


@pytest.mark.parametrize("scheduler", [None, DPMSolverMultistepScheduler])
def test_holes_far_apart_are_repainted_one_after_the_other(inpaint, scheduler):
    """As by a call for each, the largest first, with the noise of one generator."""
    if scheduler is not None:
        inpaint = copy.copy(inpaint)
        inpaint.register_modules(scheduler=scheduler.from_config(inpaint.scheduler.config))
    image, generator = picture(800, 1200), torch.Generator().manual_seed(3)
    (together,) = paint(inpaint, image, mask_of(800, 1200, *FAR), generator=torch.Generator().manual_seed(3))
    one_by_one = image
    for hole in reversed(FAR):
        (one_by_one,) = paint(inpaint, one_by_one, mask_of(800, 1200, hole), generator=generator)
    np.testing.assert_array_equal(np.asarray(together), np.asarray(one_by_one))


def test_callbacks_and_bars_count_the_steps_of_all_parts(capsys):
    seen, pipe = [], tiny_inpaint_pipeline()
    pipe.set_progress_bar_config(disable=False)

    def note(pipe, step, timestep, tensors):
        seen.append((step, pipe.num_timesteps, pipe.stage))
        return {}

    paint(pipe, picture(800, 1200), mask_of(800, 1200, *FAR), callback_on_step_end=note)
    stages = ["base"] * 2 + ["super_res"] * 2
    assert seen == [(step, 8, stage) for step, stage in enumerate(2 * stages)]
    bars = capsys.readouterr().err
    assert "base 8x8, fine-tuned, part 1 of 2" in bars and "super_res 32x32, fine-tuned, part 2 of 2" in bars


def test_what_an_interrupted_call_did_not_come_to_is_left():
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = True
        return {}

    image = picture(800, 1200)
    (result,) = paint(tiny_inpaint_pipeline(), image, mask_of(800, 1200, *FAR), callback_on_step_end=stop)
    assert list(changed_box(result, image)) == list(FAR[1])


def changed_box(result, image):
    return Image.fromarray((np.asarray(result) != np.asarray(image)).any(axis=-1)).getbbox()


def test_images_of_a_batch_may_have_different_numbers_of_parts():
    pipe, image = tiny_inpaint_pipeline(), picture(800, 1200)
    masks = [mask_of(800, 1200, FAR[0]), mask_of(800, 1200, *FAR)]
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    options = {"prompt": ["red", "blue"], "num_images_per_prompt": 2}
    batch = paint(pipe, [image] * 2, masks, generator=generators, **options)
    for number, result in enumerate(batch):
        generator, mask = torch.Generator().manual_seed(number), masks[number // 2]
        (alone,) = paint(pipe, image, mask, generator=generator, prompt=options["prompt"][number // 2])
        np.testing.assert_allclose(np.asarray(result).astype(int), np.asarray(alone).astype(int), atol=1)


@pytest.mark.parametrize(
    ("size", "groups"),
    [
        ((3024, 4032), [[(2000, 1000, 2100, 1200), (2200, 1000, 2300, 1200)]]),  # close to each other
        ((3024, 4032), [[(3000, 1000, 3100, 1200)], [(10, 1000, 11, 1001)]]),  # the largest first
        ((3024, 4032), [[(0, 0, 100, 100), (110, 0, 150, 50)], [(3000, 0, 3100, 100), (3110, 0, 3150, 50)]]),
        ((512, 512), [[(10, 10, 150, 150), (350, 350, 490, 490)]]),  # the largest needs all of the image
        ((400, 4000), [[(0, 100, 200, 300)], [(3800, 100, 4000, 300)]]),  # and not here
        ((4000, 400), [[(100, 0, 300, 200)], [(100, 3800, 300, 4000)]]),
        ((120, 128), [[(0, 0, 5, 5), (120, 110, 125, 115)]]),  # a small image
    ],
)
def test_holes_that_are_repainted_together(size, groups):
    assert hole_groups(sorted(hole for group in groups for hole in group), size, (128, 128)) == groups


def test_holes_are_parted_by_rows_and_columns_without_any():
    boxes = [(10, 20, 30, 40), (10, 60, 30, 80), (100, 5, 150, 90)]
    assert holes_of(mask_of(100, 200, *boxes)) == boxes
    dotted = np.zeros((600, 800), np.uint8)
    dotted[::2, ::2] = 255
    assert holes_of(Image.fromarray(dotted)) == [(0, 0, 799, 599)]


def test_each_image_of_a_batch_has_a_part_of_its_own():
    pipe = tiny_inpaint_pipeline()
    images, masks = (
        [picture(60, 90) for _ in range(2)],
        [mask_of(60, 90, box) for box in ((0, 0, 20, 9), (50, 30, 90, 60))],
    )
    results = paint(pipe, images, masks, prompt=["red", "blue"], num_images_per_prompt=2, generator=None)
    assert len(results) == 4
    for number, result in enumerate(results):
        hole = np.asarray(masks[number // 2]) > 0
        np.testing.assert_array_equal(np.asarray(result)[~hole], np.asarray(images[number // 2])[~hole])
        assert (np.asarray(result)[hole] != np.asarray(images[number // 2])[hole]).any()


def test_no_step_is_seen_at_the_edge_of_the_mask():
    """The model paints all of a grey image six of 255 too bright: at the edge of the mask that is less than one."""
    grey, cast = 100, 6
    mask = Image.fromarray(255 * (np.hypot(*np.mgrid[-150:150, -150:150]) < 100).astype(np.uint8))

    def brighter(pipe, step, timestep, tensors):
        return {"latents": torch.full_like(tensors["latents"], (grey + cast) / 127.5 - 1)}

    image = Image.new("RGB", (300, 300), (grey,) * 3)
    (result,) = paint(tiny_inpaint_pipeline(), image, mask, callback_on_step_end=brighter)
    values, hole = np.asarray(result)[..., 0].astype(int), np.asarray(mask) > 0
    steps = [np.abs(np.diff(values, axis=axis))[np.diff(hole, axis=axis)] for axis in (0, 1)]
    assert np.concatenate(steps).max() <= 1
    assert values[150, 150] == grey + cast and (values[~hole] == grey).all()


def test_a_detail_that_the_model_paints_stays_in_its_place():
    """The hole of a photo is filled from the size of the model's, without a shift."""
    rows = np.linspace(20, 200, 400)[:, None, None]
    image = Image.fromarray(np.broadcast_to(rows, (400, 300, 3)).astype(np.uint8))
    mask = mask_of(400, 300, (40, 100, 260, 300))

    def copy(pipe, step, timestep, tensors):
        # What the model sees is 300 of the 400 rows.
        size, top = tensors["latents"].shape[-1], 50
        centres = top + (torch.arange(size) + 0.5) * 300 / size - 0.5
        ramp = (20 + 180 * centres / 399) / 127.5 - 1
        return {"latents": ramp[:, None].expand_as(tensors["latents"]).clone()}

    assert scene_box(holes_of(mask), (400, 300), (32, 32)) == (0, 50, 300, 350)
    (result,) = paint(tiny_inpaint_pipeline(), image, mask, callback_on_step_end=copy)
    np.testing.assert_allclose(np.asarray(result).astype(int), np.asarray(image).astype(int), atol=2)


def test_a_mask_larger_than_the_image():
    large, small = mask_of(960, 1280, (200, 100, 900, 800)), picture(96, 128)
    (result,) = paint(tiny_inpaint_pipeline(), small, large)
    hole = np.asarray(large.resize((128, 96), Image.Resampling.BICUBIC)) >= 128
    np.testing.assert_array_equal(np.asarray(result)[~hole], np.asarray(small)[~hole])
    assert (np.asarray(result)[hole] != np.asarray(small)[hole]).any()


def test_a_mask_may_round_the_aspect_ratio():
    """As a thumbnail does."""
    image, mask = picture(97, 128), mask_of(3024, 4000, (0, 0, 2000, 2000))
    assert paint(tiny_inpaint_pipeline(), image, mask)[0].size == (128, 97)


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_other_outputs(output_type):
    image, mask = picture(60, 90), mask_of(60, 90, (10, 10, 50, 50))
    results = paint(tiny_inpaint_pipeline(), image, mask, num_images_per_prompt=2, output_type=output_type)
    assert tuple(results.shape) == ((2, 60, 90, 3) if output_type == "np" else (2, 3, 60, 90))


# -- max_batch_size ---------------------------------------------------------------------------------------------------


def calls():
    inpaint = tiny_inpaint_pipeline()
    yield tiny_pipeline(), {}, ("unet", "super_res_unet")
    yield inpaint, {"image": PICTURE, "mask_image": MASK}, ("unet", "super_res_unet")
    yield quiet(GLIDEImg2ImgPipeline.from_pipe(tiny_pipeline())), {"image": PICTURE}, ("unet", "super_res_unet")
    enlarge = quiet(GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline()))
    yield enlarge, {"image": picture(8, 8)}, ("super_res_unet",)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("one_generator", [True, False])
def test_long_batches_in_parts_give_the_same_images(index, one_generator):
    pipe, call, unets = list(calls())[index]
    results, sizes = [], []
    for max_batch_size in (None, 2):
        generators = [torch.Generator().manual_seed(seed) for seed in range(5)]
        call["generator"] = generators[0] if one_generator else generators
        arguments = tiny_call(num_images_per_prompt=5, max_batch_size=max_batch_size, **call)
        if "unet" not in unets:
            del arguments["num_inference_steps"]
        with contextlib.ExitStack() as stack:
            seen = [stack.enter_context(inputs_of(getattr(pipe, name))) for name in unets]
            results.append(pipe(**arguments).images)
        sizes.append(max(len(inputs["sample"]) for each in seen for inputs in each))
    np.testing.assert_allclose(*results, atol=1e-3)
    assert sizes == [10 if "unet" in unets else 5, 2]


# -- files that are not what they seem --------------------------------------------------------------------------------


def test_a_file_that_unpacks_to_far_more_is_refused(monkeypatch):
    """PIL tells some of them only when they are read."""

    def too_large(image, *args, **kwargs):
        raise Image.DecompressionBombError("Image size exceeds limit")

    monkeypatch.setattr("PIL.ImageOps.exif_transpose", too_large)
    pipe = tiny_inpaint_pipeline()
    with refused(pipe, ValueError, "`image` cannot be read: Image size exceeds limit"):
        paint(pipe, PICTURE, MASK)


def test_a_photo_from_a_camera_is_edited_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(90, 160).save(tmp_path / "photo.jpg", exif=exif)
    upright = Image.open(tmp_path / "photo.jpg").transpose(Image.Transpose.ROTATE_270)
    mask = mask_of(160, 90, (20, 30, 70, 90))
    (result,) = paint(tiny_inpaint_pipeline(), Image.open(tmp_path / "photo.jpg"), mask)
    hole = np.asarray(mask) > 0
    assert result.size == (90, 160)
    np.testing.assert_array_equal(np.asarray(result)[~hole], np.asarray(upright)[~hole])
