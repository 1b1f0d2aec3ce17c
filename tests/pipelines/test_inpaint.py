"""Inpainting: what is kept, the two modes, resampling, crops around the mask."""

import io

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler
from editing import HOLE, MASK, PICTURE, inputs_of, picture, quiet, refused
from PIL import Image
from tiny import tiny_call, tiny_inpaint_pipeline, tiny_pipeline, tiny_unet

from glide_pipelines import (
    GLIDEDDPMScheduler,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)
from glide_pipelines.images import to_mask_tensor, to_tensor
from glide_pipelines.sampling import SchedulerRun


@pytest.fixture(scope="module")
def fine_tuned():
    return tiny_inpaint_pipeline()


@pytest.fixture(scope="module")
def implicit():
    return quiet(GLIDEInpaintPipeline.from_pipe(tiny_pipeline()))


@pytest.fixture(scope="module", params=["fine-tuned", "implicit"])
def inpaint(request, fine_tuned, implicit):
    return fine_tuned if request.param == "fine-tuned" else implicit


def paint(pipe, image=PICTURE, mask=MASK, **changes):
    return pipe(**tiny_call(image=image, mask_image=mask, **{"output_type": "pil"} | changes)).images


def test_kept_pixels_come_back_to_the_bit(inpaint):
    (result,) = paint(inpaint)
    assert result.size == PICTURE.size and result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result)[~HOLE], np.asarray(PICTURE)[~HOLE])
    assert (np.asarray(result)[HOLE] != np.asarray(PICTURE)[HOLE]).any()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 24), (33, 47), (20, 61)])
def test_pictures_of_any_size_come_back_in_their_size(inpaint, height, width):
    image, mask = picture(height, width), Image.new("L", (width, height))
    mask.paste(255, (5, 5, 15, 15))
    (result,) = paint(inpaint, image, mask)
    hole = np.asarray(mask) > 0
    assert result.size == (width, height)
    np.testing.assert_array_equal(np.asarray(result)[~hole], np.asarray(image)[~hole])


def test_the_mode_follows_from_the_channels(fine_tuned, implicit):
    assert (fine_tuned.mode, implicit.mode) == ("fine-tuned", "implicit")


def test_the_known_picture_matters(inpaint):
    first = np.asarray(paint(inpaint)[0])
    other = np.asarray(paint(inpaint, picture(32, 32))[0])
    assert (other[HOLE] != first[HOLE]).any()


def test_arrays_and_tensors_equal_files(inpaint):
    expected = np.asarray(paint(inpaint)[0])
    array, mask = np.asarray(PICTURE) / 255, np.asarray(MASK) / 255
    np.testing.assert_array_equal(np.asarray(paint(inpaint, array, mask)[0]), expected)
    tensor = torch.from_numpy(np.asarray(PICTURE).copy()).permute(2, 0, 1) / 127.5 - 1
    np.testing.assert_array_equal(np.asarray(paint(inpaint, tensor, torch.from_numpy(mask))[0]), expected)


def test_a_mask_of_another_size_is_resized(inpaint):
    small = MASK.resize((8, 8), Image.Resampling.NEAREST)
    np.testing.assert_array_equal(np.asarray(paint(inpaint, mask=small)[0])[:2], np.asarray(PICTURE)[:2])


def test_batches(inpaint):
    pictures = [PICTURE, picture(32, 32)]
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    results = paint(inpaint, pictures, prompt=["red", "blue"], num_images_per_prompt=2, generator=seeds)
    assert len(results) == 4
    for result, source in zip(results, [0, 0, 1, 1], strict=True):
        np.testing.assert_array_equal(np.asarray(result)[~HOLE], np.asarray(pictures[source])[~HOLE])
    alone = paint(inpaint, pictures[1], prompt="blue", generator=torch.Generator().manual_seed(2))[0]
    assert np.abs(np.asarray(alone).astype(int) - np.asarray(results[2])).max() <= 1


def test_a_hole_too_small_for_the_base_stage_is_repainted_by_it_all_the_same(fine_tuned):
    mask = Image.new("L", (32, 32))
    mask.paste(255, (9, 13, 11, 15))
    with inputs_of(fine_tuned.unet) as seen:
        paint(fine_tuned, mask=mask)
    assert [inputs["mask"][0, 0].nonzero().tolist() for inputs in seen] == [[[3, 2]]] * 2


def test_the_upsampler_sees_the_known_pixels(implicit):
    with inputs_of(implicit.super_res_unet) as seen:
        paint(implicit)
    known = ~to_mask_tensor([MASK], (8, 8)).bool().expand(-1, 3, -1, -1)
    torch.testing.assert_close(seen[0]["low_res"][known], to_tensor([PICTURE], (8, 8))[known])


def test_height_and_width_resize_the_picture(inpaint):
    (result,) = paint(inpaint, height=64, width=32)
    assert result.size == (32, 64)


def test_a_crop_around_the_mask_leaves_the_rest_alone(inpaint, caplog):
    large, mask = picture(96, 128), Image.new("L", (128, 96))
    mask.paste(255, (60, 40, 70, 50))
    with inputs_of(inpaint.unet) as seen:
        (result,) = paint(inpaint, large, mask, padding_mask_crop=4)
    hole = np.asarray(mask) > 0
    assert result.size == (128, 96)
    np.testing.assert_array_equal(np.asarray(result)[~hole], np.asarray(large)[~hole])
    assert (np.asarray(result)[hole] != np.asarray(large)[hole]).any()
    # It worked at the size that the model was trained on, and so did not warn.
    assert {inputs["sample"].shape[-2:] for inputs in seen} == {(8, 8)}
    assert "far from" not in caplog.text


def test_a_crop_worked_on_at_another_size_is_resized_back(inpaint):
    large, mask, box = picture(70, 90), Image.new("L", (90, 70)), (16, 12, 64, 52)
    mask.paste(255, (20, 16, 60, 48))
    seen = {}

    def paint_grey(pipe, step, timestep, tensors):
        seen[pipe.stage] = tensors["latents"].shape
        return {"latents": torch.full_like(tensors["latents"], 0.2)}

    size = {"height": 64, "width": 32}
    (result,) = paint(
        inpaint, large, mask, padding_mask_crop=4, callback_on_step_end=paint_grey, output_type="np", **size
    )
    assert seen["super_res"] == (1, 3, 64, 32)
    # Grey, and at the edge no further from it than a cast of the colours may be.
    np.testing.assert_allclose(result[24:40, 28:52], 0.6, atol=0.051)
    part = np.asarray(large.crop(box)) / 255
    hole = np.asarray(mask.crop(box)) > 0
    np.testing.assert_allclose(result[12:52, 16:64][~hole], part[~hole], atol=1e-6)


def test_a_crop_around_each_mask_of_a_batch(inpaint):
    """At the border too, and worked on at another size than its own."""
    pictures, masks = [picture(70, 90), picture(70, 90)], [Image.new("L", (90, 70)) for _ in range(2)]
    masks[0].paste(255, (0, 0, 6, 6))
    masks[1].paste(255, (40, 30, 50, 70))
    results = paint(
        inpaint, pictures, masks, prompt=["red", "blue"], padding_mask_crop=2, height=64, width=32, generator=None
    )
    for result, source, mask in zip(results, pictures, masks, strict=True):
        hole = np.asarray(mask) > 0
        assert result.size == (90, 70)
        np.testing.assert_array_equal(np.asarray(result)[~hole], np.asarray(source)[~hole])
        assert (np.asarray(result)[hole] != np.asarray(source)[hole]).any()


@pytest.mark.parametrize("kind", ["RGBA", "P", "I;16", "exif"])
def test_pictures_of_every_kind_keep_what_they_show(inpaint, kind):
    if kind == "RGBA":
        image = PICTURE.convert("RGBA")
        image.paste((0, 0, 0, 0), (0, 24, 32, 32))
        shown = PICTURE.copy()
        shown.paste("white", (0, 24, 32, 32))
    elif kind == "P":
        image = PICTURE.quantize(64)
        shown = image.convert("RGB")
    elif kind == "I;16":
        grey = np.asarray(PICTURE)[..., 0]
        image, shown = Image.fromarray(grey * np.uint16(257)), Image.fromarray(grey).convert("RGB")
    else:
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 8
        PICTURE.save(file, "PNG", exif=exif)
        image, shown = Image.open(file), PICTURE.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(np.asarray(paint(inpaint, image)[0])[~HOLE], np.asarray(shown)[~HOLE])


def test_edits_that_build_on_each_other(inpaint):
    """Ten edits in a row leave every pixel that no mask touched as it was."""
    current, touched = PICTURE, np.zeros((32, 32), dtype=bool)
    for i in range(10):
        mask = Image.new("L", (32, 32))
        mask.paste(255, (i, i, i + 4, i + 4))
        touched |= np.asarray(mask) > 0
        (current,) = paint(inpaint, current, mask, generator=torch.Generator().manual_seed(i))
    np.testing.assert_array_equal(np.asarray(current)[~touched], np.asarray(PICTURE)[~touched])
    assert (np.asarray(current)[touched] != np.asarray(PICTURE)[touched]).any()


def test_without_an_upsampler(fine_tuned):
    (result,) = paint(tiny_inpaint_pipeline(upsampler=False))
    np.testing.assert_array_equal(np.asarray(result)[~HOLE], np.asarray(PICTURE)[~HOLE])


def test_resampling_takes_each_step_several_times(implicit):
    seen = []
    paint(implicit, num_resample=3, callback_on_step_end=lambda p, i, t, k: seen.append((i, int(t))) or {})
    """All but the last of each stage."""
    assert [i for i, _ in seen] == list(range(8)) and implicit.num_timesteps == 8
    assert [t for _, t in seen] == [999] * 3 + [0] + [999] * 3 + [0]


def test_only_the_implicit_stage_resamples(implicit):
    """Each stage runs in its own mode, and callbacks count what is run."""
    mixed = quiet(GLIDEInpaintPipeline.from_pipe(implicit, super_res_unet=tiny_unet(10, 32, 3)))
    mixed.super_res_scheduler = GLIDEDDPMScheduler()
    seen = []
    paint(mixed, num_resample=3, callback_on_step_end=lambda pipe, step, timestep, tensors: seen.append(step) or {})
    assert seen == list(range(mixed.num_timesteps)) == list(range(3 + 1 + 2))


def test_the_progress_bar_names_the_mode(fine_tuned, implicit, capsys):
    for pipe in (fine_tuned, implicit):
        loud = GLIDEInpaintPipeline.from_pipe(pipe)
        loud.set_progress_bar_config(disable=False)
        paint(loud)
        shown = capsys.readouterr().err
        assert f"base 8x8, {pipe.mode}" in shown and f"super_res 32x32, {pipe.mode}" in shown


def test_resampling_undoes_all_steps_but_the_last(implicit):
    """RePaint, algorithm 1: after the last step there is no noise to go back to. Each step that is undone ends in a
    cleaner image, and is taken again from the noise of its own."""
    call = {"num_resample": 2, "timesteps": [999, 500, 0], "guidance_scale": 1.0}
    with inputs_of(implicit.unet) as seen:
        paint(implicit, mask=Image.new("L", (32, 32), 255), **call)
    assert [inputs["timestep"].item() for inputs in seen] == [999, 999, 500, 500, 0]
    first, second = (inputs["sample"] for inputs in seen[:2])
    assert second.std().item() == pytest.approx(1, abs=0.2)
    assert not torch.equal(first, second)


def test_an_undone_step_goes_back_by_one_step_of_noise(implicit):
    """Of a white image the signal that is left falls from that of x_{t-1} to that of x_t."""
    run = SchedulerRun(implicit.scheduler, timesteps=[999, 500, 250, 0])
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(1, 3, 64, 64, generator=generator)

    now, later = implicit.scheduler.train_process.alphas_cumprod[[500, 250]].tolist()
    x_later = later**0.5 + (1 - later) ** 0.5 * noise()
    x_now = run.undo_step(x_later, noise(), 1)
    assert x_now.mean().item() == pytest.approx(now**0.5, abs=0.02)
    assert x_now.std().item() == pytest.approx((1 - now) ** 0.5, abs=0.02)


def test_the_implicit_mode_noises_the_known_region_as_its_step(implicit):
    """What the model sees of the known region at a step is the picture with that step's noise."""
    seen = []
    hook = implicit.unet.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    try:
        paint(implicit, Image.new("RGB", (32, 32), "white"), timesteps=[999, 500, 0], guidance_scale=1.0)
    finally:
        hook.remove()
    known = (~HOLE)[::4, ::4]
    means = [x[0, :, known].mean().item() for x in seen]
    alphas = implicit.scheduler.train_process.alphas_cumprod[[999, 500, 0]].sqrt().tolist()
    np.testing.assert_allclose(means, alphas, atol=0.25)


def test_other_schedulers(inpaint):
    pipe = quiet(
        GLIDEInpaintPipeline.from_pipe(
            inpaint, scheduler=DPMSolverMultistepScheduler.from_config(inpaint.scheduler.config)
        )
    )
    (result,) = paint(pipe, num_inference_steps=5)
    np.testing.assert_array_equal(np.asarray(result)[~HOLE], np.asarray(PICTURE)[~HOLE])


def test_save_and_load(fine_tuned, tmp_path):
    fine_tuned.save_pretrained(tmp_path)
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert type(loaded) is GLIDEInpaintPipeline
    results = [paint(pipe, output_type="np")[0] for pipe in (loaded, fine_tuned)]
    np.testing.assert_allclose(*results, atol=5e-4)


NOTHING, CORNER = Image.new("L", (32, 32)), Image.new("L", (320, 320))
CORNER.paste(255, (0, 0, 2, 2))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": None}, ValueError, "Pass `image`"),
        ({"mask_image": None}, ValueError, "Pass `mask_image`"),
        ({"image": "picture.png"}, TypeError, "`image` must be a PIL image.* got 'picture.png'"),
        ({"mask_image": NOTHING}, ValueError, "`mask_image` 0 of 1 has nothing to repaint"),
        (
            {"mask_image": [MASK, NOTHING], "prompt": ["a", "b"]},
            ValueError,
            "`mask_image` 1 of 2 has nothing to repaint: white",
        ),
        (
            {"mask_image": Image.new("L", (64, 32), 255)},
            ValueError,
            "`mask_image` 0 of 1 must have the aspect ratio of its image, which has 32 x 32 pixels, got 32 x 64",
        ),
        ({"mask_image": CORNER}, ValueError, "`mask_image` 0 of 1 has nothing to repaint: .* size of 32 x 32"),
        ({"mask_image": CORNER, "padding_mask_crop": 4}, ValueError, "`mask_image` 0 of 1 .* size of 32 x 32"),
        ({"image": [PICTURE] * 2}, ValueError, "`image` must be one image, as there is one prompt, got 2"),
        ({"mask_image": [MASK] * 3}, ValueError, "`mask_image` must be one image, as there is one prompt, got 3"),
        ({"image": np.full((32, 32, 3), np.nan)}, ValueError, "`image` holds NaN"),
        ({"mask_image": np.full((32, 32), np.nan)}, ValueError, "`mask_image` holds NaN"),
        ({"image": Image.new("RGB", (1, 1)), "mask_image": Image.new("L", (1, 1), 255)}, ValueError, "a single pixel"),
        ({"working_size": "large"}, ValueError, "`working_size` must be 'model', 'image' or .* got 'large'"),
        ({"working_size": (32, 33)}, ValueError, "`working_size` must be a multiple of 8, got 33"),
        ({"max_batch_size": 0}, ValueError, "`max_batch_size` must be 1 or more, got 0"),
        ({"num_resample": 0}, ValueError, "`num_resample` must be 1 or more"),
        ({"padding_mask_crop": -1}, ValueError, "`padding_mask_crop` must be an integer of 0 or more, got -1"),
        ({"padding_mask_crop": 0, "width": 8.0}, TypeError, "`width` must be an integer, got 8.0"),
        ({"height": 0}, ValueError, "`height` must be 1 or more"),
        ({"latents": torch.zeros(1, 3, 4, 4)}, ValueError, r"`latents` must have the shape \[1, 3, 8, 8\]"),
        ({"super_res_latents": torch.zeros(1, 3, 8, 8)}, ValueError, r"`super_res_latents` .* \[1, 3, 32, 32\]"),
        (
            {"image": [PICTURE, picture(40, 32)], "prompt": ["a", "b"]},
            ValueError,
            r"`image` holds images of different sizes \(32 x 32, 40 x 32\); pass `height` and `width`, or one size\.",
        ),
        (
            {
                "image": [PICTURE, picture(40, 32)],
                "prompt": ["a", "b"],
                "padding_mask_crop": 0,
                "height": 32,
                "width": 32,
            },
            ValueError,
            r"`image` holds images of different sizes \(32 x 32, 40 x 32\); `padding_mask_crop` needs one size\.",
        ),
    ],
)
def test_bad_input_to_inpainting(implicit, changes, error, message):
    with refused(implicit, error, message):
        implicit(**tiny_call(image=PICTURE, mask_image=MASK) | changes)


def test_resampling_is_refused_where_it_makes_no_sense(fine_tuned, implicit):
    with refused(fine_tuned, ValueError, "`num_resample` is for the implicit mode"):
        paint(fine_tuned, num_resample=2)
    other = GLIDEInpaintPipeline.from_pipe(
        implicit, super_res_scheduler=DPMSolverMultistepScheduler.from_config(implicit.super_res_scheduler.config)
    )
    with refused(other, ValueError, "`num_resample` above 1 needs GLIDEDDPMScheduler .* got DPMSolver"):
        paint(other, num_resample=2)


def test_models_of_the_wrong_kind_are_named(fine_tuned):
    base, upsampler = fine_tuned.unet, fine_tuned.super_res_unet
    for cls, unets, message in (
        (GLIDEPipeline, {"unet": upsampler}, "`unet` has 10 input channels; GLIDEPipeline needs one with 3 or 7"),
        (GLIDEInpaintPipeline, {"unet": upsampler}, "`unet` has 10 .*; GLIDEInpaintPipeline needs one with 3 or 7"),
        (GLIDESuperResolutionPipeline, {"super_res_unet": base}, "`super_res_unet` has 7 .* needs one with 6 or 10"),
    ):
        wrong = cls.from_pipe(fine_tuned, **unets)
        images = {GLIDEInpaintPipeline: {"image": PICTURE, "mask_image": MASK}, GLIDEPipeline: {}}
        with refused(wrong, ValueError, message):
            wrong("red", **images.get(cls, {"image": PICTURE}))


def test_an_inpainting_model_makes_an_image_from_text_as_if_all_of_one_were_masked(fine_tuned):
    white = Image.new("L", PICTURE.size, 255)
    (expected,) = paint(fine_tuned, mask=white, guidance_scale=3.0)
    (image,) = GLIDEPipeline.from_pipe(fine_tuned)(**tiny_call(output_type="pil")).images
    assert image.size == expected.size
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("cls", [GLIDEImg2ImgPipeline, GLIDESuperResolutionPipeline])
def test_an_inpainting_model_edits_and_enlarges(fine_tuned, cls):
    image = PICTURE if cls is GLIDEImg2ImgPipeline else PICTURE.resize((8, 8))
    (result,) = cls.from_pipe(fine_tuned)("red", image=image, generator=torch.manual_seed(0)).images
    assert result.size == PICTURE.size and np.asarray(result).std() > 0
