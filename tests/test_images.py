"""Pictures and masks of every kind become the same thing."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import damaged_avif
from PIL import Image

from glide_pipelines.images import crop_square, load_images, load_masks, pad_to, to_mask_tensor, to_tensor


PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32)[None],
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1) / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1)[None] / 127.5 - 1,
        [Image.fromarray(PIXELS)],
        Image.fromarray(PIXELS).convert("RGBA").convert("RGBa"),
    ],
    ids=["PIL", "uint8", "float64", "batch", "tensor uint8", "tensor 0..1", "tensor -1..1", "list", "premultiplied"],
)
def test_every_kind_of_picture_gives_the_same_result(picture):
    (loaded,) = load_images("image", picture)
    np.testing.assert_array_equal(np.asarray(loaded), PIXELS)
    # Also after resizing, where diffusers treats arrays and files differently.
    expected = to_tensor([Image.fromarray(PIXELS)], (7, 5))
    assert torch.equal(to_tensor([loaded], (7, 5)), expected)


def test_whatever_a_decoder_raises_names_the_argument():
    with pytest.raises(ValueError, match="`photo` cannot be read: Failed to decode"):
        load_images("photo", Image.open(io.BytesIO(damaged_avif())))


@pytest.mark.parametrize("given", ["photo.jpg", Path("photo.jpg")])
def test_a_file_is_to_be_opened_first(given):
    with pytest.raises(TypeError, match=r"`image` must be a PIL image.*`diffusers\.utils\.load_image` opens a file"):
        load_images("image", given)


def test_a_mask_of_zeros_and_ones_as_bytes_is_told_what_white_is():
    with pytest.raises(ValueError, match="white, 255 of uint8 and 1 of floats, is what is repainted"):
        load_masks("mask_image", np.ones((4, 4), np.uint8))


@pytest.mark.parametrize("clear, told", [((255, 255, 255), True), ((200, 180, 160), True), ((0, 0, 0), False)])
def test_a_mask_that_is_white_where_it_is_transparent_is_told(clear, told, caplog):
    mask = Image.new("RGBA", (4, 4), (*clear, 0))
    mask.paste("white", (0, 0, 2, 2))
    for kind in (mask, np.asarray(mask)):
        caplog.clear()
        (loaded,) = load_masks("mask_image", kind)
        assert loaded.getpixel((0, 0)) == 255 and (loaded.getpixel((3, 3)) >= 128) == told
        assert ("`mask_image` 0 of 1 is white where it is transparent" in caplog.text) == told


def test_transparency_in_arrays_and_tensors_becomes_white_too():
    rgba = np.dstack([PIXELS, np.linspace(0, 255, 120).astype(np.uint8).reshape(12, 10)])
    expected = np.asarray(load_images("image", Image.fromarray(rgba))[0])
    for kind in (rgba, rgba / 255, torch.from_numpy(rgba).permute(2, 0, 1)):
        np.testing.assert_array_equal(np.asarray(load_images("image", kind)[0]), expected)


def test_grey_arrays_are_grey_pictures():
    grey = PIXELS[..., 0]
    pil = Image.fromarray(grey)
    modes = [pil, pil.convert("LA").convert("La"), Image.fromarray((grey / 255).astype(np.float32))]  # the last is "F"
    for kind in (*modes, grey, grey[..., None], grey / 255, torch.from_numpy(grey)[None]):
        (loaded,) = load_images("image", kind)
        np.testing.assert_array_equal(np.asarray(loaded), np.repeat(grey[..., None], 3, axis=-1))


def test_the_range_of_tensors_is_told_from_all_of_them():
    """A bright picture of a batch in [-1, 1] has no negative value of its own."""
    batch = torch.stack([torch.zeros(3, 4, 4), torch.full((3, 4, 4), -1.0)])
    for kind in (batch, list(batch)):
        assert [np.asarray(image).max() for image in load_images("image", kind)] == [128, 0]


def test_transparency_becomes_white_and_palettes_colours():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(load_images("image", clear)[0]).min() == 255
    palette = Image.fromarray(PIXELS).quantize(256)
    np.testing.assert_array_equal(np.asarray(load_images("image", palette)[0]), np.asarray(palette.convert("RGB")))
    for mode in ("LA", "RGBA"):
        half = Image.new(mode, (2, 1), (200,) * (len(mode) - 1) + (128,))
        premultiplied = half.convert(mode.replace("A", "a"))
        loaded = [np.asarray(load_images("image", kind)[0]) for kind in (half, premultiplied)]
        np.testing.assert_allclose(*loaded, atol=1)


def test_sixteen_bit_pictures_keep_their_brightness():
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    wide = Image.fromarray(values.astype(np.int32))  # of mode "I"
    for kind in (Image.fromarray(values), Image.open(file), wide, values):
        assert np.asarray(load_images("image", kind)[0])[0, :, 0].tolist() == [0, 100, 255]


def test_exif_rotation_is_applied():
    image, file = Image.fromarray(PIXELS), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    image.save(file, "PNG", exif=exif)
    assert load_images("image", Image.open(file))[0].size == (12, 10)


MASK = np.zeros((8, 6), dtype=np.uint8)
MASK[2:5, 1:4] = 255


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(MASK),
        Image.fromarray(MASK).convert("RGB"),
        Image.fromarray(MASK).convert("1"),
        Image.fromarray(MASK).convert("LA").convert("La"),
        Image.fromarray((MASK / 255).astype(np.float32)),
        Image.fromarray(MASK.astype(np.int32) * 257),
        MASK,
        MASK / 255,
        MASK > 0,
        (MASK / 255)[..., None],
        np.repeat(MASK[..., None], 3, axis=-1),
        MASK.astype(np.uint16) * 257,
        MASK[None],
        torch.from_numpy(MASK / 255),
        torch.from_numpy(MASK > 0)[None],
        torch.from_numpy(MASK / 255)[None, None],
    ],
)
def test_every_kind_of_mask_gives_the_same_result(mask):
    result = to_mask_tensor(load_masks("mask_image", mask), (8, 6))
    np.testing.assert_array_equal(result[0, 0].numpy(), MASK > 0)


def test_grey_masks_are_thresholded():
    mask = np.array([[127, 128]], dtype=np.uint8)
    assert to_mask_tensor(load_masks("mask_image", mask), (1, 2)).flatten().tolist() == [0, 1]


@pytest.mark.parametrize(("left", "top", "cells"), [(5, 9, [(2, 1)]), (7, 11, [(2, 1), (2, 2), (3, 1), (3, 2)])])
def test_a_hole_too_small_for_the_small_mask_keeps_its_cells(left, top, cells):
    """And the others of its batch stay as they are."""
    small, large = Image.new("L", (32, 32)), Image.new("L", (32, 32))
    small.paste(255, (left, top, left + 2, top + 2))
    large.paste(255, (9, 9, 23, 24))
    masks = to_mask_tensor([small, large], (8, 8))
    assert [tuple(cell) for cell in masks[0, 0].nonzero().tolist()] == cells
    bicubic = np.asarray(large.resize((8, 8), Image.Resampling.BICUBIC)) >= 128
    np.testing.assert_array_equal(masks[1, 0].numpy(), bicubic)


def test_padding_repeats_the_edge():
    (padded,) = pad_to([Image.fromarray(PIXELS)], (16, 16))
    padded = np.asarray(padded)
    np.testing.assert_array_equal(padded[:12, :10], PIXELS)
    np.testing.assert_array_equal(padded[15, :10], PIXELS[-1])


@pytest.mark.parametrize(
    ("picture", "error", "message"),
    [
        ("picture.png", TypeError, "`image` must be a PIL image"),
        ([], ValueError, "`image` must not be an empty list"),
        (np.zeros((4,)), ValueError, "`image` must have 3 dimensions"),
        (np.zeros((4, 4, 5)), ValueError, r"`image` .* 3 or 4 channels last, got the shape \[4, 4, 5\]"),
        (torch.zeros(5, 4, 3), ValueError, "`image` as a tensor must have 1, 3 or 4 channels first"),
        (np.zeros((0, 4, 3)), ValueError, r"`image` has no pixels: its shape is \[0, 4, 3\]"),
        (Image.new("RGB", (0, 4)), ValueError, "`image` has no pixels"),
        (np.full((4, 4, 3), 2.0), ValueError, r"`image` must lie in \[0, 1\], got values from 2 to 2"),
        (torch.tensor([-2.0, 0, 1.5]).expand(3, 4, 3), ValueError, r"in \[-1, 1\], got values from -2 to 1.5"),
        (torch.tensor([-0.02, 0, 1.03]).expand(3, 4, 3), ValueError, r"in \[0, 1\] or, .* from -0.02 to 1.03"),
        (np.full((4, 4, 3), np.nan), ValueError, "`image` holds NaN"),
        (np.zeros((4, 4, 3), dtype=np.int64), TypeError, "`image` must hold uint8, uint16 or floating-point"),
        (Image.new("F", (4, 4), np.nan), ValueError, "`image` holds NaN"),
        (Image.new("L", (4, 4), 255).convert("F"), ValueError, r"`image` must lie in \[0, 1\], got .* from 255 to 255"),
        (Image.new("I", (4, 4), 10**6), ValueError, r"`image` of mode I must lie in \[0, 65535\], got .* 1000000"),
        (Image.new("I", (4, 4), -5), ValueError, r"`image` of mode I must lie in \[0, 65535\], got .* from -5 to -5"),
    ],
)
def test_bad_pictures_are_named(picture, error, message):
    with pytest.raises(error, match=message):
        load_images("image", picture)


def test_bad_values_in_masks_are_named():
    partly = np.ones((4, 4), dtype=np.float32)
    partly[0, 0] = np.nan
    with pytest.raises(ValueError, match="`mask_image` holds NaN"):
        load_masks("mask_image", Image.fromarray(partly))
    with pytest.raises(ValueError, match=r"`mask_image` of mode I must lie in \[0, 65535\]"):
        load_masks("mask_image", Image.new("I", (4, 4), 10**6))


def test_a_mask_with_nothing_to_repaint_is_named():
    with pytest.raises(ValueError, match="`mask_image` 1 of 2 has nothing to repaint"):
        load_masks("mask_image", [Image.fromarray(MASK), Image.new("L", (4, 4))])


def test_squares_are_cropped_and_never_squashed():
    wide = Image.new("RGB", (60, 20), "black")
    wide.paste((255, 0, 0), (44, 0, 60, 20))
    assert crop_square(wide, 10, None).getcolors() == [(100, (0, 0, 0))]
    offsets = {
        crop_square(wide, 10, np.random.default_rng(seed)).resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
        for seed in range(20)
    }
    assert len(offsets) > 3
    assert crop_square(Image.new("RGB", (7, 5)), 16, None).size == (16, 16)
